//! The errors: one variant for each `error` line of `broker.varlink`, and those of `org.varlink.service`.
//!
//! Each says in `message` what failed, on which object, and what to do; the other parameters are for programs.

use serde::{Deserialize, Serialize};

use super::names::{BindMode, InterfaceName, SocketKind};
use super::reload::PolicyMistake;

/// What the broker refuses with.
///
/// "No such interface" and "no rule for you" are both [`BrokerError::Denied`], word for word, so that a stranger
/// learns nothing about devices.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[serde(tag = "error", content = "parameters")]
pub enum BrokerError {
    /// The policy does not allow it.
    #[error("{message}")]
    #[serde(rename = "org.xskbroker.Broker.Denied")]
    Denied {
        /// The device asked for.
        interface: InterfaceName,
        /// The queues asked for.
        queues: Vec<u32>,
        /// For people.
        message: String,
    },
    /// A queue is held by another lease, or the kernel has not let go of it yet, or sockets that a broker before has left
    /// unbound hold the device back until their holders end.
    #[error("{message}")]
    #[serde(rename = "org.xskbroker.Broker.QueueBusy", rename_all = "camelCase")]
    QueueBusy {
        /// The device.
        interface: InterfaceName,
        /// The queue.
        queue: u32,
        /// When it makes sense to ask again; absent where nobody can know.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        retry_after_ms: Option<u64>,
        /// For people.
        message: String,
    },
    /// A limit is used up: the rule's, the user's, or that of all users together, as `message` says.
    #[error("{message}")]
    #[serde(rename = "org.xskbroker.Broker.QuotaExceeded", rename_all = "camelCase")]
    QuotaExceeded {
        /// What is limited: `connections`, `requests`, `leases`, `queues`, `umem-bytes`, `unread-fds`,
        /// `abandoned-sockets`.
        resource: String,
        /// The limit.
        limit: u64,
        /// What is in use without this request.
        in_use: u64,
        /// For people.
        message: String,
    },
    /// The rule allows the queue, the device has no such queue now.
    #[error("{message}")]
    #[serde(rename = "org.xskbroker.Broker.NoSuchQueue", rename_all = "camelCase")]
    NoSuchQueue {
        /// The device.
        interface: InterfaceName,
        /// The queue.
        queue: u32,
        /// How many the device has now.
        queues: u32,
        /// For people.
        message: String,
    },
    /// The device cannot serve now: a foreign XDP program, an XDP mode that the driver lacks, a lock that cannot
    /// be had, gone.
    #[error("{message}")]
    #[serde(rename = "org.xskbroker.Broker.DeviceUnavailable")]
    DeviceUnavailable {
        /// The device.
        interface: InterfaceName,
        /// For people.
        message: String,
    },
    /// There is no such lease, or it is not the caller's. It may have ended at a restart of the broker, if it was not
    /// active yet: then acquire again.
    #[error("{message}")]
    #[serde(rename = "org.xskbroker.Broker.NoSuchLease")]
    NoSuchLease {
        /// The number that was given.
        lease: u64,
        /// For people.
        message: String,
    },
    /// `Transfer` to a process that is gone, or is another one than the caller means. The lease stays where it is.
    #[error("{message}")]
    #[serde(rename = "org.xskbroker.Broker.NoSuchProcess")]
    NoSuchProcess {
        /// The process id that was given.
        pid: u32,
        /// For people.
        message: String,
    },
    /// `Activate` before the socket was bound. The lease lives on.
    #[error("{message}")]
    #[serde(rename = "org.xskbroker.Broker.NotBound")]
    NotBound {
        /// The lease.
        lease: u64,
        /// The queue whose socket is not bound.
        queue: u32,
        /// For people.
        message: String,
    },
    /// The socket was bound to something that was not granted. The lease has been ended.
    #[error("{message}")]
    #[serde(rename = "org.xskbroker.Broker.BoundElsewhere")]
    BoundElsewhere {
        /// The lease.
        lease: u64,
        /// The queue that is still free.
        queue: u32,
        /// For people.
        message: String,
    },
    /// The socket was bound in a mode that the rule's `zero-copy` does not allow. The lease has been ended.
    #[error("{message}")]
    #[serde(rename = "org.xskbroker.Broker.ModeNotAllowed")]
    ModeNotAllowed {
        /// The lease.
        lease: u64,
        /// The queue.
        queue: u32,
        /// What it was bound in.
        mode: BindMode,
        /// For people.
        message: String,
    },
    /// `Bind` before all pages of the umem were touched. The lease lives on.
    #[error("{message}")]
    #[serde(rename = "org.xskbroker.Broker.UmemNotPopulated", rename_all = "camelCase")]
    UmemNotPopulated {
        /// The lease.
        lease: u64,
        /// The bytes that are there.
        populated_bytes: u64,
        /// The bytes that must be.
        umem_bytes: u64,
        /// For people.
        message: String,
    },
    /// `Bind` again: the sockets of a lease leave the broker once, so that their rings have one user.
    #[error("{message}")]
    #[serde(rename = "org.xskbroker.Broker.AlreadyBound")]
    AlreadyBound {
        /// The lease.
        lease: u64,
        /// For people.
        message: String,
    },
    /// This kernel cannot serve sockets of that kind.
    #[error("{message}")]
    #[serde(rename = "org.xskbroker.Broker.SocketKindUnsupported")]
    SocketKindUnsupported {
        /// The kind.
        sockets: SocketKind,
        /// For people.
        message: String,
    },
    /// Zero-copy was wanted or required, and the device does not give it for this queue.
    #[error("{message}")]
    #[serde(rename = "org.xskbroker.Broker.ZeroCopyUnavailable")]
    ZeroCopyUnavailable {
        /// The device.
        interface: InterfaceName,
        /// The queue.
        queue: u32,
        /// For people.
        message: String,
    },
    /// `Reload` of a policy with mistakes. The former one is in force.
    #[error("{message}")]
    #[serde(rename = "org.xskbroker.Broker.PolicyWrong")]
    PolicyWrong {
        /// Errors, at least one, and warnings.
        mistakes: Vec<PolicyMistake>,
        /// For people.
        message: String,
    },
    /// The parameters are not what the method takes.
    #[error("{message}")]
    #[serde(rename = "org.xskbroker.Broker.InvalidRequest")]
    InvalidRequest {
        /// For people: which parameter, and what is wrong with it.
        message: String,
    },
    /// A failure of the broker's own. Its log has the cause.
    #[error("{message}")]
    #[serde(rename = "org.xskbroker.Broker.Failed")]
    Failed {
        /// For people: where to look.
        message: String,
    },
}

/// What every Varlink service may answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[serde(tag = "error", content = "parameters")]
pub enum ServiceError {
    /// No interface of that name here.
    #[error("no interface {interface} here")]
    #[serde(rename = "org.varlink.service.InterfaceNotFound")]
    InterfaceNotFound {
        /// The name that was given.
        interface: String,
    },
    /// The interface has no such method.
    #[error("no method {method} here")]
    #[serde(rename = "org.varlink.service.MethodNotFound")]
    MethodNotFound {
        /// The name that was given.
        method: String,
    },
    /// The method answers more than once: call it with `more`.
    #[error("this method answers more than once: call it with `more`")]
    #[serde(rename = "org.varlink.service.ExpectedMore")]
    ExpectedMore {},
    /// Only on the control socket.
    #[error("this method is for operators, on the control socket")]
    #[serde(rename = "org.varlink.service.PermissionDenied")]
    PermissionDenied {},
}
