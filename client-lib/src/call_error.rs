//! What can go wrong between a client and the broker: each variant names the call, the object, and what to do.
//!
//! A message says its cause itself; hence the members are called `cause`, and are no `source()` that would be printed
//! twice.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use crate::sys::ReceiveError;
use crate::wire::{BrokerError, FramingError, ServiceError};

/// What a call to the broker fails with.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CallError {
    /// The broker's socket could not be reached.
    #[error("connect to the broker at {path}: {cause}; {}", hint(.cause))]
    Connect {
        /// The socket.
        path: PathBuf,
        /// Why.
        cause: io::Error,
    },
    /// The connection broke in the middle of a call.
    #[error("{method}: the connection to the broker failed: {cause}")]
    Connection {
        /// The method that was called.
        method: &'static str,
        /// Why.
        cause: io::Error,
    },
    /// No reply in time. The broker may have carried the call out; the connection cannot be used again.
    #[error("{method}: no reply from the broker within {} ms", .waited.as_millis())]
    Timeout {
        /// The method that was called.
        method: &'static str,
        /// How long was waited.
        waited: Duration,
    },
    /// The broker said no, and says why.
    #[error("{method}: {cause}")]
    Refused {
        /// The method that was called.
        method: &'static str,
        /// The reason, as data.
        cause: Box<BrokerError>,
    },
    /// The other side is a Varlink service that does not serve this call.
    #[error("{method}: {cause}")]
    Service {
        /// The method that was called.
        method: &'static str,
        /// The reason, as data.
        cause: Box<ServiceError>,
    },
    /// The reply is not what the protocol says. The connection cannot be used again.
    #[error("{method}: this is no reply of an xsk-broker: {cause}")]
    Protocol {
        /// The method that was called.
        method: &'static str,
        /// What is wrong with it.
        cause: ProtocolError,
    },
}

impl CallError {
    /// When it makes sense to try the same again; `None` where waiting alone will not help.
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Refused { cause, .. } => match **cause {
                BrokerError::QueueBusy { retry_after_ms, .. } => retry_after_ms.map(Duration::from_millis),
                _ => None,
            },
            _ => None,
        }
    }
}

/// What to do about a socket that cannot be connected to.
fn hint(cause: &io::Error) -> &'static str {
    match cause.kind() {
        io::ErrorKind::PermissionDenied => "this socket is for others",
        _ => "is xsk-broker running there?",
    }
}

/// What is wrong with a reply.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ProtocolError {
    /// Longer than any reply.
    #[error(transparent)]
    Framing(#[from] FramingError),
    /// Not JSON, or not the members that it must have.
    #[error("{0}")]
    Json(#[from] serde_json::Error),
    /// Something is wrong with the fds that came with it.
    #[error(transparent)]
    Receive(#[from] ReceiveError),
    /// The connection ended before the reply did.
    #[error("the connection was closed")]
    Closed,
    /// None of the members that it could have.
    #[error("a reply that says nothing")]
    Empty,
    /// An error that this version does not know.
    #[error("error {0}")]
    UnknownError(String),
    /// A second message without a second call.
    #[error("more than one message")]
    Surplus,
    /// fds and the indexes that name them do not match.
    #[error("{named} file descriptors are named, {fds} came, or an index is wrong or named twice")]
    Fds {
        /// How many the reply names.
        named: usize,
        /// How many fds came with it.
        fds: usize,
    },
    /// The connection was left in the middle of a reply by an earlier failure, and it is not known where to connect anew.
    #[error("an earlier call on this connection failed in the middle: connect again")]
    Broken,
}
