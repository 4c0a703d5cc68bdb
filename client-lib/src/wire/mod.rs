//! The protocol as data: Varlink messages, as `broker.varlink` beside this file specifies them.
//!
//! Nothing here does I/O, and nothing here decides: both ends of the connection, and the tests, share these
//! types. The broker reads requests strictly ([`object`], `deny_unknown_fields`); clients ignore reply members
//! that they do not know, so that a later version may add some.

mod acquire;
mod error;
mod event;
mod explain;
mod framing;
mod holder;
mod lease;
mod message;
mod names;
mod reload;
mod rings;
mod socket;

pub use acquire::{Acquire, Acquired, Bind, BindReply, BoundSocket, GrantedSocket};
pub use error::{BrokerError, ServiceError};
pub use event::{Change, EndReason, LeaseEvent, Monitored, StillHeld};
pub use explain::{Check, CheckOutcome, Explain, Explained, RuleOutcome, RuleVerdict};
pub use framing::{FramingError, MAX_MESSAGE_BYTES, MessageBuffer, encode};
pub use holder::{Holder, Transfer, Transferred};
pub use lease::{Counters, Ended, Interface, Lease, LeaseQueue, LeaseState, Requester};
pub use message::{
    Activate, Activated, ActivatedSocket, AuditLog, Call, InterfaceDescription, Interfaces, LeaseReference,
    Leases, Probe, Quota, Reply, Revoked, ServiceInfo, Status, Used, object,
};
pub use names::{
    BindMode, InterfaceName, NameError, QueueLock, QueueSet, SocketKind, Target, XdpMode, ZeroCopy, ranges,
};
pub use reload::{InterfaceNote, MistakeSeverity, NotAllowed, PolicyMistake, Reload, Reloaded};
pub use rings::RingSizes;
pub use socket::{BusyPoll, Direction, ModeWish, NoDirection, NoUmem, NoWish, UmemShape};

/// The name of the broker's Varlink interface. Every method and error name starts with it.
pub const INTERFACE: &str = "org.xskbroker.Broker";

/// The standard interface that every Varlink service answers.
pub const SERVICE_INTERFACE: &str = "org.varlink.service";

/// The interface's description, as `org.varlink.service.GetInterfaceDescription` returns it.
pub const DESCRIPTION: &str = include_str!("broker.varlink");

/// The standard interface's description, with the errors that are in use beside it.
pub const SERVICE_DESCRIPTION: &str = include_str!("service.varlink");

/// Where the broker listens for everybody; its policy decides.
pub const DEFAULT_SOCKET: &str = "/run/xsk-broker/broker.sock";

/// Where the broker listens for its operators: mode 0600, root's.
pub const DEFAULT_CONTROL_SOCKET: &str = "/run/xsk-broker/control.sock";

/// At most this many queues in one request.
pub const MAX_QUEUES: usize = 64;
