//! What `xsk-broker check --json` prints: the whole policy as data, with every diagnostic.

use std::collections::BTreeMap;

use serde::Serialize;
use xsk_client::wire::{Direction, SocketKind, ZeroCopy};

use crate::policy::{
    Diagnostic, Effect, Insert, InterfaceSection, Loaded, Position, QueueLockSetting, Rule, Severity,
};
use crate::quota::{Amounts, Limits, Resource};

/// One object.
#[derive(Serialize)]
pub(super) struct Json {
    ok: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    files: Option<Vec<String>>,
    diagnostics: Vec<JsonDiagnostic>,
    #[serde(skip_serializing_if = "Option::is_none")]
    interfaces: Option<Vec<JsonInterface>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    rules: Option<Vec<JsonRule>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    limits: Option<JsonLimits>,
}

impl Json {
    /// Whether the policy is good, what is wrong with it, and what it says if it was taken.
    pub(super) fn new(good: bool, diagnostics: &[Diagnostic], loaded: Option<&Loaded>) -> Self {
        Self {
            ok: good,
            files: loaded.map(|loaded| {
                loaded
                    .files
                    .iter()
                    .map(|file| file.display().to_string())
                    .collect()
            }),
            diagnostics: diagnostics.iter().map(JsonDiagnostic::new).collect(),
            interfaces: loaded
                .map(|loaded| loaded.policy.sections().iter().map(JsonInterface::new).collect()),
            rules: loaded.map(|loaded| loaded.policy.rules().iter().map(JsonRule::new).collect()),
            limits: loaded.map(|loaded| JsonLimits::new(loaded.policy.limits())),
        }
    }
}

/// By the words of the policy.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct JsonLimits {
    per_user: BTreeMap<&'static str, u64>,
    in_all: BTreeMap<&'static str, u64>,
}

impl JsonLimits {
    fn new(limits: Limits) -> Self {
        let by_word = |amounts: Amounts| {
            let each = Resource::ALL.iter();
            each.map(|resource| (resource.as_str(), amounts.of(*resource)))
                .collect()
        };
        Self {
            per_user: by_word(limits.per_user),
            in_all: by_word(limits.in_all),
        }
    }
}

#[derive(Serialize)]
struct JsonDiagnostic {
    severity: Severity,
    file: String,
    #[serde(flatten, skip_serializing_if = "Option::is_none")]
    position: Option<Position>,
    message: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    help: Option<String>,
}

impl JsonDiagnostic {
    fn new(diagnostic: &Diagnostic) -> Self {
        Self {
            severity: diagnostic.severity,
            file: diagnostic.file.display().to_string(),
            position: diagnostic.position.clone(),
            message: diagnostic.message(),
            help: diagnostic.help(),
        }
    }
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct JsonInterface {
    interface: String,
    xdp: &'static str,
    reserved: String,
    queue_lock: QueueLockSetting,
    uplink: bool,
    at: String,
}

impl JsonInterface {
    fn new(section: &InterfaceSection) -> Self {
        Self {
            interface: section.pattern.written().to_owned(),
            xdp: section.settings.xdp.as_str(),
            reserved: section.settings.reserved.to_string(),
            queue_lock: section.settings.queue_lock,
            uplink: section.settings.uplink,
            at: section.at.clone(),
        }
    }
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct JsonRule {
    rule: String,
    effect: &'static str,
    who: String,
    interfaces: Vec<String>,
    queues: String,
    at: String,
    #[serde(flatten, skip_serializing_if = "Option::is_none")]
    gives: Option<JsonAllowance>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct JsonAllowance {
    sockets: Vec<SocketKind>,
    direction: Direction,
    hugepages: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    max_queues: Option<u32>,
    max_ring_entries: u32,
    max_umem_bytes: u64,
    max_busy_poll_budget: u16,
    activate_within_ms: u128,
    insert: Insert,
    zero_copy: ZeroCopy,
    transfer_to: Vec<String>,
}

impl JsonRule {
    fn new(rule: &Rule) -> Self {
        let gives = match &rule.effect {
            Effect::Deny => None,
            Effect::Allow(allowance) => Some(JsonAllowance {
                sockets: allowance.sockets.clone(),
                direction: allowance.direction,
                hugepages: allowance.hugepages,
                max_queues: allowance.max_queues,
                max_ring_entries: allowance.max_ring_entries,
                max_umem_bytes: allowance.max_umem_bytes,
                max_busy_poll_budget: allowance.max_busy_poll_budget,
                activate_within_ms: allowance.activate_within.as_millis(),
                insert: allowance.insert,
                zero_copy: allowance.zero_copy,
                transfer_to: allowance.transfer_to.iter().map(ToString::to_string).collect(),
            }),
        };
        Self {
            rule: rule.name.clone(),
            effect: if gives.is_some() { "allow" } else { "deny" },
            who: rule.who.to_string(),
            interfaces: rule
                .interfaces
                .iter()
                .map(|pattern| pattern.written().to_owned())
                .collect(),
            queues: rule.queues.to_string(),
            at: rule.at.clone(),
            gives,
        }
    }
}
