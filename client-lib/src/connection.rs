//! The connection to the broker: one Varlink call at a time, blocking, with a deadline.
//!
//! Replies are not believed: fds where none belong, indexes that do not match, and more bytes than a reply may have
//! are errors, and every fd that came is closed. After a failure in the middle of a reply nobody knows where the next
//! one begins, and the connection refuses further calls.

use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::call_error::{CallError, ProtocolError};
use crate::sys::{self, ReceiveError};
use crate::wire::{
    self, Acquire, Acquired, Activate, Activated, BindReply, BrokerError, DEFAULT_SOCKET, Explain, Explained,
    INTERFACE, Interfaces, LeaseReference, Leases, MAX_QUEUES, MessageBuffer, Reply, SERVICE_INTERFACE,
    ServiceError, ServiceInfo, Status,
};

/// Names the broker's socket, where it is not [`DEFAULT_SOCKET`].
pub const SOCKET_VARIABLE: &str = "XSK_BROKER_SOCKET";

/// The longest reply that is read: all leases of a large machine fit many times.
const MAX_REPLY_BYTES: usize = 16 * 1024 * 1024;

/// A connection to the broker.
///
/// ```no_run
/// use xsk_client::Broker;
///
/// let mut broker = Broker::connect()?;
/// for lease in broker.list_leases()?.leases {
///     println!("lease {} on {}: {}", lease.lease, lease.interface, lease.state);
/// }
/// # Ok::<(), xsk_client::CallError>(())
/// ```
#[derive(Debug)]
pub struct Broker {
    stream: UnixStream,
    incoming: MessageBuffer,
    timeout: Duration,
    broken: bool,
}

impl Broker {
    /// Connects to the socket that the variable `XSK_BROKER_SOCKET` names, else to [`DEFAULT_SOCKET`].
    ///
    /// # Errors
    ///
    /// [`CallError::Connect`].
    pub fn connect() -> Result<Self, CallError> {
        let path = std::env::var_os(SOCKET_VARIABLE).map_or_else(|| DEFAULT_SOCKET.into(), PathBuf::from);
        Self::connect_to(path)
    }

    /// Connects to the socket at `path`; the control socket is one too.
    ///
    /// # Errors
    ///
    /// [`CallError::Connect`].
    pub fn connect_to(path: impl AsRef<Path>) -> Result<Self, CallError> {
        let path = path.as_ref();
        let stream = UnixStream::connect(path).map_err(|cause| CallError::Connect {
            path: path.to_owned(),
            cause,
        })?;
        Ok(Self::over(stream))
    }

    fn over(stream: UnixStream) -> Self {
        Self {
            stream,
            incoming: MessageBuffer::new(MAX_REPLY_BYTES),
            timeout: Duration::from_secs(10),
            broken: false,
        }
    }

    /// How long a call may take in all; 10 seconds if not set.
    pub fn set_timeout(&mut self, timeout: Duration) {
        self.timeout = timeout;
    }

    /// Asks for queues of one device, all or none. The sockets come in the order of `Acquired::sockets`; for sockets of
    /// kind `bound` the umem's memfd comes alone.
    /// [`Grant::acquire`](crate::Grant::acquire) is the comfortable form.
    ///
    /// # Errors
    ///
    /// [`CallError::Refused`] with the reason; [`CallError::Protocol`] where sockets and fds do not match.
    pub fn acquire(&mut self, request: &Acquire) -> Result<(Acquired, Vec<OwnedFd>), CallError> {
        const METHOD: &str = "Acquire";
        let (acquired, fds) = self.exchange::<Acquired>(INTERFACE, METHOD, Some(request), MAX_QUEUES)?;
        let sockets = in_order(&acquired, fds).map_err(|cause| CallError::Protocol {
            method: METHOD,
            cause,
        })?;
        Ok((acquired, sockets))
    }

    /// Has the broker register the umem of a lease of kind `bound`, and bind: once for each lease. Every page of the umem
    /// must have been touched. The sockets come in the order of `BindReply::sockets`.
    ///
    /// # Errors
    ///
    /// [`CallError::Refused`]: `UmemNotPopulated`, `AlreadyBound`, `QueueBusy`, `ZeroCopyUnavailable`,
    /// `SocketKindUnsupported`, `NoSuchLease`; [`CallError::Protocol`] where sockets and fds do not match.
    pub fn bind(&mut self, lease: u64) -> Result<(BindReply, Vec<OwnedFd>), CallError> {
        const METHOD: &str = "Bind";
        let (bound, fds) =
            self.exchange::<BindReply>(INTERFACE, METHOD, Some(&wire::Bind { lease }), MAX_QUEUES)?;
        let named = bound.sockets.iter().map(|socket| socket.socket_file_descriptor);
        let sockets = take_named(named, fds).map_err(|cause| CallError::Protocol {
            method: METHOD,
            cause,
        })?;
        Ok((bound, sockets))
    }

    /// Says that the sockets of a lease are bound, and that packets are to be redirected to them.
    ///
    /// # Errors
    ///
    /// [`CallError::Refused`]: `NotBound`, `BoundElsewhere`, `ModeNotAllowed`, `NoSuchLease`.
    pub fn activate(&mut self, lease: u64) -> Result<Activated, CallError> {
        self.ask("Activate", &Activate { lease })
    }

    /// Ends a lease of one's own. It is no error where it has ended already, or is another's: that
    /// one goes on.
    ///
    /// # Errors
    ///
    /// Those of the connection.
    pub fn release(&mut self, lease: u64) -> Result<(), CallError> {
        self.ask::<Nothing>("Release", &LeaseReference { lease })
            .map(drop)
    }

    /// One's own leases; on the control socket everybody's.
    ///
    /// # Errors
    ///
    /// Those of the connection.
    pub fn list_leases(&mut self) -> Result<Leases, CallError> {
        self.ask("ListLeases", &Nothing {})
    }

    /// The devices that one's rules cover; on the control socket all that the policy names.
    ///
    /// # Errors
    ///
    /// Those of the connection.
    pub fn list_interfaces(&mut self) -> Result<Interfaces, CallError> {
        self.ask("ListInterfaces", &Nothing {})
    }

    /// What an `Acquire` would be answered, and by which rule.
    ///
    /// # Errors
    ///
    /// [`CallError::Refused`] where it asks for another user on the broker socket.
    pub fn explain(&mut self, request: &Explain) -> Result<Explained, CallError> {
        self.ask("Explain", request)
    }

    /// Ends anybody's lease. On the control socket only.
    ///
    /// # Errors
    ///
    /// [`CallError::Refused`]: `NoSuchLease`; [`CallError::Service`] on the broker socket.
    pub fn revoke(&mut self, lease: u64) -> Result<(), CallError> {
        self.ask::<Nothing>("Revoke", &LeaseReference { lease }).map(drop)
    }

    /// How the daemon is doing. On the control socket only.
    ///
    /// # Errors
    ///
    /// [`CallError::Service`] on the broker socket.
    pub fn get_status(&mut self) -> Result<Status, CallError> {
        self.ask("GetStatus", &Nothing {})
    }

    /// Who answers at this socket (`org.varlink.service.GetInfo`).
    ///
    /// # Errors
    ///
    /// Those of the connection.
    pub fn get_info(&mut self) -> Result<ServiceInfo, CallError> {
        let (info, _) = self.exchange(SERVICE_INTERFACE, "GetInfo", None::<&Nothing>, 0)?;
        Ok(info)
    }

    /// Calls any method of the broker's interface whose reply brings no fds.
    ///
    /// # Errors
    ///
    /// [`CallError::Refused`], and those of the connection.
    pub fn call<R: DeserializeOwned>(
        &mut self,
        method: &'static str,
        parameters: &impl Serialize,
    ) -> Result<R, CallError> {
        self.ask(method, parameters)
    }

    fn ask<R: DeserializeOwned>(
        &mut self,
        method: &'static str,
        parameters: &impl Serialize,
    ) -> Result<R, CallError> {
        Ok(self.exchange(INTERFACE, method, Some(parameters), 0)?.0)
    }

    fn exchange<R: DeserializeOwned>(
        &mut self,
        interface: &str,
        method: &'static str,
        parameters: Option<&impl Serialize>,
        fds_limit: usize,
    ) -> Result<(R, Vec<OwnedFd>), CallError> {
        let protocol = |cause: ProtocolError| CallError::Protocol { method, cause };
        let call = CallOf {
            method: format!("{interface}.{method}"),
            parameters,
        };
        let call = wire::encode(&call).map_err(|error| protocol(error.into()))?;
        if self.broken {
            return Err(protocol(ProtocolError::Broken));
        }
        // Until the whole reply is here.
        self.broken = true;
        let (message, fds) = self
            .round_trip(&call, fds_limit)
            .map_err(|failure| match failure {
                Failure::Io(error) if is_timeout(&error) => CallError::Timeout {
                    method,
                    waited: self.timeout,
                },
                Failure::Io(cause) => CallError::Connection { method, cause },
                Failure::Protocol(cause) => protocol(cause),
            })?;
        self.broken = false;
        let reply: Reply = serde_json::from_slice(&message).map_err(|error| protocol(error.into()))?;
        let parameters = reply
            .parameters
            .as_deref()
            .map_or("{}", |parameters| parameters.get());
        match reply.error {
            None => {
                let result = serde_json::from_str(parameters).map_err(|error| protocol(error.into()))?;
                Ok((result, fds))
            }
            Some(name) => Err(refusal(method, name, parameters)),
        }
    }

    fn round_trip(&mut self, call: &[u8], fds_limit: usize) -> Result<(Vec<u8>, Vec<OwnedFd>), Failure> {
        let deadline = Instant::now() + self.timeout;
        self.stream.set_write_timeout(Some(left(deadline)?))?;
        self.stream.write_all(call)?;
        let mut fds = Vec::new();
        let mut buffer = vec![0; 64 * 1024];
        loop {
            if let Some(message) = self.incoming.next_message().map_err(ProtocolError::from)? {
                return match self.incoming.is_empty() {
                    true => Ok((message, fds)),
                    false => Err(ProtocolError::Surplus.into()),
                };
            }
            self.stream.set_read_timeout(Some(left(deadline)?))?;
            match sys::receive_with_fds(self.stream.as_fd(), &mut buffer, fds_limit - fds.len()) {
                Ok((0, _)) => return Err(ProtocolError::Closed.into()),
                Ok((bytes, more)) => {
                    self.incoming.extend(&buffer[..bytes]);
                    fds.extend(more);
                }
                Err(ReceiveError::Io(error)) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(ReceiveError::Io(error)) => return Err(error.into()),
                Err(error) => return Err(ProtocolError::from(error).into()),
            }
        }
    }
}

/// As [`wire::Call`], with parameters that are not yet text.
#[derive(Serialize)]
struct CallOf<'a, P> {
    method: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    parameters: Option<&'a P>,
}

#[derive(Debug, Serialize, serde::Deserialize)]
struct Nothing {}

enum Failure {
    Io(io::Error),
    Protocol(ProtocolError),
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

impl From<ProtocolError> for Failure {
    fn from(error: ProtocolError) -> Self {
        Self::Protocol(error)
    }
}

fn is_timeout(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut)
}

/// The time that is left; a socket's timeout of zero would mean for ever.
fn left(deadline: Instant) -> Result<Duration, io::Error> {
    match deadline.saturating_duration_since(Instant::now()) {
        Duration::ZERO => Err(io::ErrorKind::TimedOut.into()),
        left => Ok(left),
    }
}

/// Reads an error reply.
fn refusal(method: &'static str, name: String, parameters: &str) -> CallError {
    // Both enumerations are tagged by the error's name, with the parameters beside it.
    let text = format!(
        r#"{{"error":{},"parameters":{parameters}}}"#,
        serde_json::Value::from(name.as_str())
    );
    if let Ok(error) = serde_json::from_str::<BrokerError>(&text) {
        return CallError::Refused {
            method,
            cause: Box::new(error),
        };
    }
    if let Ok(error) = serde_json::from_str::<ServiceError>(&text) {
        return CallError::Service {
            method,
            cause: Box::new(error),
        };
    }
    CallError::Protocol {
        method,
        cause: ProtocolError::UnknownError(name),
    }
}

/// The fds in the order of the sockets, or that of the umem.
pub(crate) fn in_order(acquired: &Acquired, fds: Vec<OwnedFd>) -> Result<Vec<OwnedFd>, ProtocolError> {
    let umem = acquired.umem_file_descriptor;
    let sockets = acquired.sockets.iter();
    let named = sockets.map(|socket| socket.socket_file_descriptor).chain(umem);
    take_named(named, fds)
}

/// The fds in the order in which they are named: each once, and one at least.
fn take_named(
    names: impl Iterator<Item = u32> + Clone,
    fds: Vec<OwnedFd>,
) -> Result<Vec<OwnedFd>, ProtocolError> {
    let named = names.clone().count();
    let mismatch = ProtocolError::Fds {
        named,
        fds: fds.len(),
    };
    if named != fds.len() || fds.is_empty() {
        return Err(mismatch);
    }
    let mut fds: Vec<Option<OwnedFd>> = fds.into_iter().map(Some).collect();
    let mut take = |index| fds.get_mut(usize::try_from(index).ok()?)?.take();
    let ordered: Option<Vec<OwnedFd>> = names.map(&mut take).collect();
    ordered.ok_or(mismatch)
}

#[cfg(test)]
mod tests;
