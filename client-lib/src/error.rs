//! What can go wrong in the client: each variant names the call, the object, and what to do.

use std::fmt;
use std::io;
use std::time::Duration;

use crate::bind::Mode;
use crate::call_error::CallError;
use crate::memlock::{Bytes, MemlockTooLow};
use crate::ring::CorruptRing;
use crate::sys::Ring;
use crate::wire::{InterfaceName, NoUmem, SocketKind, ZeroCopy};

/// One queue of one device, as `eth0:4`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Queue {
    /// The device's name in the broker's network namespace.
    pub interface: InterfaceName,
    /// The queue id.
    pub id: u32,
}

impl fmt::Display for Queue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&format!("{}:{}", self.interface, self.id))
    }
}

/// What the client fails with.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A call to the broker: unreachable, refused, no reply.
    #[error(transparent)]
    Call(#[from] CallError),
    /// Sockets were to be taken from the environment, and it does not have them.
    #[error(
        "taking sockets from the environment: {0}; start this program by `xsk-broker grant IF:QUEUES -- …`"
    )]
    Inherit(#[from] InheritError),
    /// Sockets and umems, or sockets and fds, do not match in number.
    #[error("the grant has {sockets} sockets, {given} {what} were given: one for each")]
    Count {
        /// What was given.
        what: &'static str,
        /// How many sockets there are.
        sockets: usize,
        /// How many were given.
        given: usize,
    },
    /// A umem of a shape that the kernel does not take.
    #[error(transparent)]
    UmemShape(#[from] NoUmem),
    /// Another step belongs to sockets of that kind.
    #[error("the grant is of kind {kind}: {instead}")]
    Kind {
        /// The kind.
        kind: SocketKind,
        /// What to do.
        instead: &'static str,
    },
    /// The memory for a umem could not be made.
    #[error("{call} for a umem of {}: {cause}", Bytes(*.bytes))]
    Umem {
        /// The system call.
        call: &'static str,
        /// How large.
        bytes: u64,
        /// Why.
        cause: io::Error,
    },
    /// The umem is more than this user may pin.
    #[error(transparent)]
    MemlockTooLow(#[from] MemlockTooLow),
    /// A call on the way to a bound socket.
    #[error("{call} for {queue}: {cause}")]
    Socket {
        /// The system call or socket option.
        call: &'static str,
        /// The queue.
        queue: Queue,
        /// Why.
        cause: io::Error,
    },
    /// A umem cannot be shared by so many sockets.
    #[error("a umem of {chunks} chunks cannot be shared by {sockets} sockets: each needs at least one")]
    UmemShares {
        /// How many chunks it has.
        chunks: u32,
        /// How many sockets were to share it.
        sockets: usize,
    },
    /// The socket was granted for the other direction only.
    #[error("{queue}: the socket has no {ring} ring: it was granted for the other direction only")]
    NoRing {
        /// The queue.
        queue: Queue,
        /// The ring that it lacks.
        ring: Ring,
    },
    /// The queue was still busy after retrying.
    #[error(
        "bind to {queue}: still busy after {} ms; another socket is bound there, or the last one is not gone yet",
        .waited.as_millis()
    )]
    QueueBusy {
        /// The queue.
        queue: Queue,
        /// For how long it was tried.
        waited: Duration,
    },
    /// Zero-copy was asked for and nothing else.
    #[error("bind to {queue} in zero-copy mode: {cause}; this driver may not have it: allow Mode::Copy")]
    NoZeroCopy {
        /// The queue.
        queue: Queue,
        /// Why.
        cause: io::Error,
    },
    /// The rule that gave the queue says otherwise; a lease bound so would end.
    #[error(
        "{queue}: the rule has `zero-copy = \"{rule}\"`, which Mode::{mode:?} does not fit; leave the mode to the rule"
    )]
    ModeNotAllowed {
        /// The queue.
        queue: Queue,
        /// What the rule says of zero-copy.
        rule: ZeroCopy,
        /// What was asked for.
        mode: Mode,
    },
    /// The device was removed, or moved to another network namespace. The socket is of no use any more.
    #[error("{queue}: the device is gone")]
    DeviceGone {
        /// The queue.
        queue: Queue,
    },
    /// The shared indexes of a ring contradict each other: somebody else writes to this socket's rings.
    #[error("{queue}: {cause}; another process may be using the same socket")]
    Corrupt {
        /// The queue.
        queue: Queue,
        /// Which indexes.
        cause: CorruptRing,
    },
}

impl Error {
    /// When it makes sense to try the same again; `None` where waiting alone will not help.
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::QueueBusy { .. } => Some(Duration::from_millis(100)),
            Self::Call(call) => call.retry_after(),
            _ => None,
        }
    }
}

/// What is wrong with the environment.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum InheritError {
    /// A variable is not set, or is not text.
    #[error("{0} is not set")]
    Missing(&'static str),
    /// A variable does not have the form that it must have.
    #[error("{name} is {value:?}, which is not understood")]
    Malformed {
        /// The variable.
        name: &'static str,
        /// Its value.
        value: String,
    },
    /// The lease is not readable.
    #[error("XSK_LEASE: {0}")]
    Lease(#[from] serde_json::Error),
    /// Meant for another process.
    #[error("LISTEN_PID is {meant}, this process is {ours}: the sockets are another's")]
    OtherProcess {
        /// Whose they are.
        meant: u32,
        /// Who we are.
        ours: u32,
    },
    /// The variables contradict each other.
    #[error("XSK_LEASE names {sockets} sockets, and LISTEN_FDS and LISTEN_FDNAMES do not name the same")]
    Inconsistent {
        /// How many sockets the lease names.
        sockets: usize,
    },
    /// The fd is not there, was not inherited, or is no unbound AF_XDP socket (or no umem, where that was left).
    #[error("file descriptor {fd} is not what was left there: an unbound AF_XDP socket, or a sealed umem")]
    NotOurs {
        /// Its number.
        fd: i32,
    },
    /// They can be taken once.
    #[error("they were taken already")]
    Taken,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_are_small_enough_to_return_from_the_datapath() {
        assert!(size_of::<Error>() <= 96, "{}", size_of::<Error>());
    }
}
