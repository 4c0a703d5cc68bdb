//! One connection, one Varlink call at a time, blocking, with a deadline.
//!
//! Replies are not believed: fds where none belong, indexes that do not match, and more bytes than a reply may have
//! are errors, and every fd that came is closed. After a failure in the middle of a reply nobody knows where the next
//! one begins: the next call connects anew.
//!
//! A broker that was restarted is found again without the caller's doing, where that is sound: always before a call was
//! sent, and after it for those calls that may be done twice. Leases and rings need no connection.

use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::call_error::{CallError, ProtocolError};
use crate::sys::{self, ReceiveError};
use crate::wire::{self, BrokerError, MessageBuffer, Reply, ServiceError};

/// The longest reply that is read: all leases of a large machine fit many times.
const MAX_REPLY_BYTES: usize = 16 * 1024 * 1024;

/// Between two looks whether a broker serves again.
const PAUSE: Duration = Duration::from_millis(20);

/// A stream to the broker, and how to make another one.
#[derive(Debug)]
pub(crate) struct Channel {
    stream: UnixStream,
    /// Where to connect anew.
    path: Option<PathBuf>,
    incoming: MessageBuffer,
    /// How long a call may take in all.
    pub(crate) timeout: Duration,
    broken: bool,
}

impl Channel {
    pub(crate) fn connect(path: &Path) -> Result<Self, CallError> {
        Ok(Self {
            path: Some(path.to_owned()),
            ..Self::over(connect(path)?)
        })
    }

    /// Over a connection that cannot be made anew.
    pub(crate) fn over(stream: UnixStream) -> Self {
        Self {
            stream,
            path: None,
            incoming: MessageBuffer::new(MAX_REPLY_BYTES),
            timeout: Duration::from_secs(10),
            broken: false,
        }
    }

    /// Calls a method and takes its reply, with at most so many fds.
    pub(crate) fn exchange<R: DeserializeOwned>(
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
        let deadline = Instant::now() + self.timeout;
        let (message, fds) = loop {
            match self.attempt(method, &call, fds_limit, deadline) {
                // A broker that is dying closes its connections before it stops to listen: the next one may be lost, too.
                Err(error)
                    if is_lost(&error)
                        && self.path.is_some()
                        && may_be_repeated(method)
                        && Instant::now() + PAUSE < deadline =>
                {
                    std::thread::sleep(PAUSE);
                }
                attempted => break attempted?,
            }
        };
        let reply: Reply = serde_json::from_slice(&message).map_err(|error| protocol(error.into()))?;
        Ok((result_of(method, reply)?, fds))
    }

    /// Sends a call and takes its one reply, over a connection that may be a new one.
    fn attempt(
        &mut self,
        method: &'static str,
        call: &[u8],
        fds_limit: usize,
        deadline: Instant,
    ) -> Result<(Vec<u8>, Vec<OwnedFd>), CallError> {
        self.ensure_connected(method, deadline)?;
        // Until the whole reply is here.
        self.broken = true;
        let received = self
            .round_trip(call, fds_limit, deadline)
            .map_err(|failure| self.call_error(method, failure))?;
        self.broken = false;
        Ok(received)
    }

    /// Sends a call whose replies are taken one by one.
    pub(crate) fn send_call(&mut self, method: &'static str, call: &impl Serialize) -> Result<(), CallError> {
        let protocol = |cause: ProtocolError| CallError::Protocol { method, cause };
        let call = wire::encode(call).map_err(|error| protocol(error.into()))?;
        let deadline = Instant::now() + self.timeout;
        self.ensure_connected(method, deadline)?;
        match self.write(&call, deadline) {
            // A broker that refuses a connection has said why: that is the next reply.
            Err(Failure::Io(error)) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
            written => written.map_err(|failure| self.call_error(method, failure)),
        }
    }

    /// Takes the next of several replies; `None` when the time is over.
    pub(crate) fn next_reply<R: DeserializeOwned>(
        &mut self,
        method: &'static str,
        until: Option<Instant>,
    ) -> Result<Option<R>, CallError> {
        let message = match self.read_message(&mut Vec::new(), 0, until) {
            Err(Failure::Io(error)) if is_timeout(&error) => return Ok(None),
            received => received.map_err(|failure| {
                self.broken = true;
                self.call_error(method, failure)
            })?,
        };
        let reply: Reply = serde_json::from_slice(&message).map_err(|error| CallError::Protocol {
            method,
            cause: error.into(),
        })?;
        result_of(method, reply).map(Some)
    }

    pub(crate) fn stream(&self) -> &UnixStream {
        &self.stream
    }

    /// Connects anew where the connection is of no use any more. Nothing of a call was sent yet, so this is always sound;
    /// a broker that is being restarted is waited for.
    fn ensure_connected(&mut self, method: &'static str, deadline: Instant) -> Result<(), CallError> {
        if !self.broken && !has_hung_up(&self.stream) {
            return Ok(());
        }
        let Some(path) = &self.path else {
            return match self.broken {
                true => Err(CallError::Protocol {
                    method,
                    cause: ProtocolError::Broken,
                }),
                // Let the call say what the kernel says.
                false => Ok(()),
            };
        };
        let stream = loop {
            match connect(path) {
                Err(CallError::Connect { cause, .. })
                    if is_absent(&cause) && Instant::now() + PAUSE < deadline =>
                {
                    std::thread::sleep(PAUSE);
                }
                connected => break connected?,
            }
        };
        self.stream = stream;
        self.incoming = MessageBuffer::new(MAX_REPLY_BYTES);
        self.broken = false;
        Ok(())
    }

    fn call_error(&self, method: &'static str, failure: Failure) -> CallError {
        match failure {
            Failure::Io(error) if is_timeout(&error) => CallError::Timeout {
                method,
                waited: self.timeout,
            },
            Failure::Io(cause) => CallError::Connection { method, cause },
            Failure::Protocol(cause) => CallError::Protocol { method, cause },
        }
    }

    fn write(&mut self, call: &[u8], deadline: Instant) -> Result<(), Failure> {
        self.stream.set_write_timeout(Some(left(deadline)?))?;
        Ok(self.stream.write_all(call)?)
    }

    fn round_trip(
        &mut self,
        call: &[u8],
        fds_limit: usize,
        deadline: Instant,
    ) -> Result<(Vec<u8>, Vec<OwnedFd>), Failure> {
        let written = self.write(call, deadline);
        let mut fds = Vec::new();
        let message = match (written, self.read_message(&mut fds, fds_limit, Some(deadline))) {
            // A broker that refuses a connection says why and hangs up, without waiting for a call.
            (Ok(()), received) | (Err(Failure::Io(_)), received @ Ok(_)) => received?,
            (Err(failure), _) => return Err(failure),
        };
        match self.incoming.is_empty() {
            true => Ok((message, fds)),
            false => Err(ProtocolError::Surplus.into()),
        }
    }

    fn read_message(
        &mut self,
        fds: &mut Vec<OwnedFd>,
        fds_limit: usize,
        until: Option<Instant>,
    ) -> Result<Vec<u8>, Failure> {
        let mut buffer = vec![0; 64 * 1024];
        loop {
            if let Some(message) = self.incoming.next_message().map_err(ProtocolError::from)? {
                return Ok(message);
            }
            match until.map(left) {
                None => self.stream.set_read_timeout(None)?,
                Some(Ok(left)) => self.stream.set_read_timeout(Some(left))?,
                // What is here already is still taken: a caller may ask with no time at all.
                Some(Err(error)) if !is_readable(&self.stream) => return Err(error.into()),
                Some(Err(_)) => self.stream.set_read_timeout(Some(Duration::from_millis(1)))?,
            }
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

fn connect(path: &Path) -> Result<UnixStream, CallError> {
    UnixStream::connect(path).map_err(|cause| CallError::Connect {
        path: path.to_owned(),
        cause,
    })
}

/// What connect(2) says while nobody listens there.
fn is_absent(cause: &io::Error) -> bool {
    matches!(
        cause.kind(),
        io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused
    )
}

fn has_hung_up(stream: &UnixStream) -> bool {
    !ready(stream, PollFlags::RDHUP).is_empty()
}

fn is_readable(stream: &UnixStream) -> bool {
    !ready(stream, PollFlags::IN).is_empty()
}

/// What there is of these now, with errors and hang-ups.
fn ready(stream: &UnixStream, flags: PollFlags) -> PollFlags {
    let at_once = Timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    let mut fds = [PollFd::new(stream, flags)];
    match poll(&mut fds, Some(&at_once)) {
        Ok(_) => fds[0].revents(),
        Err(_) => PollFlags::empty(),
    }
}

/// Whether the connection was gone: the broker has done the call, or has not.
fn is_lost(error: &CallError) -> bool {
    let closed = |kind| {
        matches!(
            kind,
            io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset | io::ErrorKind::UnexpectedEof
        )
    };
    match error {
        CallError::Connection { cause, .. } => closed(cause.kind()),
        CallError::Protocol { cause, .. } => matches!(cause, ProtocolError::Closed),
        _ => false,
    }
}

/// Calls that do no harm when they are done twice. Not among them: `Acquire`, whose first lease may be on its way, and
/// `Transfer`, after which the lease is another's.
fn may_be_repeated(method: &str) -> bool {
    [
        "Activate",
        "Release",
        "ListLeases",
        "ListInterfaces",
        "Explain",
        "GetStatus",
        "GetInfo",
        "Revoke",
    ]
    .contains(&method)
}

/// What a reply says.
fn result_of<R: DeserializeOwned>(method: &'static str, reply: Reply) -> Result<R, CallError> {
    let parameters = reply
        .parameters
        .as_deref()
        .map_or("{}", |parameters| parameters.get());
    match reply.error {
        None => serde_json::from_str(parameters).map_err(|error| CallError::Protocol {
            method,
            cause: error.into(),
        }),
        Some(name) => Err(refusal(method, name, parameters)),
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
