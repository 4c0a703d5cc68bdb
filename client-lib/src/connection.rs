//! The connection to the broker: its methods as functions. `channel.rs` carries them.

use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::call_error::{CallError, ProtocolError};
use crate::channel::Channel;
use crate::process::ProcessId;
use crate::wire::{
    Acquire, Acquired, Activate, Activated, Bind, BindReply, DEFAULT_SOCKET, Explain, Explained, INTERFACE,
    Interfaces, LeaseReference, Leases, MAX_QUEUES, Reload, Reloaded, Revoked, SERVICE_INTERFACE,
    ServiceInfo, Status, Transferred,
};

/// Names the broker's socket, where it is not [`DEFAULT_SOCKET`].
pub const SOCKET_VARIABLE: &str = "XSK_BROKER_SOCKET";

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
    pub(crate) channel: Channel,
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
        let channel = Channel::connect(path.as_ref())?;
        Ok(Self { channel })
    }

    /// Over a connection that was made already, such as one that a supervisor made before it closed the file system.
    ///
    /// The broker takes whoever connected for the holder of what is acquired here, for good; and a connection that is
    /// lost is not made anew.
    pub fn over(stream: UnixStream) -> Self {
        let channel = Channel::over(stream);
        Self { channel }
    }

    /// How long a call may take in all; 10 seconds if not set.
    pub fn set_timeout(&mut self, timeout: Duration) {
        self.channel.timeout = timeout;
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
        let (acquired, fds) =
            self.channel
                .exchange::<Acquired>(INTERFACE, METHOD, Some(request), MAX_QUEUES)?;
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
            self.channel
                .exchange::<BindReply>(INTERFACE, METHOD, Some(&Bind { lease }), MAX_QUEUES)?;
        let named = bound.sockets.iter().map(|socket| socket.socket_file_descriptor);
        let sockets = take_named(named, fds).map_err(|cause| CallError::Protocol {
            method: METHOD,
            cause,
        })?;
        Ok((bound, sockets))
    }

    /// Says that the sockets of a lease are bound, and that packets are to be redirected to them.
    ///
    /// `NoSuchLease`: it has ended, as at its deadline, or because the broker was restarted before it was active and nobody
    /// had kept its sockets meanwhile. They are of no more use then, and may be unfit to be bound: close them and acquire
    /// again.
    ///
    /// # Errors
    ///
    /// [`CallError::Refused`]: `NotBound`, `BoundElsewhere`, `ModeNotAllowed`, `NoSuchLease`.
    pub fn activate(&mut self, lease: u64) -> Result<Activated, CallError> {
        self.ask("Activate", &Activate { lease })
    }

    /// Moves a lease of this process to another one, as a manager does with what it took for a VMM: from then on it lives
    /// and dies with that process. The rule that gave it names in `transfer-to` whose processes these may be.
    ///
    /// # Errors
    ///
    /// [`CallError::Refused`]: `NoSuchLease`, `NoSuchProcess`, `Denied`. After a connection that broke meanwhile,
    /// [`Self::list_leases`] says whose the lease is.
    pub fn transfer(&mut self, lease: u64, to: &ProcessId) -> Result<Transferred, CallError> {
        self.ask("Transfer", &to.transfer_of(lease))
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
    pub fn revoke(&mut self, lease: u64) -> Result<Revoked, CallError> {
        self.ask("Revoke", &LeaseReference { lease })
    }

    /// Has the broker read its policy anew. On the control socket only.
    ///
    /// # Errors
    ///
    /// [`CallError::Refused`]: `PolicyWrong`, and the former policy is in force; [`CallError::Service`] on the broker
    /// socket.
    pub fn reload(&mut self, reload: &Reload) -> Result<Reloaded, CallError> {
        self.ask("Reload", reload)
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
        let (info, _) = self
            .channel
            .exchange(SERVICE_INTERFACE, "GetInfo", None::<&Nothing>, 0)?;
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
        Ok(self.channel.exchange(INTERFACE, method, Some(parameters), 0)?.0)
    }
}

#[derive(Debug, Serialize, serde::Deserialize)]
struct Nothing {}

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
