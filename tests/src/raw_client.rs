//! A Varlink client by hand, as an ordinary user: it sends what no library would send, and believes nothing.
//!
//! Nothing here waits for ever: a broker that does not answer is an error after [`PATIENCE`].

use std::io::{self, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags};
use serde_json::{Value, json};

use crate::connector::Connector;
use crate::patience::stretched;
use crate::sys;

/// How long a reply may take.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// The broker's interface.
pub const INTERFACE: &str = "org.xskbroker.Broker";

/// A connection, most often of a process of its own ([`Connector`]), which is its holder.
#[derive(Debug)]
pub struct RawClient {
    stream: UnixStream,
    received: Vec<u8>,
    /// The process that it counts as, which lives at least as long.
    _connector: Option<Arc<Connector>>,
}

impl RawClient {
    /// Has a process connect to a path as it is inside of the world.
    pub fn connect(connector: &Arc<Connector>, path: &Path) -> Result<Self> {
        let stream = connector
            .connect(path)
            .with_context(|| format!("connecting to {}", path.display()))?;
        let mut client = Self::over(stream)?;
        client._connector = Some(Arc::clone(connector));
        Ok(client)
    }

    /// Talks over this connection, which is the test's own.
    pub fn over(stream: UnixStream) -> Result<Self> {
        stream.set_read_timeout(Some(stretched(PATIENCE)))?;
        stream.set_write_timeout(Some(stretched(PATIENCE)))?;
        Ok(Self {
            stream,
            received: Vec::new(),
            _connector: None,
        })
    }

    /// The connection itself.
    pub fn stream(&self) -> &UnixStream {
        &self.stream
    }

    /// Sends bytes as they are.
    pub fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.stream.write_all(bytes)
    }

    /// Sends bytes with fds beside the first.
    pub fn send_with_fds(&mut self, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<()> {
        let mut space = vec![MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(253))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !control.push(SendAncillaryMessage::ScmRights(fds)) {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let parts = [io::IoSlice::new(bytes)];
        let sent = rustix::net::sendmsg(&self.stream, &parts, &mut control, SendFlags::NOSIGNAL)?;
        self.send(&bytes[sent..])
    }

    /// Waits until the other end has read all that was sent.
    pub fn wait_read(&self) -> Result<()> {
        let deadline = Instant::now() + stretched(PATIENCE);
        while sys::unread_bytes(self.stream.as_fd())? > 0 {
            if Instant::now() > deadline {
                bail!("what was sent is not read");
            }
            std::thread::sleep(Duration::from_micros(50));
        }
        Ok(())
    }

    /// The next message. `None`: the other end has closed.
    pub fn receive(&mut self) -> Result<Option<Value>> {
        let mut bytes = vec![0; 1 << 16];
        loop {
            if let Some(end) = self.received.iter().position(|byte| *byte == 0) {
                let message = serde_json::from_slice(&self.received[..end])?;
                self.received.drain(..=end);
                return Ok(Some(message));
            }
            match self.stream.read(&mut bytes) {
                Ok(0) => return Ok(None),
                Ok(count) => self.received.extend(&bytes[..count]),
                // It closed while bytes of ours were unread.
                Err(error) if error.kind() == io::ErrorKind::ConnectionReset => return Ok(None),
                Err(error) => return Err(error).context("reading a reply"),
            }
        }
    }

    /// Sends one message, without its NUL, and receives the reply.
    pub fn exchange(&mut self, message: &[u8]) -> Result<Option<Value>> {
        let sent = self.send(&[message, b"\0"].concat());
        match sent {
            Ok(()) => {}
            // It closed before it had read all; its last words may still be there.
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset
                ) => {}
            Err(error) => return Err(error).context("sending a request"),
        }
        self.receive()
    }

    /// Calls a method of the broker's interface; the reply as it came, be it an error.
    pub fn call(&mut self, method: &str, parameters: &Value) -> Result<Value> {
        let call = json!({ "method": format!("{INTERFACE}.{method}"), "parameters": parameters });
        self.exchange(call.to_string().as_bytes())?
            .with_context(|| format!("{method}: the broker closed the connection"))
    }

    /// Whether the other end has closed, without waiting.
    pub fn is_closed(&mut self) -> Result<bool> {
        self.stream.set_nonblocking(true)?;
        let mut byte = [0];
        let read = self.stream.read(&mut byte);
        self.stream.set_nonblocking(false)?;
        match read {
            Ok(0) => Ok(true),
            Ok(_) => bail!("a byte that nobody asked for"),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(false),
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => Ok(true),
            Err(error) => Err(error).context("looking for the end"),
        }
    }
}
