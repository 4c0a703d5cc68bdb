//! The messages: a struct for the parameters of each method and for its reply.

use std::borrow::Cow;
use std::marker::PhantomData;

use serde::de::value::MapAccessDeserializer;
use serde::{Deserialize, Deserializer, Serialize, de};
use serde_json::value::RawValue;

use super::lease::{Interface, Lease};
use super::names::BindMode;

/// What a client sends.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Call<'a> {
    /// `INTERFACE.Method`.
    #[serde(borrow)]
    pub method: Cow<'a, str>,
    /// The method's parameters, an object.
    #[serde(borrow, default, skip_serializing_if = "Option::is_none")]
    pub parameters: Option<&'a RawValue>,
    /// The client wants no reply.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub oneway: bool,
    /// The client takes more than one reply.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub more: bool,
    /// The client wants to leave the protocol. Never granted.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub upgrade: bool,
}

/// What the broker answers.
#[derive(Debug, Serialize, Deserialize)]
pub struct Reply {
    /// The error's full name; absent where the call succeeded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// The method's result, or what the error says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parameters: Option<Box<RawValue>>,
    /// More replies follow.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub continues: bool,
}

/// `Activate`: the sockets are bound, redirect packets to them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Activate {
    /// Which lease.
    pub lease: u64,
}

/// Reply to `Activate`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Activated {
    /// Which lease.
    pub lease: u64,
    /// What the kernel gave, for each queue.
    pub sockets: Vec<ActivatedSocket>,
}

/// One bound socket, as `XDP_OPTIONS` tells.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ActivatedSocket {
    /// Its queue.
    pub queue: u32,
    /// Copy or zero-copy.
    pub mode: BindMode,
}

/// `Release` and `Revoke`: one lease.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LeaseReference {
    /// Which lease.
    pub lease: u64,
}

/// Reply to `Revoke`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Revoked {
    /// Whether no packet of its queues reaches its holder's memory any more.
    pub rx_stopped: bool,
    /// Whether a socket of it may still transmit.
    pub tx_may_continue: bool,
    /// The lease as it is after that; absent where its queues are free.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lease: Option<Lease>,
}

/// Reply to `ListLeases`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Leases {
    /// On the broker socket one's own, on the control socket all, ascending by number.
    pub leases: Vec<Lease>,
}

/// Reply to `ListInterfaces`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Interfaces {
    /// The devices that the policy names and that exist.
    pub interfaces: Vec<Interface>,
}

/// Reply to `GetStatus`, on the control socket.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Status {
    /// The daemon's version.
    pub version: String,
    /// Its process.
    pub pid: u32,
    /// The uid that it runs as.
    pub uid: u32,
    /// How long it has been running.
    pub uptime_ms: u64,
    /// CPU time that its engine has spent in microseconds: everything that has to do with leases is done there.
    #[serde(default)]
    pub engine_cpu_us: u64,
    /// The kernel's release, for people: the daemon itself probes.
    pub kernel: String,
    /// Capabilities that its engine may raise for one call at a time.
    pub capabilities: Vec<String>,
    /// What the kernel was found to have.
    pub probes: Vec<Probe>,
    /// The policy files in force.
    pub policy_files: Vec<String>,
    /// How many rules they hold.
    pub rules: u64,
    /// How many leases there are, lingering ones included.
    pub leases: u64,
    /// How many clients are connected to the broker socket.
    pub connections: u64,
    /// What is limited, and how much of it is in use.
    #[serde(default)]
    pub quotas: Vec<Quota>,
    /// How its audit log is doing; absent in a reply of a version that does not tell.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub audit_log: Option<AuditLog>,
    /// Why the service manager is given no fds to keep any more, though it has a store for them; absent where it is, or there
    /// is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fd_store_trouble: Option<String>,
}

/// What became of the broker's audit lines.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AuditLog {
    /// Lines that are not written yet: of a reader that stalls, or a disk that is full.
    pub waiting_lines: u64,
    /// The same in bytes.
    pub waiting_bytes: u64,
    /// Refusals that were counted in a line for many of one user, since the broker's start.
    pub refusals_summed: u64,
    /// Refusals that have no line, because too many lines waited, since the broker's start.
    pub refusals_dropped: u64,
    /// What the last write failed with, until one succeeds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trouble: Option<String>,
}

/// How much of one resource is in use, and may be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Quota {
    /// As the policy calls it under `[limits.per-user]` and `[limits.in-all]`: `connections`, `requests`, `leases`, `queues`,
    /// `umem-bytes`, `unread-fds`, `abandoned-sockets`.
    pub resource: String,
    /// What all users have.
    pub in_use: u64,
    /// What all users together may have.
    pub limit: u64,
    /// What each of them may have.
    pub limit_per_user: u64,
    /// Who has how much of it, without those who have none.
    pub users: Vec<Used>,
}

/// How much of a resource one user has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Used {
    /// The user.
    pub uid: u32,
    /// What it has.
    pub in_use: u64,
}

/// One thing that the kernel has or lacks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Probe {
    /// The kernel's name for it.
    pub name: String,
    /// Whether it is there.
    pub available: bool,
    /// What follows from that.
    pub note: String,
}

/// Reply to `org.varlink.service.GetInfo`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceInfo {
    /// Who makes it.
    pub vendor: String,
    /// What it is called.
    pub product: String,
    /// Its version.
    pub version: String,
    /// Where to read about it.
    pub url: String,
    /// The interfaces that it answers.
    pub interfaces: Vec<String>,
}

/// Reply to `org.varlink.service.GetInterfaceDescription`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct InterfaceDescription {
    /// The text of the `.varlink` file.
    pub description: String,
}

/// Reads a value from a JSON object only: serde would take an array for a struct as well.
///
/// # Errors
///
/// Whatever the value's own `Deserialize` says; an array, a number, a string or null in place of the object.
pub fn object<'de, T: Deserialize<'de>, D: Deserializer<'de>>(deserializer: D) -> Result<T, D::Error> {
    struct Object<T>(PhantomData<T>);

    impl<'de, T: Deserialize<'de>> de::Visitor<'de> for Object<T> {
        type Value = T;

        fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.write_str("an object")
        }

        fn visit_map<A: de::MapAccess<'de>>(self, map: A) -> Result<T, A::Error> {
            T::deserialize(MapAccessDeserializer::new(map))
        }
    }

    deserializer.deserialize_map(Object(PhantomData))
}

pub(super) fn optional_object<'de, T: Deserialize<'de>, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<T>, D::Error> {
    struct Present<T>(T);

    impl<'de, T: Deserialize<'de>> Deserialize<'de> for Present<T> {
        fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
            object(deserializer).map(Self)
        }
    }

    Ok(Option::<Present<T>>::deserialize(deserializer)?.map(|present| present.0))
}
