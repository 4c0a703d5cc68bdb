//! A process of an ordinary user that connects where it is told to and hands each connection over.
//!
//! The kernel takes who connects for the other end, for good. A thread of the test's that becomes another user for a
//! moment has that uid, and yet the whole test's process, which is root's: no process out there is like that, and a
//! kernel without SO_PEERPIDFD leads a broker to refuse it. So whoever connects here is a process of that uid.

use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Stdio;
use std::sync::{Mutex, PoisonError};

use anyhow::{Context, Result};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketFlags, SocketType, recv, recvmsg, send, sendmsg, socketpair,
};

use crate::holder::Holder;
use crate::patience::stretched;
use crate::raw_client::PATIENCE;
use crate::uids::User;
use crate::world::{Side, World};

/// The process. It ends when this is dropped, and every connection counts as its own until then.
#[derive(Debug)]
pub struct Connector {
    /// A path goes in, an errno comes out, with a connection beside it if that is 0. One at a time.
    orders: Mutex<OwnedFd>,
    _process: Holder,
}

impl Connector {
    /// Starts it on the host's side.
    pub fn start(world: &World, user: &User) -> Result<Self> {
        let (ours, theirs) = socketpair(
            AddressFamily::UNIX,
            SocketType::SEQPACKET,
            SocketFlags::CLOEXEC,
            None,
        )
        .context("socketpair")?;
        let timeout = Some(stretched(PATIENCE));
        rustix::net::sockopt::set_socket_timeout(&ours, rustix::net::sockopt::Timeout::Recv, timeout)?;
        let process = Holder::body_with(world, Side::Host, user, "connector", &[], Stdio::from(theirs))?;
        Ok(Self {
            orders: Mutex::new(ours),
            _process: process,
        })
    }

    /// A connection of that process to a path as it is inside of the world.
    pub fn connect(&self, path: &Path) -> Result<UnixStream> {
        let orders = self.orders.lock().unwrap_or_else(PoisonError::into_inner);
        send(&*orders, path.as_os_str().as_bytes(), SendFlags::NOSIGNAL)
            .context("telling where to connect")?;
        let mut errno = [0; 4];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let received = recvmsg(
            &*orders,
            &mut [IoSliceMut::new(&mut errno)],
            &mut control,
            RecvFlags::CMSG_CLOEXEC,
        );
        anyhow::ensure!(
            received.context("waiting for a connection")?.bytes == errno.len(),
            "the process is gone"
        );
        match i32::from_ne_bytes(errno) {
            0 => {}
            errno => return Err(std::io::Error::from(Errno::from_raw_os_error(errno)).into()),
        }
        let fds = control.drain().find_map(|message| match message {
            RecvAncillaryMessage::ScmRights(mut fds) => fds.next(),
            _ => None,
        });
        Ok(fds.context("no connection came")?.into())
    }
}

/// The inside of it, for [`bodies`](crate::bodies).
///
/// # Panics
///
/// Where its standard input is not what [`Connector::start`] makes it.
#[expect(clippy::unwrap_used, reason = "it is a program of a test")]
pub fn connector(_: &[String]) {
    let stdin = std::io::stdin();
    let orders = stdin.as_fd();
    let mut path = [0; 256];
    loop {
        let (length, _) = recv(orders, &mut path, RecvFlags::empty()).unwrap();
        if length == 0 {
            return;
        }
        let path = Path::new(std::ffi::OsStr::from_bytes(&path[..length]));
        answer(orders, UnixStream::connect(path)).unwrap();
    }
}

fn answer(orders: BorrowedFd<'_>, connected: std::io::Result<UnixStream>) -> rustix::io::Result<usize> {
    let errno = match &connected {
        Ok(_) => 0,
        Err(error) => error.raw_os_error().unwrap_or(libc::EIO),
    };
    let stream = connected.ok();
    let fds: Vec<BorrowedFd<'_>> = stream.iter().map(AsFd::as_fd).collect();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() && !control.push(SendAncillaryMessage::ScmRights(&fds)) {
        return Err(Errno::NOBUFS);
    }
    sendmsg(
        orders,
        &[IoSlice::new(&errno.to_ne_bytes())],
        &mut control,
        SendFlags::NOSIGNAL,
    )
}
