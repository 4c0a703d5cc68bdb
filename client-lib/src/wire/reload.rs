//! `Reload`: the policy read anew, and what that means for what is held.

use serde::{Deserialize, Serialize};

use super::lease::Requester;
use super::names::{InterfaceName, words};

/// `Reload`, on the control socket.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Reload {
    /// End the leases that the new policy would not give.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revoke: Option<bool>,
}

/// Reply to `Reload`: the new policy is in force.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Reloaded {
    /// The files that it was read from.
    pub policy_files: Vec<String>,
    /// How many rules they hold.
    pub rules: u64,
    /// What their author may want to know.
    pub warnings: Vec<PolicyMistake>,
    /// The leases that it would not give.
    pub not_allowed: Vec<NotAllowed>,
    /// Devices with a program of the broker's for which something else holds now.
    pub interfaces: Vec<InterfaceNote>,
}

/// A mistake in a policy, or what its author may want to know.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PolicyMistake {
    /// Whether the policy is taken all the same.
    pub severity: MistakeSeverity,
    /// The file or directory.
    pub file: String,
    /// From 1; absent where it is about the file as a whole.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub line: Option<u64>,
    /// In characters, from 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub column: Option<u64>,
    /// The line, or the part of a long one that shows the place.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source_line: Option<String>,
    /// What is wrong.
    pub message: String,
    /// What to do.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub help: Option<String>,
    /// All of that as a compiler prints it.
    pub text: String,
}

words! {
    /// How bad a mistake is.
    MistakeSeverity {
        /// The policy is not taken.
        Error = "error",
        /// It is taken, and does less than its author may think.
        Warning = "warning",
    }
}

/// A lease that the policy in force would not give.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NotAllowed {
    /// Its number.
    pub lease: u64,
    /// Its device.
    pub interface: InterfaceName,
    /// Its queues.
    pub queues: Vec<u32>,
    /// Who asked for it.
    pub requester: Requester,
    /// The rule by which it was given.
    pub rule: String,
    /// Why it would not be given now.
    pub reason: String,
    /// Whether it was ended.
    pub ended: bool,
    /// Whether no packet of its queues reaches its holder's memory any more.
    pub rx_stopped: bool,
    /// Whether a socket of it may still transmit.
    pub tx_may_continue: bool,
}

/// What another policy means for a device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct InterfaceNote {
    /// The device.
    pub interface: InterfaceName,
    /// What holds there now, and from when on.
    pub message: String,
}
