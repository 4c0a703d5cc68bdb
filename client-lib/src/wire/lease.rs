//! A lease and an interface, as `ListLeases` and `ListInterfaces` print them.

use serde::{Deserialize, Serialize};

use super::event::{EndReason, StillHeld};
use super::holder::Holder;
use super::names::{BindMode, InterfaceName, QueueLock, SocketKind, XdpMode, words};
use super::socket::Direction;

words! {
    /// How far a lease has come.
    LeaseState {
        /// Decided and charged; its kernel objects are being made.
        Reserved = "reserved",
        /// Its sockets were sent; it is to be activated.
        HandedOver = "handed_over",
        /// Packets are redirected to it.
        Active = "active",
        /// It is being taken down.
        Ending = "ending",
        /// Ended, but the kernel still holds a queue for its socket.
        Lingering = "lingering",
        /// Ended, and its queues can be granted again. Only `Monitor` says so: no list has it.
        Freed = "freed",
    }
}

/// Everything that there is to know about a lease.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Lease {
    /// Its number, never used twice by one broker.
    pub lease: u64,
    /// The device's name in the broker's network namespace.
    pub interface: InterfaceName,
    /// The device's index there.
    pub interface_index: u32,
    /// Its queues, ascending.
    pub queues: Vec<LeaseQueue>,
    /// Whose rule it is and who is charged.
    pub requester: Requester,
    /// The process that it lives and dies with.
    pub holder: Holder,
    /// The rule that gave it.
    pub rule: String,
    /// The state in which the sockets left the broker.
    pub sockets: SocketKind,
    /// Which way frames go.
    #[serde(default)]
    pub direction: Direction,
    /// The length of its umem, where the broker registers it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub umem_bytes: Option<u64>,
    /// What confines them to their queues.
    pub queue_lock: QueueLock,
    /// Where the XDP program runs.
    pub xdp: XdpMode,
    /// How far it has come.
    pub state: LeaseState,
    /// Why and when it ended, and what still keeps its queues; absent while it lives.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ended: Option<Ended>,
    /// Whether no packet of its queues reaches its holder's memory; see [`LeaseEvent`](super::LeaseEvent).
    pub rx_stopped: bool,
    /// Whether a socket of it may still transmit.
    pub tx_may_continue: bool,
    /// Why the policy in force would not give it, if it would not: it is an older one's. Absent where it would.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub not_allowed: Option<String>,
    /// Whether its device is up: one that is down neither receives nor sends.
    pub up: bool,
    /// Whether its device is up and has a carrier; see [`LeaseEvent`](super::LeaseEvent).
    pub carrier: bool,
    /// The longest packet of its device, in bytes without the Ethernet header.
    pub mtu: u32,
    /// Time since it was acquired.
    pub age_ms: u64,
    /// The requester's text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub label: Option<String>,
}

/// The end of a lease whose queues are still held.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Ended {
    /// Why.
    pub reason: EndReason,
    /// Time since then.
    pub ago_ms: u64,
    /// What keeps a queue.
    pub still_held: StillHeld,
}

/// One queue of a lease.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct LeaseQueue {
    /// The queue id.
    pub queue: u32,
    /// Copy or zero-copy; absent until the socket was seen bound.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mode: Option<BindMode>,
    /// The inode of its socket: `/proc/PID/fd` and `/proc/PID/maps` show it as `socket:[INODE]` to root.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub socket_inode: Option<u64>,
    /// What was counted.
    pub counters: Counters,
}

/// Packets of one queue. `redirected` is the XDP program's, since the lease was activated; the rest are the
/// socket's own (`XDP_STATISTICS`). Redirected is not delivered: a full ring drops afterwards.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Counters {
    /// Packets that the XDP program handed to the socket.
    pub redirected: u64,
    /// Of these, dropped for other reasons than a full ring: longer than a chunk, no fill entry.
    pub rx_dropped: u64,
    /// Of these, dropped because the holder's RX ring was full.
    pub rx_ring_full: u64,
    /// Times that the fill ring was found empty.
    pub rx_fill_ring_empty_descs: u64,
    /// Fill descriptors that the kernel refused.
    pub rx_invalid_descs: u64,
    /// TX descriptors that the kernel refused.
    pub tx_invalid_descs: u64,
    /// Times that the TX ring was found empty.
    pub tx_ring_empty_descs: u64,
}

impl Counters {
    /// Packets that were redirected and did not reach the RX ring.
    pub fn dropped(&self) -> u64 {
        self.rx_dropped.saturating_add(self.rx_ring_full)
    }
}

/// Who asked, as the kernel attests it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Requester {
    /// `SO_PEERCRED` at connect.
    pub uid: u32,
    /// `SO_PEERCRED` at connect.
    pub gid: u32,
}

/// A device that the policy names.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Interface {
    /// Its name.
    pub interface: InterfaceName,
    /// Its index.
    pub interface_index: u32,
    /// Where our XDP program runs; absent until the first `Acquire`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub xdp: Option<XdpMode>,
    /// Whether it is up; a device that is down neither receives nor sends.
    pub up: bool,
    /// Whether it is up and has a carrier; see [`LeaseEvent`](super::LeaseEvent).
    pub carrier: bool,
    /// The longest packet, in bytes without the Ethernet header. A packet that is longer than a chunk of its holder's umem
    /// is dropped and counted, unless the socket is bound for packets of several chunks (`XDP_USE_SG`, Linux 6.6).
    pub mtu: u32,
    /// Queues that packets arrive on or leave by now.
    pub queues: u32,
    /// The most that the device can have.
    pub queues_max: u32,
    /// Queues that are never granted.
    pub reserved: Vec<u32>,
    /// What confines sockets to their queues here; absent where the policy's lock cannot be had, which no socket that
    /// needs it gets by.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub queue_lock: Option<QueueLock>,
    /// Queues that a placeholder keeps busy now, while a socket that was handed out is unbound.
    pub placeholders: Vec<u32>,
    /// Queues that a socket of no lease is bound to: another program's, or one that outlived its broker. Looked for
    /// where XDP is attached and the driver has no zero-copy, since elsewhere the look would take the queue.
    pub foreign: Vec<u32>,
    /// The process that had an unbound socket when the broker that gave it crashed: until it is gone the device gives no
    /// sockets of that kind. Told on the control socket only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tainted_by: Option<u32>,
    /// In place of that: a file that is damaged and does not say which process it is. The device gives no sockets of that kind
    /// until an operator has seen that no process has one, and removed it. Told on the control socket only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tainted_file: Option<String>,
    /// The lease until whose end the device gives no sockets that leave unbound: it was taken over from a broker before
    /// without an fd of its sockets, so that placeholders could not hold its queues when its holder lets go of them. Where
    /// there are several, the first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub blocked_by: Option<u64>,
    /// The others, which have to end as well.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub blocked_by_others: Vec<u64>,
    /// Queues that are held now.
    pub held: Vec<u32>,
    /// Why nothing more is granted there, where its XDP program is attached otherwise than the policy in force wants it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub misfit: Option<String>,
    /// Packets of queues that nobody holds, passed to the host's stack since XDP was attached.
    pub passed: u64,
}
