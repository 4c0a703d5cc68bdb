//! Bytes to a client, and fds with the first of them.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::time::Duration;

use sendfd::SendWithFd;
use tokio::io::{AsyncWriteExt, Interest};
use tokio::net::UnixStream;
use tokio::time::sleep;

use crate::kernel::peer::unread_bytes;

/// Waits until the client has read all earlier replies: those that pile up in a socket are read together by some Varlink
/// clients, which then lose the fds of all but one (libsystemd 257 and 262).
pub(crate) async fn until_read(stream: &UnixStream) -> io::Result<()> {
    const LOOK: Duration = Duration::from_millis(2);

    while unread_bytes(stream.as_fd())? > 0 {
        sleep(LOOK).await;
    }
    Ok(())
}

/// Waits until the client has read all replies, or its end is gone.
///
/// fds in a reply that nobody reads stay in flight, charged to our uid by the kernel (`too_many_unix_fds`,
/// net/unix/scm.c), also after the client has hung up in one direction. For as long its connection counts.
pub(crate) async fn until_read_or_gone(stream: &UnixStream) {
    const LOOK: Duration = Duration::from_millis(100);

    while unread_bytes(stream.as_fd()).is_ok_and(|bytes| bytes > 0) {
        sleep(LOOK).await;
    }
}

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
