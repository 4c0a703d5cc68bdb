//! The messages by which sockets come: `Acquire`, and `Bind` for those that the broker binds.

use serde::{Deserialize, Serialize};

use super::message::optional_object;
use super::names::{BindMode, InterfaceName, QueueLock, QueueSet, SocketKind, Target, XdpMode, ZeroCopy};
use super::rings::RingSizes;
use super::socket::{BusyPoll, Direction, ModeWish, UmemShape};

/// `Acquire`: queues of one device, all or none.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Acquire {
    /// The device, by its name in the broker's network namespace.
    pub interface: InterfaceName,
    /// Which of its queues.
    pub queues: QueueSet,
    /// In which state the sockets are wanted.
    pub sockets: SocketKind,
    /// Which way frames go; both if absent. Less than both can be promised for sockets of kind `bound` only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub direction: Option<Direction>,
    /// In which mode the broker binds, for sockets of kind `bound`; what the rule requires, else copy, if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mode: Option<ModeWish>,
    /// The umem that the broker makes, for sockets of kind `bound`.
    #[serde(
        default,
        deserialize_with = "optional_object",
        skip_serializing_if = "Option::is_none"
    )]
    pub umem: Option<UmemShape>,
    /// How large rings are wanted; 2048 entries each if absent. More than the rule's `ring-entries` is refused.
    #[serde(
        default,
        deserialize_with = "optional_object",
        skip_serializing_if = "Option::is_none"
    )]
    pub rings: Option<RingSizes>,
    /// Busy polling; none if absent.
    #[serde(
        default,
        deserialize_with = "optional_object",
        skip_serializing_if = "Option::is_none"
    )]
    pub busy_poll: Option<BusyPoll>,
    /// A text for the log and the list. Never authority.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub label: Option<String>,
}

impl Acquire {
    /// Asks for these queues and leaves everything else to the broker.
    pub fn new(target: Target, sockets: SocketKind) -> Self {
        Self {
            interface: target.interface,
            queues: target.queues,
            sockets,
            direction: None,
            mode: None,
            umem: None,
            rings: None,
            busy_poll: None,
            label: None,
        }
    }
}

/// Reply to `Acquire`. The sockets' fds come with it, in the order of their indexes; or that of the umem, for sockets of
/// kind `bound`, which come with `Bind`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Acquired {
    /// Names the lease in later calls.
    pub lease: u64,
    /// The device's name in the broker's network namespace.
    pub interface: InterfaceName,
    /// The device's index there; what the sockets are bound with.
    pub interface_index: u32,
    /// The rule that gave it.
    pub rule: String,
    /// In which state the sockets leave the broker.
    #[serde(default = "prepared")]
    pub kind: SocketKind,
    /// Which way frames go: which rings there are.
    #[serde(default)]
    pub direction: Direction,
    /// What confines the sockets to their queues.
    pub queue_lock: QueueLock,
    /// Where the XDP program runs.
    pub xdp: XdpMode,
    /// What the rule says of zero-copy: a lease whose sockets are bound otherwise ends.
    #[serde(default)]
    pub zero_copy: ZeroCopy,
    /// The rings' sizes. Of a direction that was not granted, the ring is missing; its fill or completion ring, without
    /// which the kernel binds nothing, has one entry.
    pub rings: RingSizes,
    /// The lease ends if it is not activated within this time.
    pub activate_within_ms: u64,
    /// The umem, for sockets of kind `bound`: to be mapped, and touched to its last page before `Bind`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub umem: Option<UmemShape>,
    /// Its place among the fds that came with the reply.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub umem_file_descriptor: Option<u32>,
    /// One socket for each queue, ascending by queue; none for sockets of kind `bound`.
    pub sockets: Vec<GrantedSocket>,
}

/// What a broker granted before it said so.
fn prepared() -> SocketKind {
    SocketKind::Prepared
}

/// One socket of a lease.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct GrantedSocket {
    /// The queue that it is for.
    pub queue: u32,
    /// Its place among the fds that came with the reply.
    pub socket_file_descriptor: u32,
}

/// `Bind`: every page of the umem is there, register it and bind.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Bind {
    /// Which lease.
    pub lease: u64,
}

/// Reply to `Bind`. The sockets' fds come with it, in the order of their indexes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BindReply {
    /// Which lease.
    pub lease: u64,
    /// One socket for each queue, ascending by queue. The umem belongs to all of them.
    pub sockets: Vec<BoundSocket>,
}

/// One socket that the broker has bound.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct BoundSocket {
    /// The queue that it is bound to.
    pub queue: u32,
    /// Copy or zero-copy, as `XDP_OPTIONS` tells.
    pub mode: BindMode,
    /// Its place among the fds that came with the reply.
    pub socket_file_descriptor: u32,
}

#[cfg(test)]
mod tests {
    use super::super::message::object;
    use super::*;

    fn acquire(json: &str) -> Result<Acquire, String> {
        object(&mut serde_json::Deserializer::from_str(json)).map_err(|error| error.to_string())
    }

    #[test]
    fn a_request_reads_back_as_written() {
        let json = r#"{"interface":"eth0","queues":[2,3],"sockets":"prepared","rings":{"fill":64,"completion":64,"rx":64,"tx":64},"label":"vm 7"}"#;
        assert_eq!(serde_json::to_string(&acquire(json).unwrap()).unwrap(), json);
        assert!(acquire(r#"{"interface":"eth0","queues":[2],"sockets":"prepared","rings":null}"#).is_ok());
    }

    #[test]
    fn what_is_no_request() {
        let cases = [
            (r#"["eth0",[2],"prepared",null,null]"#, "an object"),
            (
                r#"{"interface":"eth0","queues":[2],"sockets":"prepared","rings":[1,1,1,1]}"#,
                "an object",
            ),
            (
                r#"{"interface":"eth0","queues":[2],"sockets":"prepared","ring":1}"#,
                "unknown field `ring`",
            ),
            (
                r#"{"interface":"eth0","interface":"eth1","queues":[2],"sockets":"prepared"}"#,
                "duplicate field",
            ),
            (
                r#"{"interface":"eth0","queues":[],"sockets":"prepared"}"#,
                "no queue id",
            ),
            (
                r#"{"interface":"eth0","queues":[2,2],"sockets":"prepared"}"#,
                "twice",
            ),
            (
                r#"{"interface":"eth0","queues":[-1],"sockets":"prepared"}"#,
                "invalid value",
            ),
            (
                r#"{"interface":"eth0","queues":[1.5],"sockets":"prepared"}"#,
                "invalid type",
            ),
            (
                r#"{"interface":"eth/0","queues":[1],"sockets":"prepared"}"#,
                "no interface name",
            ),
            (
                r#"{"interface":"eth0","queues":[1],"sockets":"naked"}"#,
                "unknown variant `naked`",
            ),
            (r#"{"interface":"eth0","queues":[1]}"#, "missing field `sockets`"),
        ];
        for (json, expected) in cases {
            let error = acquire(json).unwrap_err();
            assert!(error.contains(expected), "{json}: {error}");
        }
    }
}
