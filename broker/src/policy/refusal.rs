//! Why a request was refused, in two tellings: the whole truth for the operator, and for the peer what concerns
//! its own rules only.
//!
//! Invariant: to a peer, a device without a section, one that does not exist, a deny rule and the lack of any rule
//! look alike, word for word. It learns neither which devices there are nor what others may have.

use xsk_client::wire::{BrokerError, Direction, ModeWish, QueueSet, SocketKind, Target, ZeroCopy};

use super::queues::QueueRanges;
use super::{Request, advice};

/// A refusal.
#[derive(Debug)]
pub struct Refusal {
    uid: u32,
    caller: String,
    target: Target,
    request: Request,
    why: Why,
    advice: String,
}

/// Why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Why {
    /// No section names the device.
    NotListed,
    /// A deny rule touches it.
    Denied {
        /// The rule; never told to peers.
        rule: String,
        /// Where it stands.
        at: String,
    },
    /// No allow rule of theirs names the device.
    NoRule,
    /// A queue that no rule of theirs has.
    QueuesOutside {
        /// The rule that comes nearest.
        rule: String,
        /// The first queue outside of it.
        queue: u32,
        /// What it has.
        allowed: QueueRanges,
    },
    /// Several rules cover it together, none alone.
    NotAllInOneRule {
        /// Those rules.
        rules: Vec<String>,
    },
    /// Sockets of a kind that the rule does not list.
    KindNotAllowed {
        /// The rule.
        rule: String,
        /// What it lists.
        allowed: Vec<SocketKind>,
    },
    /// A direction that the rule does not give.
    DirectionNotAllowed {
        /// The rule.
        rule: String,
        /// What it gives.
        allowed: Direction,
    },
    /// A mode in which the broker does not bind by this rule.
    ModeNotAllowed {
        /// The rule.
        rule: String,
        /// What it says of zero-copy.
        zero_copy: ZeroCopy,
    },
    /// A umem on huge pages.
    NoHugepages {
        /// The rule.
        rule: String,
    },
    /// A larger umem than the rule gives.
    UmemTooLarge {
        /// The rule.
        rule: String,
        /// Its limit, in bytes.
        limit: u64,
    },
    /// Busy polling, or a larger budget of it than the rule gives.
    BusyPollTooLarge {
        /// The rule.
        rule: String,
        /// Its limit, in packets; 0 for no busy polling.
        limit: u16,
    },
    /// More queues at a time than the rule gives.
    TooManyQueues {
        /// The rule.
        rule: String,
        /// Its limit.
        limit: u32,
    },
    /// Larger rings than the rule gives.
    RingTooLarge {
        /// The rule.
        rule: String,
        /// Its limit, in entries.
        limit: u32,
    },
    /// A queue that is never granted, though a rule covers it.
    Reserved {
        /// The queue.
        queue: u32,
        /// All that are reserved there.
        reserved: QueueRanges,
        /// The rule that covers it.
        rule: String,
        /// Where the section stands that reserves it.
        at: String,
    },
}

impl Refusal {
    pub(super) fn new(uid: u32, caller: String, request: &Request, why: Why, advice: String) -> Self {
        Self {
            uid,
            caller,
            target: Target {
                interface: request.interface.clone(),
                queues: request.queues.clone(),
            },
            request: request.clone(),
            why,
            advice,
        }
    }

    /// Why.
    pub fn why(&self) -> &Why {
        &self.why
    }

    /// The deny rule that decided.
    pub(super) fn deciding_rule(&self) -> Option<&str> {
        match &self.why {
            Why::Denied { rule, .. } => Some(rule),
            _ => None,
        }
    }

    /// What the peer may know.
    pub fn message_for_peer(&self) -> String {
        let target = &self.target;
        match &self.why {
            Why::NotListed | Why::Denied { .. } | Why::NoRule => format!(
                "{target}: the policy does not give this to uid {}. The operator sees why with: \
                 xsk-broker explain --user {} {target}",
                self.uid, self.uid
            ),
            _ => format!("{}: {}", self.target, self.own_affair()),
        }
    }

    /// The whole truth in a sentence, and what to write to allow it.
    pub fn message_for_operator(&self) -> String {
        match self.advice.is_empty() {
            true => self.reason_for_operator(),
            false => format!("{}. {}", self.reason_for_operator(), self.advice),
        }
    }

    /// The whole truth in a sentence.
    pub fn reason_for_operator(&self) -> String {
        let (target, caller) = (&self.target, &self.caller);
        match &self.why {
            Why::NotListed => format!(
                "{target} for {caller}: no section [interface.{}], so that device is never touched",
                target.interface
            ),
            Why::Denied { rule, at } => format!("{target} for {caller}: denied by rule {rule} ({at})"),
            Why::NoRule => format!(
                "{target} for {caller}: no allow rule for them names {}",
                target.interface
            ),
            Why::Reserved { at, .. } => format!("{target} for {caller}: {} ({at})", self.own_affair()),
            _ => format!("{target} for {caller}: {}", self.own_affair()),
        }
    }

    /// What to change to allow it.
    pub(super) fn advice(&self) -> &str {
        &self.advice
    }

    /// What concerns only rules of the peer's own.
    fn own_affair(&self) -> String {
        let queues = &self.target.queues;
        match &self.why {
            Why::QueuesOutside { rule, queue, allowed } => {
                format!("rule {rule} gives queues {allowed} of it, not queue {queue}")
            }
            Why::NotAllInOneRule { rules } => format!(
                "rules {} cover it together, but one rule must cover a whole request: ask for them one by one",
                rules.join(", ")
            ),
            Why::KindNotAllowed { rule, allowed } => format!(
                "rule {rule} gives sockets {}, not {}",
                advice::words(allowed),
                self.request.sockets
            ),
            Why::DirectionNotAllowed { rule, allowed } => {
                format!(
                    "rule {rule} gives direction {allowed}, not {}",
                    self.request.direction
                )
            }
            Why::ModeNotAllowed { rule, zero_copy } => format!(
                "rule {rule} has `zero-copy = \"{zero_copy}\"`, not mode {}{}",
                self.request.mode.unwrap_or(ModeWish::Copy),
                match self.request.direction {
                    Direction::Tx => ", and who only sends is bound in copy mode",
                    Direction::Rx | Direction::RxTx => "",
                }
            ),
            Why::NoHugepages { rule } => format!("rule {rule} gives no umem on huge pages"),
            Why::UmemTooLarge { rule, limit } => format!(
                "rule {rule} gives umems of at most {limit} bytes, not {}",
                self.request.umem.map_or(0, |umem| umem.bytes())
            ),
            Why::BusyPollTooLarge { rule, limit: 0 } => format!("rule {rule} gives no busy polling"),
            Why::BusyPollTooLarge { rule, limit } => format!(
                "rule {rule} gives busy polling with a budget of at most {limit}, not {}",
                self.request.busy_poll.map_or(0, |busy_poll| busy_poll.budget)
            ),
            Why::TooManyQueues { rule, limit } => {
                format!(
                    "rule {rule} gives {} at a time, not {}",
                    advice::count(*limit),
                    queues.len()
                )
            }
            Why::RingTooLarge { rule, limit } => format!(
                "rule {rule} gives rings of at most {limit} entries, not {}",
                self.request.rings.largest()
            ),
            Why::Reserved {
                queue,
                reserved,
                rule,
                ..
            } => {
                format!(
                    "rule {rule} covers it, but queue {queue} is reserved for the host, as are all of {reserved}"
                )
            }
            Why::NotListed | Why::Denied { .. } | Why::NoRule => String::new(),
        }
    }

    /// As the peer gets it. Above a rule's limits is denied too: no waiting helps.
    pub fn to_wire(&self) -> BrokerError {
        BrokerError::Denied {
            interface: self.target.interface.clone(),
            queues: QueueSet::iter(&self.target.queues).collect(),
            message: self.message_for_peer(),
        }
    }
}
