//! What becomes of leases, as `Monitor` streams it.

use serde::{Deserialize, Serialize};

use super::holder::Holder;
use super::lease::{Lease, LeaseState};
use super::names::{InterfaceName, QueueSet, words};

words! {
    /// Why a lease has ended.
    EndReason {
        /// Its holder said so.
        Released = "released",
        /// Its holder is no more.
        HolderExited = "holder_exited",
        /// An operator said so.
        Revoked = "revoked",
        /// It was not activated in time.
        NotActivated = "not_activated",
        /// Its sockets did not reach the client.
        NotDelivered = "not_delivered",
        /// Its socket was bound to something that was not granted.
        RogueBind = "rogue_bind",
        /// Its socket was bound in a mode that its rule does not allow.
        ModeNotAllowed = "mode_not_allowed",
        /// Its device was deleted, or moved to another network namespace.
        DeviceGone = "device_gone",
        /// Its device has no such queue any more.
        QueueGone = "queue_gone",
        /// The broker ends.
        Stopped = "stopped",
        /// The policy was read anew, would not give it any more, and the operator wanted it to end then.
        NotAllowed = "not_allowed",
        /// The broker was restarted before it was active, or its socket was gone by then.
        Restarted = "restarted",
    }
}

words! {
    /// What still keeps the queue of a lease that has ended, as far as the broker can know: it looks into no process.
    StillHeld {
        /// Its holder lives and has not closed the socket.
        Holder = "holder",
        /// The holder exited just now; the kernel takes 10 to 50 ms to let go.
        Kernel = "kernel",
        /// The holder has been gone for longer: a child that it forked, or whoever it sent the socket to, has an fd of it,
        /// or a ring of it mapped.
        Others = "others",
    }
}

words! {
    /// What an event is about.
    Change {
        /// The lease came to another state.
        State = "state",
        /// It moved to another process.
        Holder = "holder",
        /// Its device was set up or down, renamed, or has another MTU.
        Device = "device",
        /// The policy was read anew, and says something else of it than before; it is kept, whatever that is.
        Policy = "policy",
    }
}

/// One event in the life of a lease, and how things stand after it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct LeaseEvent {
    /// Which lease.
    pub lease: u64,
    /// What the event is about.
    pub change: Change,
    /// How far the lease has come; `freed` is the last word on it.
    pub state: LeaseState,
    /// Why it has ended; absent while it lives.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<EndReason>,
    /// Whether no packet of its queues reaches its holder's memory. Not so for a zero-copy socket that lives on after the
    /// end: no packet is redirected to it, but the device goes on writing its queue's frames there.
    pub rx_stopped: bool,
    /// Whether a socket of it may still transmit.
    pub tx_may_continue: bool,
    /// Its device, by its name now.
    pub interface: InterfaceName,
    /// Its queues.
    pub queues: QueueSet,
    /// The process that it lives and dies with.
    pub holder: Holder,
    /// Whether the device is up: one that is down neither receives nor sends.
    pub up: bool,
    /// Whether the device is up and has a carrier. Some drivers lose it for seconds when XDP is attached or a zero-copy
    /// socket bound.
    pub carrier: bool,
    /// The longest packet of the device, in bytes without the Ethernet header.
    pub mtu: u32,
    /// Why the policy in force would not give it, if it would not: it is an older one's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub not_allowed: Option<String>,
}

/// One reply of `Monitor`: leases, or an event.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Monitored {
    /// In the first reply, and wherever events were lost: everything that there is, as `ListLeases` has it. Events that
    /// follow came after it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub leases: Option<Vec<Lease>>,
    /// How many events were lost before `leases`, because they were not read in time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lost: Option<u64>,
    /// What happened.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub event: Option<LeaseEvent>,
}
