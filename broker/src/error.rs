//! The two classes of errors.
//!
//! _Refused_ is the peer's doing: a named error on the wire, an info line in the audit log. _Failed_ is ours:
//! opaque on the wire, its whole cause chain logged once, by whoever answers the peer.

use std::io;

use xsk_client::wire::{BrokerError, InterfaceName, ServiceError};

use crate::limit::LimitReached;

/// Why a request was not done.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The peer's doing; it is told all of this.
    #[error(transparent)]
    Refused(#[from] BrokerError),
    /// Ours; the peer is told to look into the log.
    #[error(transparent)]
    Failed(#[from] Failure),
}

impl From<LimitReached> for Error {
    fn from(reached: LimitReached) -> Self {
        Self::Refused(reached.into())
    }
}

/// Why a request was not done: an error of the broker's interface, or of every Varlink service.
pub(crate) enum RequestError {
    Service(ServiceError),
    Request(Error),
}

impl From<ServiceError> for RequestError {
    fn from(error: ServiceError) -> Self {
        Self::Service(error)
    }
}

impl<E: Into<Error>> From<E> for RequestError {
    fn from(error: E) -> Self {
        Self::Request(error.into())
    }
}

/// What can fail on our side.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// A system call.
    #[error("{call}, {object}")]
    Kernel {
        /// The call and the argument that tells it from others.
        call: &'static str,
        /// What it was done on.
        object: String,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// Loading or attaching the XDP program, or its maps.
    #[error("{step}, {interface}")]
    Xdp {
        /// Which step.
        step: &'static str,
        /// The device.
        interface: InterfaceName,
        /// What aya said.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// Raising or dropping capabilities.
    #[error("{step}")]
    Capabilities {
        /// Which step.
        step: &'static str,
        /// What the kernel said.
        #[source]
        source: caps::errors::CapsError,
    },
    /// The engine's thread is gone; the daemon is about to stop.
    #[error("the engine has stopped")]
    EngineStopped,
}

impl Failure {
    /// A failed system call on an object.
    #[expect(
        clippy::needless_pass_by_value,
        reason = "callers pass what they have at hand, a path's display for one"
    )]
    pub fn kernel(call: &'static str, object: impl ToString, source: impl Into<io::Error>) -> Self {
        Self::Kernel {
            call,
            object: object.to_string(),
            source: source.into(),
        }
    }

    /// Whether what the kernel said is that there is no such device: it went while it was being worked on.
    pub fn is_no_device(&self) -> bool {
        self.is_errno(libc::ENODEV)
    }

    /// Whether this is what the kernel said.
    pub fn is_errno(&self, errno: i32) -> bool {
        let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(self);
        while let Some(error) = cause {
            let of_kernel = error
                .downcast_ref::<io::Error>()
                .and_then(io::Error::raw_os_error);
            if of_kernel == Some(errno) {
                return true;
            }
            cause = error.source();
        }
        false
    }
}

/// An error with all its causes on one line, for the log.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        // Many messages say their cause themselves.
        if !text.contains(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        source = cause.source();
    }
    text
}
