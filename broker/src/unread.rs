//! Fds in replies that nobody has read yet.
//!
//! The kernel charges fds in flight to the uid of who sent them, which is ours, and lets it have as many as
//! RLIMIT_NOFILE says (`too_many_unix_fds`, net/unix/scm.c): a client that never reads takes of everybody's. So they are
//! charged to the client, from before there is anything to send until the kernel has let go of them: when they are read,
//! or when the last fd of the client's end is closed. That we close ours, or that the client shuts one direction down,
//! changes nothing.

use std::io;
use std::os::fd::AsFd;
use std::time::Duration;

use tokio::net::UnixStream;
use tokio::time::sleep;

use crate::charge::{Accounts, Charge};
use crate::kernel::peer::unread_bytes;
use crate::limit::LimitReached;
use crate::quota::Resource;

/// So many fds are on their way to a client, or lie unread.
#[derive(Debug)]
#[must_use = "dropped while the fds are in flight, nobody is charged for them"]
pub struct Unread {
    _charge: Charge,
}

impl Unread {
    /// Charges a uid for the fds of one reply.
    ///
    /// # Errors
    ///
    /// [`LimitReached`]: it has more unread than it may.
    pub fn charge(accounts: &Accounts, uid: u32, fds: usize) -> Result<Self, LimitReached> {
        let fds = u64::try_from(fds).unwrap_or(u64::MAX);
        Ok(Self {
            _charge: accounts.charge(uid, Resource::UnreadFds, fds)?,
        })
    }

    /// Waits until nothing that was sent is in flight any more.
    pub(crate) async fn until_read_or_gone(&self, stream: &UnixStream) {
        const LONGEST: Duration = Duration::from_millis(100);

        // Most clients are waiting for the reply, and have read it by the second look.
        let mut look = Duration::from_millis(1);
        while unread_bytes(stream.as_fd()).is_ok_and(|bytes| bytes > 0) {
            sleep(look).await;
            look = (look * 2).min(LONGEST);
        }
    }
}

/// Waits until the client has read all earlier replies: those that pile up in a socket are read together by some Varlink
/// clients, which then lose the fds of all but one (libsystemd 257 and 262).
pub(crate) async fn until_read(stream: &UnixStream) -> io::Result<()> {
    const LOOK: Duration = Duration::from_millis(2);

    while unread_bytes(stream.as_fd())? > 0 {
        sleep(LOOK).await;
    }
    Ok(())
}
