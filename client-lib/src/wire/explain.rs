//! `Explain`: what would be decided about a request, and why.

use serde::{Deserialize, Serialize};

use super::acquire::Acquire;
use super::message::optional_object;
use super::names::{InterfaceName, QueueSet, SocketKind, words};
use super::rings::RingSizes;
use super::socket::{BusyPoll, Direction, ModeWish, UmemShape};

/// `Explain`: what would be decided, without doing it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Explain {
    /// As in [`Acquire`].
    pub interface: InterfaceName,
    /// As in [`Acquire`].
    pub queues: QueueSet,
    /// As in [`Acquire`]; `prepared` if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sockets: Option<SocketKind>,
    /// As in [`Acquire`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub direction: Option<Direction>,
    /// As in [`Acquire`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mode: Option<ModeWish>,
    /// As in [`Acquire`].
    #[serde(
        default,
        deserialize_with = "optional_object",
        skip_serializing_if = "Option::is_none"
    )]
    pub umem: Option<UmemShape>,
    /// As in [`Acquire`].
    #[serde(
        default,
        deserialize_with = "optional_object",
        skip_serializing_if = "Option::is_none"
    )]
    pub rings: Option<RingSizes>,
    /// As in [`Acquire`].
    #[serde(
        default,
        deserialize_with = "optional_object",
        skip_serializing_if = "Option::is_none"
    )]
    pub busy_poll: Option<BusyPoll>,
    /// For whom, on the control socket only; oneself if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uid: Option<u32>,
    /// That user's groups, the primary one first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gids: Option<Vec<u32>>,
}

impl Explain {
    /// The request that it asks about.
    pub fn acquire(&self) -> Acquire {
        Acquire {
            interface: self.interface.clone(),
            queues: self.queues.clone(),
            sockets: self.sockets.unwrap_or(SocketKind::Prepared),
            direction: self.direction,
            mode: self.mode,
            umem: self.umem,
            rings: self.rings,
            busy_poll: self.busy_poll,
            label: None,
        }
    }
}

/// Reply to `Explain`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Explained {
    /// Whether an `Acquire` would be granted now, as far as was looked.
    pub granted: bool,
    /// The rule that decides; absent where none matches.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rule: Option<String>,
    /// Why, in a sentence.
    pub reason: String,
    /// What to write into the policy to allow it; on the control socket only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub suggestion: Option<String>,
    /// What each rule said, in file order; on the broker socket only one's own allow rules.
    pub rules: Vec<RuleVerdict>,
    /// What was found on the machine, where the policy would grant it; and what was not looked at.
    #[serde(default)]
    pub checks: Vec<Check>,
}

impl Explained {
    /// What stands in the way of a request that the policy would grant.
    pub fn obstacle(&self) -> Option<&Check> {
        self.checks
            .iter()
            .find(|check| check.outcome == CheckOutcome::Refused)
    }
}

/// A look at the machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Check {
    /// At what, in a word or two.
    pub what: String,
    /// How it is.
    pub outcome: CheckOutcome,
    /// What was found, or why it was not looked at.
    pub why: String,
}

words! {
    /// What a look at the machine says to a request.
    CheckOutcome {
        /// Nothing stands in its way there.
        Fine = "fine",
        /// It would be refused.
        Refused = "refused",
        /// Nobody knows before it is tried.
        NotLooked = "not_looked",
    }
}

/// What one rule said to a request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RuleVerdict {
    /// The rule's name.
    pub rule: String,
    /// What became of it.
    pub outcome: RuleOutcome,
    /// Why, in a few words.
    pub why: String,
}

words! {
    /// What a rule had to do with a verdict.
    RuleOutcome {
        /// This one decided.
        Decides = "decides",
        /// It covers the request too, another came first.
        Matches = "matches",
        /// It does not cover the request.
        Differs = "differs",
    }
}
