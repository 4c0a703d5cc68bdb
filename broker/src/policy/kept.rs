//! Terms as they are written down with a lease, so that it goes on as it was granted when another broker takes it over.
//!
//! What was granted stays granted: a policy that has changed meanwhile decides on what is asked for later, and is heard of
//! what it would not give any more.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use xsk_client::wire::{
    BusyPoll, Direction, InterfaceName, ModeWish, QueueSet, RingSizes, SocketKind, UmemShape, ZeroCopy,
};

use super::decide::{Resumed, Terms};
use super::interface::InterfaceSettings;
use super::{Insert, Policy, Request};

/// The terms of a lease, as a file.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct KeptTerms {
    rule: String,
    queues: QueueSet,
    sockets: SocketKind,
    direction: Direction,
    mode: Option<ModeWish>,
    umem: Option<UmemShape>,
    rings: RingSizes,
    busy_poll: Option<BusyPoll>,
    insert: Insert,
    zero_copy: ZeroCopy,
    activate_within_ms: u64,
}

impl KeptTerms {
    /// The rule that gave them.
    pub fn rule(&self) -> &str {
        &self.rule
    }

    /// The state in which the sockets left the broker.
    pub fn sockets(&self) -> SocketKind {
        self.sockets
    }

    /// The queues.
    pub fn queues(&self) -> &QueueSet {
        &self.queues
    }

    /// Whether packets are redirected to its sockets at all.
    pub fn receives(&self) -> bool {
        self.direction.receives()
    }

    /// Whether packets were redirected before the sockets were seen bound.
    pub fn inserted_at_grant(&self) -> bool {
        self.insert == Insert::AtGrant && self.receives()
    }

    /// What was asked for, to ask a policy again.
    pub fn request(&self, interface: &InterfaceName) -> Request {
        Request {
            interface: interface.clone(),
            queues: self.queues.clone(),
            sockets: self.sockets,
            direction: self.direction,
            mode: self.mode,
            umem: self.umem,
            rings: self.rings,
            busy_poll: self.busy_poll,
        }
    }
}

impl Terms {
    /// To be written down.
    pub fn kept(&self) -> KeptTerms {
        let request = self.request();
        KeptTerms {
            rule: self.rule().to_owned(),
            queues: request.queues.clone(),
            sockets: request.sockets,
            direction: request.direction,
            mode: request.mode,
            umem: request.umem,
            rings: request.rings,
            busy_poll: request.busy_poll,
            insert: self.insert(),
            zero_copy: self.zero_copy(),
            activate_within_ms: u64::try_from(self.activate_within().as_millis()).unwrap_or(u64::MAX),
        }
    }
}

impl Policy {
    /// The terms of a lease that another broker has granted, as it wrote them down: the one other way to terms than a
    /// decision. What they charge is charged whatever today's limits are.
    pub fn resume(&self, interface: &InterfaceName, kept: &KeptTerms) -> Terms {
        let settings = self.interface(interface).cloned();
        Terms::resumed(Resumed {
            rule: kept.rule.clone(),
            request: kept.request(interface),
            settings: settings.unwrap_or_else(InterfaceSettings::of_no_section),
            activate_within: Duration::from_millis(kept.activate_within_ms),
            insert: kept.insert,
            zero_copy: kept.zero_copy,
        })
    }
}
