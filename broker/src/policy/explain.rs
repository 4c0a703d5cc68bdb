//! Why a request would be decided as it would be: what each rule says to it. Holds no terms, so nothing can be
//! granted by explaining.

use xsk_client::wire::{Check, CheckOutcome, Explained, RuleOutcome, RuleVerdict, ZeroCopy};

use crate::identity::Subject;

use super::decide::{Difference, Fit};
use super::names::Who;
use super::rule::{Effect, Rule};
use super::{Policy, Request, advice};

/// A decision and its reasons.
#[derive(Debug)]
pub struct Explanation {
    granted: bool,
    rule: Option<String>,
    reason: String,
    reason_for_peer: String,
    suggestion: Option<String>,
    rules: Vec<Said>,
    checks: Vec<Check>,
}

/// Who is to read an explanation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum View {
    /// The peer that it is about: only allow rules for itself, no suggestion, no names of deny rules.
    Peer,
    /// The operator: everything.
    Operator,
}

/// What a rule says.
#[derive(Debug)]
struct Said {
    verdict: RuleVerdict,
    /// Whether it is an allow rule for the subject, so that they may know of it.
    own: bool,
}

impl Explanation {
    /// Whether it would be granted.
    pub fn granted(&self) -> bool {
        self.granted
    }

    /// Adds what the machine says to what the policy would grant: one obstacle there, and it is not granted.
    #[must_use]
    pub fn with_checks(mut self, checks: Vec<Check>) -> Self {
        let refused = |check: &&Check| check.outcome == CheckOutcome::Refused;
        if let Some(obstacle) = checks.iter().find(refused) {
            self.granted = false;
            let rule = self.rule.as_deref().unwrap_or_default();
            self.reason = format!("rule {rule} would grant it, but {}", obstacle.why);
            self.reason_for_peer.clone_from(&self.reason);
        }
        self.checks = checks;
        self
    }

    /// As a reply to `Explain`.
    pub fn into_wire(self, view: View) -> Explained {
        match view {
            View::Operator => Explained {
                granted: self.granted,
                rule: self.rule,
                reason: self.reason,
                suggestion: self.suggestion,
                rules: self.rules.into_iter().map(|said| said.verdict).collect(),
                checks: self.checks,
            },
            View::Peer => {
                let own = self.rules.into_iter().filter(|said| said.own);
                Explained {
                    granted: self.granted,
                    // Checks are there only where one of their own rules covers it.
                    rule: self.rule.filter(|_| self.granted || !self.checks.is_empty()),
                    reason: self.reason_for_peer,
                    suggestion: None,
                    rules: own.map(|said| said.verdict).collect(),
                    checks: self.checks,
                }
            }
        }
    }
}

impl Policy {
    /// Says what [`Policy::decide`] would, and why, without deciding.
    pub fn explain(&self, subject: &Subject, request: &Request) -> Explanation {
        let (granted, rule, reason, reason_for_peer, suggestion) = match self.weigh(subject, request) {
            Ok(granted) => {
                let rule = granted.rule.name.clone();
                let reason = format!(
                    "rule {rule} is the first that covers all of it{}",
                    mode_condition(granted.allowance.zero_copy)
                );
                (true, Some(rule), reason.clone(), reason, None)
            }
            Err(why) => {
                let refusal = self.refuse(subject, request, why);
                let suggestion = Some(refusal.advice().to_owned()).filter(|advice| !advice.is_empty());
                (
                    false,
                    refusal.deciding_rule().map(str::to_owned),
                    refusal.reason_for_operator(),
                    refusal.message_for_peer(),
                    suggestion,
                )
            }
        };
        let said = |it: &Rule| self.said(it, rule.as_deref(), subject, request);
        Explanation {
            granted,
            rules: self.rules.iter().map(said).collect(),
            rule,
            reason,
            reason_for_peer,
            suggestion,
            checks: Vec::new(),
        }
    }

    fn said(&self, rule: &Rule, deciding: Option<&str>, subject: &Subject, request: &Request) -> Said {
        let fit = rule.fit(subject, request);
        let outcome = match &fit {
            Fit::Differs(_) => RuleOutcome::Differs,
            _ if deciding == Some(rule.name.as_str()) => RuleOutcome::Decides,
            _ => RuleOutcome::Matches,
        };
        let why = match fit {
            Fit::Covers => "covers all of it".to_owned(),
            Fit::Touches => {
                let touched = request.queues.iter().find(|queue| rule.queues.contains(*queue));
                format!("denies queue {}", touched.unwrap_or_default())
            }
            Fit::Differs(difference) => self.difference(&difference, rule, subject, request),
        };
        Said {
            verdict: RuleVerdict {
                rule: rule.name.clone(),
                outcome,
                why,
            },
            own: matches!(rule.effect, Effect::Allow(_)) && rule.who.matches(subject),
        }
    }

    fn difference(
        &self,
        difference: &Difference,
        rule: &Rule,
        subject: &Subject,
        request: &Request,
    ) -> String {
        match difference {
            Difference::Subject => format!("{} is not {}", self.call(subject.uid), alternatives(&rule.who)),
            Difference::Interface => {
                format!("{} is not {}", request.interface, rule.interfaces_written())
            }
            Difference::Queue(queue) => format!("queue {queue} is outside {}", rule.queues),
            Difference::NoQueue => format!("denies queues {} only", rule.queues),
            Difference::Kind { allowed } => {
                format!(
                    "gives sockets {}, not {}",
                    advice::words(allowed),
                    request.sockets
                )
            }
            Difference::Direction { allowed } => {
                format!("gives direction {allowed}, not {}", request.direction)
            }
            Difference::Mode { zero_copy } => format!("has zero-copy {zero_copy}"),
            Difference::Hugepages => "gives no umem on huge pages".to_owned(),
            Difference::UmemLimit { limit } => format!("gives umems of at most {limit} bytes"),
            Difference::BusyPollLimit { limit: 0 } => "gives no busy polling".to_owned(),
            Difference::BusyPollLimit { limit } => format!("gives a busy-poll budget of at most {limit}"),
            Difference::QueueLimit { limit } => {
                format!(
                    "gives {} at a time, not {}",
                    advice::count(*limit),
                    request.queues.len()
                )
            }
            Difference::RingLimit { limit } => {
                format!("gives rings of {limit} entries, not {}", request.rings.largest())
            }
        }
    }
}

/// The condition on the bind that a granted request still has.
fn mode_condition(zero_copy: ZeroCopy) -> &'static str {
    match zero_copy {
        ZeroCopy::Required => ", for sockets bound in zero-copy mode",
        ZeroCopy::Allowed => "",
        ZeroCopy::Forbidden => ", for sockets bound in copy mode",
    }
}

/// "alice (1001)", "alice (1001) or bob (1002)", "bob (1002) or in group kvm (109)".
fn alternatives(who: &Who) -> String {
    let Who::Listed { users, groups } = who else {
        return "anybody".to_owned();
    };
    let users = users.iter().map(ToString::to_string);
    let groups = groups.iter().map(|group| format!("in group {group}"));
    users.chain(groups).collect::<Vec<_>>().join(" or ")
}
