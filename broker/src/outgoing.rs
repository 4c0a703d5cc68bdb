//! Bytes to a client, and fds with the first of them.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use sendfd::SendWithFd;
use tokio::io::{AsyncWriteExt, Interest};
use tokio::net::UnixStream;

/// Sends a message, with fds on its first byte.
pub(crate) async fn send_with_fds(
    stream: &mut UnixStream,
    message: &[u8],
    fds: &[OwnedFd],
) -> io::Result<()> {
    let fds: Vec<_> = fds.iter().map(AsRawFd::as_raw_fd).collect();
    let sent = loop {
        stream.writable().await?;
        match stream.try_io(Interest::WRITABLE, || stream.send_with_fd(message, &fds)) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            result => break result?,
        }
    };
    stream.write_all(message.get(sent..).unwrap_or_default()).await
}
