//! Who is at the other end of a connection, as the kernel attests it and never as a message says.
//!
//! A [`Peer`] is made from a connection and from nothing else. Its credentials are those of the connect(2) call;
//! its [`Process`] is pinned by a pidfd, so that a reused pid is never mistaken for it.

mod process;
#[cfg(test)]
mod tests;

use std::io;
use std::os::fd::BorrowedFd;
use std::sync::Arc;

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::kernel::peer::{peer_groups, peer_pidfd};

pub use process::Process;

/// Whom a policy speaks about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Subject {
    /// Effective uid at connect(2).
    pub uid: u32,
    /// Effective gid at connect(2).
    pub gid: u32,
    /// Supplementary groups at connect(2).
    pub groups: Vec<u32>,
}

/// Who connected.
#[derive(Debug)]
pub struct Peer {
    subject: Subject,
    process: Arc<Process>,
}

impl Peer {
    /// Asks the kernel about a connection that was just accepted.
    ///
    /// # Errors
    ///
    /// [`IdentityError`]: the connection is to be closed, there is nobody to answer.
    pub fn from_connection(socket: BorrowedFd<'_>) -> Result<Self, IdentityError> {
        let credentials =
            rustix::net::sockopt::socket_peercred(socket).map_err(|source| IdentityError::Ask {
                option: "SO_PEERCRED",
                source: source.into(),
            })?;
        let groups = peer_groups(socket).map_err(|source| IdentityError::Ask {
            option: "SO_PEERGROUPS",
            source,
        })?;
        let uid = credentials.uid.as_raw();
        let process = match peer_pidfd(socket) {
            Ok(pidfd) => Process::new(credentials.pid, pidfd)?,
            Err(error) if error.raw_os_error() == Some(libc::ENOPROTOOPT) => {
                Process::by_pid(credentials.pid, uid, socket)?
            }
            // A peer that was reaped already (`sk_getsockopt`, net/core/sock.c).
            Err(error) if matches!(error.raw_os_error(), Some(libc::EINVAL | libc::ESRCH)) => {
                return Err(IdentityError::Gone);
            }
            Err(source) => {
                return Err(IdentityError::Ask {
                    option: "SO_PEERPIDFD",
                    source,
                });
            }
        };
        Ok(Self {
            subject: Subject {
                uid,
                gid: credentials.gid.as_raw(),
                groups,
            },
            process: Arc::new(process),
        })
    }

    /// Its user and groups.
    pub fn subject(&self) -> &Subject {
        &self.subject
    }

    /// Its process.
    pub fn process(&self) -> &Arc<Process> {
        &self.process
    }
}

/// Whose wish a lease is: what stays of a peer when its connection and its process are gone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Requester {
    /// Whom the policy spoke about.
    pub subject: Subject,
    /// Its process then, for the log.
    pub pid: u32,
}

impl Requester {
    /// So many supplementary groups of it stay, of up to 65536 (NGROUPS_MAX): they are written down with each lease.
    pub const MOST_GROUPS: usize = 1024;

    /// Leaves out groups beyond the most that stay; first those that say nothing to the policy in force.
    pub fn keep_groups(&mut self, is_named: impl Fn(u32) -> bool) {
        let groups = &mut self.subject.groups;
        if groups.len() > Self::MOST_GROUPS {
            groups.sort_by_cached_key(|gid| !is_named(*gid));
            groups.truncate(Self::MOST_GROUPS);
        }
    }
}

impl From<&Peer> for Requester {
    fn from(peer: &Peer) -> Self {
        Self {
            subject: peer.subject.clone(),
            pid: peer.process.pid(),
        }
    }
}

/// Why it is not known who connected.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// The kernel did not say.
    #[error("{option} of a new connection")]
    Ask {
        /// What was asked.
        option: &'static str,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// The process is gone already, or cannot be told from another one.
    #[error("the process that connected is gone")]
    Gone,
}

/// Whether nobody has the other end any more, or whoever has it wants nothing to do with it. One that only sends no more
/// is there and waits for its answers (`unix_poll`, net/unix/af_unix.c: EPOLLRDHUP, where both are EPOLLHUP).
pub(crate) fn hung_up(socket: BorrowedFd<'_>) -> bool {
    let mut fds = [PollFd::from_borrowed_fd(socket, PollFlags::empty())];
    let at_once = Timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    poll(&mut fds, Some(&at_once)).is_err()
        || fds
            .iter()
            .any(|fd| fd.revents().intersects(PollFlags::HUP | PollFlags::ERR))
}
