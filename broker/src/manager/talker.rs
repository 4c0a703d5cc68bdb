//! The thread that talks to the manager, over its datagram socket. It never blocks in the kernel: what it holds there could
//! not be taken back.

use std::ffi::OsString;
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use sendfd::SendWithFd;

use super::Shared;
use super::outbox::Message;
use crate::error::Failure;
use crate::privileges;

/// Before a manager that does not read is tried again.
const AGAIN: Duration = Duration::from_millis(10);

/// Where it hears.
#[derive(Debug)]
pub(super) struct Address(OsString);

impl Address {
    pub(super) fn of_this_process() -> Option<Self> {
        std::env::var_os("NOTIFY_SOCKET")
            .filter(|address| !address.is_empty())
            .map(Self)
    }

    fn connect(&self) -> io::Result<UnixDatagram> {
        let address = match self.0.as_bytes().strip_prefix(b"@") {
            Some(name) => SocketAddr::from_abstract_name(name)?,
            None => SocketAddr::from_pathname(&self.0)?,
        };
        let socket = UnixDatagram::unbound()?;
        socket.set_nonblocking(true)?;
        socket.connect_addr(&address)?;
        Ok(socket)
    }
}

pub(super) fn start(address: Address, shared: Arc<Shared>) -> Result<(), Failure> {
    let talk = move || match privileges::renounce() {
        Ok(()) => talk(&address, &shared),
        Err(error) => tracing::error!(%error, "the thread that talks to the service manager ends"),
    };
    std::thread::Builder::new()
        .name("manager".into())
        .spawn(talk)
        .map_err(|source| Failure::kernel("clone", "the service manager's thread", source))?;
    Ok(())
}

fn talk(address: &Address, shared: &Shared) {
    let mut state = shared.lock();
    loop {
        // Under the lock, which is for as long as a send takes that does not block: what it is about cannot be taken back
        // meanwhile.
        let told = match state.outbox.front() {
            None => {
                state = shared.news.wait(state).unwrap_or_else(PoisonError::into_inner);
                continue;
            }
            Some(message) => tell(address, message),
        };
        match told {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                let waited = shared.news.wait_timeout(state, AGAIN);
                state = waited.unwrap_or_else(PoisonError::into_inner).0;
                continue;
            }
            Err(error) => {
                let message = state.outbox.front();
                tracing::warn!(%error, ?message, "cannot tell the service manager (NOTIFY_SOCKET)");
            }
            Ok(()) => {}
        }
        if let Some(Message::Tell(tell)) = state.outbox.pop()
            && tell.send(()).is_err()
        {
            tracing::debug!("who wanted to know what the service manager was sent has given up");
        }
    }
}

fn tell(address: &Address, message: &Message) -> io::Result<()> {
    let (states, fds) = match message {
        Message::States(states) => (states.clone(), vec![]),
        Message::Alive => ("WATCHDOG=1\n".to_owned(), vec![]),
        Message::Keep(name, fd) => (
            // Polled, an AF_XDP socket would transmit.
            format!("FDSTORE=1\nFDNAME={name}\nFDPOLL=0\n"),
            vec![fd.as_fd().as_raw_fd()],
        ),
        Message::Remove(name) => (format!("FDSTOREREMOVE=1\nFDNAME={name}\n"), vec![]),
        Message::Tell(_) => return Ok(()),
    };
    let socket = address.connect()?;
    let sent = match fds.as_slice() {
        [] => socket.send(states.as_bytes())?,
        fds => socket.send_with_fd(states.as_bytes(), fds)?,
    };
    match sent == states.len() {
        true => Ok(()),
        false => Err(io::ErrorKind::WriteZero.into()),
    }
}
