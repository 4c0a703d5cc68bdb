//! The decision. One function weighs a request; `decide` and `explain` both rest on it, so that they cannot
//! disagree.
//!
//! Order: a device without a section, then deny rules, then the first allow rule that covers all, then reserved
//! queues. That a queue is reserved is thus said only to who may otherwise have it.

use std::time::Duration;

use xsk_client::wire::{
    BusyPoll, Direction, InterfaceName, ModeWish, QueueSet, RingSizes, SocketKind, UmemShape, ZeroCopy,
};

use crate::identity::Subject;

use super::interface::{InterfaceSection, InterfaceSettings};
use super::refusal::{Refusal, Why};
use super::rule::{Allowance, Effect, Insert, Rule};
use super::{Policy, Request, advice};

/// What the policy says to a request.
#[derive(Debug)]
#[must_use]
pub enum Verdict {
    /// Granted, on these terms.
    Granted(Terms),
    /// Refused.
    Refused(Refusal),
}

/// What was granted, and under which conditions. Only [`Policy::decide`] makes it, or [`Policy::resume`] of what was
/// granted before, and it cannot be copied: who holds terms was allowed what they say.
#[derive(Debug)]
#[must_use]
pub struct Terms {
    rule: String,
    request: Request,
    settings: InterfaceSettings,
    max_queues: Option<u32>,
    max_umem_bytes: u64,
    activate_within: Duration,
    insert: Insert,
    zero_copy: ZeroCopy,
}

impl Terms {
    /// What was granted before. For [`Policy::resume`] alone.
    pub(super) fn resumed(kept: Resumed) -> Self {
        Self {
            rule: kept.rule,
            request: kept.request,
            settings: kept.settings,
            max_queues: None,
            max_umem_bytes: u64::MAX,
            activate_within: kept.activate_within,
            insert: kept.insert,
            zero_copy: kept.zero_copy,
        }
    }

    /// What was asked for.
    pub(super) fn request(&self) -> &Request {
        &self.request
    }

    /// The rule that gave them.
    pub fn rule(&self) -> &str {
        &self.rule
    }

    /// The device.
    pub fn interface(&self) -> &InterfaceName {
        &self.request.interface
    }

    /// Its queues.
    pub fn queues(&self) -> &QueueSet {
        &self.request.queues
    }

    /// In which state the sockets leave the broker.
    pub fn sockets(&self) -> SocketKind {
        self.request.sockets
    }

    /// Which way frames go.
    pub fn direction(&self) -> Direction {
        self.request.direction
    }

    /// In which mode the broker binds, where it does. Copy for who only sends, since the memory of a zero-copy socket
    /// sees what arrives at its queue even without an RX ring.
    pub fn mode(&self) -> ModeWish {
        match (self.request.direction, self.zero_copy, self.request.mode) {
            (Direction::Tx, ..) | (_, ZeroCopy::Forbidden, _) | (_, ZeroCopy::Allowed, None) => {
                ModeWish::Copy
            }
            (_, ZeroCopy::Required, _) => ModeWish::ZeroCopy,
            (_, ZeroCopy::Allowed, Some(mode)) => mode,
        }
    }

    /// The umem, where the broker registers it.
    pub fn umem(&self) -> Option<UmemShape> {
        self.request.umem
    }

    /// How large the rings are.
    pub fn rings(&self) -> RingSizes {
        self.request.rings.of_direction(self.request.direction)
    }

    /// Busy polling from the start.
    pub fn busy_poll(&self) -> Option<BusyPoll> {
        self.request.busy_poll
    }

    /// What holds for the device.
    pub fn settings(&self) -> &InterfaceSettings {
        &self.settings
    }

    /// How many queues one uid may hold by this rule at a time, these included; `None`: as many as the rule has.
    pub fn max_queues(&self) -> Option<u32> {
        self.max_queues
    }

    /// How much umem the broker registers for one uid by this rule at a time, this one included.
    pub fn max_umem_bytes(&self) -> u64 {
        self.max_umem_bytes
    }

    /// How long the holder has to activate the lease.
    pub fn activate_within(&self) -> Duration {
        self.activate_within
    }

    /// When the socket goes into its slot.
    pub fn insert(&self) -> Insert {
        self.insert
    }

    /// Which modes the sockets may be bound in.
    pub fn zero_copy(&self) -> ZeroCopy {
        self.zero_copy
    }
}

/// What the policy in force says of something that was granted, perhaps by an older one. No terms: nothing is granted by
/// it.
#[derive(Debug)]
pub struct StillGiven {
    /// The rule that would give it now.
    pub rule: String,
    /// What holds for the device now.
    pub settings: InterfaceSettings,
    /// Which modes the sockets may be bound in by that rule.
    pub zero_copy: ZeroCopy,
    /// Whose processes it may be transferred to by that rule.
    pub transfer_to: Vec<u32>,
}

/// What terms are resumed from.
pub(super) struct Resumed {
    pub(super) rule: String,
    pub(super) request: Request,
    pub(super) settings: InterfaceSettings,
    pub(super) activate_within: Duration,
    pub(super) insert: Insert,
    pub(super) zero_copy: ZeroCopy,
}

impl Policy {
    /// Whether what these terms gave would be given now, on the device of that name.
    ///
    /// # Errors
    ///
    /// The refusal that its requester would get.
    pub fn still_gives(
        &self,
        subject: &Subject,
        terms: &Terms,
        interface: &InterfaceName,
    ) -> Result<StillGiven, Box<Refusal>> {
        let request = Request {
            interface: interface.clone(),
            ..terms.request.clone()
        };
        match self.weigh(subject, &request) {
            Ok(granted) => Ok(StillGiven {
                rule: granted.rule.name.clone(),
                settings: granted.section.settings.clone(),
                zero_copy: granted.allowance.zero_copy,
                transfer_to: granted.allowance.transfer_to_uids(),
            }),
            Err(why) => Err(Box::new(self.refuse(subject, &request, why))),
        }
    }

    /// Decides on a request of this subject.
    pub fn decide(&self, subject: &Subject, request: &Request) -> Verdict {
        match self.weigh(subject, request) {
            Ok(granted) => Verdict::Granted(Terms {
                rule: granted.rule.name.clone(),
                request: request.clone(),
                settings: granted.section.settings.clone(),
                max_queues: granted.allowance.max_queues,
                max_umem_bytes: granted.allowance.max_umem_bytes,
                activate_within: granted.allowance.activate_within,
                insert: granted.allowance.insert,
                zero_copy: granted.allowance.zero_copy,
            }),
            Err(why) => Verdict::Refused(self.refuse(subject, request, why)),
        }
    }

    pub(super) fn refuse(&self, subject: &Subject, request: &Request, why: Why) -> Refusal {
        let caller = self.call(subject.uid);
        let advice = advice::advice(self, subject, request, &why);
        Refusal::new(subject.uid, caller, request, why, advice)
    }

    pub(super) fn weigh(&self, subject: &Subject, request: &Request) -> Result<Granted<'_>, Why> {
        let section = self.section(&request.interface).ok_or(Why::NotListed)?;
        let granted = self.weigh_rules(subject, request, section)?;
        let reserved = &section.settings.reserved;
        match request.queues.iter().find(|queue| reserved.contains(*queue)) {
            Some(queue) => Err(Why::Reserved {
                queue,
                reserved: reserved.clone(),
                rule: granted.rule.name.clone(),
                at: section.at.clone(),
            }),
            None => Ok(granted),
        }
    }

    fn weigh_rules<'p>(
        &'p self,
        subject: &Subject,
        request: &Request,
        section: &'p InterfaceSection,
    ) -> Result<Granted<'p>, Why> {
        let touches = |rule: &&Rule| rule.fit(subject, request) == Fit::Touches;
        if let Some(deny) = self.rules.iter().find(touches) {
            let (rule, at) = (deny.name.clone(), deny.at.clone());
            return Err(Why::Denied { rule, at });
        }
        let mut allowing = self.rules.iter().filter_map(|rule| match &rule.effect {
            Effect::Allow(allowance) => Some((rule, allowance)),
            Effect::Deny => None,
        });
        match allowing.find(|(rule, _)| rule.fit(subject, request) == Fit::Covers) {
            Some((rule, allowance)) => Ok(Granted {
                rule,
                allowance,
                section,
            }),
            None => Err(self.nearest_miss(subject, request)),
        }
    }

    /// Why no allow rule covers the request: what the one says that comes nearest.
    pub(super) fn nearest_miss(&self, subject: &Subject, request: &Request) -> Why {
        let allowing = |rule: &&Rule| matches!(rule.effect, Effect::Allow(_));
        let theirs = |rule: &&Rule| rule.who.matches(subject) && rule.names(&request.interface);
        let theirs: Vec<&Rule> = self.rules.iter().filter(allowing).filter(theirs).collect();
        let has_all = |rule: &&&Rule| request.queues.iter().all(|queue| rule.queues.contains(queue));
        let has_any = |rule: &&&Rule| request.queues.iter().any(|queue| rule.queues.contains(queue));
        let Some(near) = theirs
            .iter()
            .find(has_all)
            .or(theirs.iter().find(has_any))
            .or(theirs.first())
        else {
            return Why::NoRule;
        };
        let rule = near.name.clone();
        let allowed = near.queues.clone();
        let Fit::Differs(difference) = near.fit(subject, request) else {
            return Why::NoRule;
        };
        match difference {
            Difference::Subject | Difference::Interface | Difference::NoQueue => Why::NoRule,
            Difference::Queue(queue) => {
                let in_none = |queue: &u32| !theirs.iter().any(|rule| rule.queues.contains(*queue));
                match request.queues.iter().find(in_none) {
                    Some(_) => Why::QueuesOutside { rule, queue, allowed },
                    None => Why::NotAllInOneRule {
                        rules: theirs
                            .iter()
                            .filter(has_any)
                            .map(|rule| rule.name.clone())
                            .collect(),
                    },
                }
            }
            Difference::Kind { allowed } => Why::KindNotAllowed { rule, allowed },
            Difference::Direction { allowed } => Why::DirectionNotAllowed { rule, allowed },
            Difference::Mode { zero_copy } => Why::ModeNotAllowed { rule, zero_copy },
            Difference::Hugepages => Why::NoHugepages { rule },
            Difference::UmemLimit { limit } => Why::UmemTooLarge { rule, limit },
            Difference::BusyPollLimit { limit } => Why::BusyPollTooLarge { rule, limit },
            Difference::QueueLimit { limit } => Why::TooManyQueues { rule, limit },
            Difference::RingLimit { limit } => Why::RingTooLarge { rule, limit },
        }
    }
}

/// What decided, when something is granted.
#[derive(Debug)]
pub(super) struct Granted<'p> {
    pub(super) rule: &'p Rule,
    pub(super) allowance: &'p Allowance,
    section: &'p InterfaceSection,
}

/// How a rule fits a request.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Fit {
    /// An allow rule that covers all of it.
    Covers,
    /// A deny rule that touches a part of it.
    Touches,
    /// A rule that does not.
    Differs(Difference),
}

/// The first thing in which a rule differs from a request.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Difference {
    Subject,
    Interface,
    /// This queue is not in an allow rule.
    Queue(u32),
    /// No queue is in a deny rule.
    NoQueue,
    Kind {
        allowed: Vec<SocketKind>,
    },
    Direction {
        allowed: Direction,
    },
    Mode {
        zero_copy: ZeroCopy,
    },
    Hugepages,
    UmemLimit {
        limit: u64,
    },
    BusyPollLimit {
        limit: u16,
    },
    QueueLimit {
        limit: u32,
    },
    RingLimit {
        limit: u32,
    },
}

impl Rule {
    pub(super) fn fit(&self, subject: &Subject, request: &Request) -> Fit {
        if !self.who.matches(subject) {
            return Fit::Differs(Difference::Subject);
        }
        if !self.names(&request.interface) {
            return Fit::Differs(Difference::Interface);
        }
        let Effect::Allow(allowance) = &self.effect else {
            return match request.queues.iter().any(|queue| self.queues.contains(queue)) {
                true => Fit::Touches,
                false => Fit::Differs(Difference::NoQueue),
            };
        };
        match self.outside(allowance, request) {
            Some(difference) => Fit::Differs(difference),
            None => Fit::Covers,
        }
    }

    fn outside(&self, allowance: &Allowance, request: &Request) -> Option<Difference> {
        if let Some(queue) = request.queues.iter().find(|queue| !self.queues.contains(*queue)) {
            return Some(Difference::Queue(queue));
        }
        if !allowance.sockets.contains(&request.sockets) {
            let allowed = allowance.sockets.clone();
            return Some(Difference::Kind { allowed });
        }
        if !allowance.direction.covers(request.direction) {
            let allowed = allowance.direction;
            return Some(Difference::Direction { allowed });
        }
        if !admits(allowance.zero_copy, request) {
            let zero_copy = allowance.zero_copy;
            return Some(Difference::Mode { zero_copy });
        }
        if request.umem.is_some_and(|umem| umem.hugepages) && !allowance.hugepages {
            return Some(Difference::Hugepages);
        }
        let budget = request.busy_poll.map_or(0, |busy_poll| busy_poll.budget.max(1));
        let limit = allowance.max_busy_poll_budget;
        if budget > limit {
            return Some(Difference::BusyPollLimit { limit });
        }
        // A request that alone is above the limit can never be granted; what others hold is charged later.
        let asked = u32::try_from(request.queues.len()).unwrap_or(u32::MAX);
        if let Some(limit) = allowance.max_queues.filter(|limit| asked > *limit) {
            return Some(Difference::QueueLimit { limit });
        }
        let limit = allowance.max_umem_bytes;
        if request.umem.is_some_and(|umem| umem.bytes() > limit) {
            return Some(Difference::UmemLimit { limit });
        }
        let limit = allowance.max_ring_entries;
        (request.rings.largest() > limit).then_some(Difference::RingLimit { limit })
    }
}

/// Whether the broker could bind as it is asked to. Of sockets that others bind, the device and the bind decide.
fn admits(zero_copy: ZeroCopy, request: &Request) -> bool {
    match (request.sockets, zero_copy, request.mode) {
        (SocketKind::Bound, ZeroCopy::Required, mode) => {
            mode != Some(ModeWish::Copy) && request.direction != Direction::Tx
        }
        (SocketKind::Bound, ZeroCopy::Forbidden, mode) => mode != Some(ModeWish::ZeroCopy),
        _ => true,
    }
}
