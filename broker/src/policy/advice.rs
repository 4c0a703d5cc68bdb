//! What to write into the policy so that a refused request is allowed: exact TOML, and where it goes.

use xsk_client::wire::{Direction, SocketKind};

use crate::identity::Subject;

use super::mistake::{section_header, toml_text};
use super::refusal::Why;
use super::rule::{Allowance, DEFAULT_RING_ENTRIES, DEFAULT_UMEM_BYTES, Effect, Rule};
use super::{Policy, QueueRanges, Request};

/// Text for the operator.
pub(super) fn advice(policy: &Policy, subject: &Subject, request: &Request, why: &Why) -> String {
    let advice = first_change(policy, subject, request, why);
    match (why, policy.section(&request.interface)) {
        // It would be refused again, by the next thing that is looked at.
        (Why::Reserved { .. } | Why::NotListed, _) | (_, None) => advice,
        (_, Some(section))
            if advice.is_empty()
                || !request
                    .queues
                    .iter()
                    .any(|queue| section.settings.reserved.contains(queue)) =>
        {
            advice
        }
        (_, Some(section)) => {
            let change = unreserved(&section.settings.reserved, request, &section.at);
            format!("{advice}\n\nAnd, since the host keeps some of these queues for itself, {change}")
        }
    }
}

fn unreserved(reserved: &QueueRanges, request: &Request, at: &str) -> String {
    let rest = reserved.without(&request.queues);
    match rest.is_empty() {
        true => format!("remove `reserved = \"{reserved}\"` from the section at {at}"),
        false => format!("change the section at {at} to:\nreserved = \"{rest}\""),
    }
}

fn first_change(policy: &Policy, subject: &Subject, request: &Request, why: &Why) -> String {
    match why {
        Why::NotListed => {
            let section = section_header(request.interface.as_str());
            match policy.nearest_miss(subject, request) {
                Why::NoRule if !covered(policy, subject, request) => {
                    format!(
                        "To allow it, add:\n{section}\n\n{}",
                        allow_rule(policy, subject, request)
                    )
                }
                _ => format!("To have the device served, add:\n{section}"),
            }
        }
        Why::NoRule => format!("To allow it, add:\n{}", allow_rule(policy, subject, request)),
        Why::Denied { rule, at } => {
            format!(
                "To allow it, remove deny rule {rule} at {at}, or take this user, device or queue out of it"
            )
        }
        Why::Reserved { at, reserved, .. } => {
            format!("To allow it, {}", unreserved(reserved, request, at))
        }
        Why::QueuesOutside { rule, .. } => in_rule(policy, rule, |rule, _| widened(rule, request)),
        Why::NotAllInOneRule { rules } => match rules.first() {
            Some(first) => in_rule(policy, first, |rule, _| widened(rule, request)),
            None => String::new(),
        },
        Why::KindNotAllowed { rule, .. } => in_rule(policy, rule, |_, allowance| {
            let mut kinds = allowance.sockets.clone();
            kinds.push(request.sockets);
            let kinds: Vec<String> = kinds.iter().map(|kind| toml_text(kind.as_str())).collect();
            format!("sockets = [{}]", kinds.join(", "))
        }),
        Why::DirectionNotAllowed { rule, allowed } => in_rule(policy, rule, |_, _| {
            let both = match request.direction {
                direction if direction.covers(*allowed) => direction,
                _ => Direction::RxTx,
            };
            format!("direction = \"{both}\"")
        }),
        Why::ModeNotAllowed { rule, .. } => {
            in_rule(policy, rule, |_, _| "zero-copy = \"allowed\"".to_owned())
        }
        Why::NoHugepages { rule } => in_rule(policy, rule, |_, _| "hugepages = true".to_owned()),
        Why::UmemTooLarge { rule, .. } => in_rule(policy, rule, |_, allowance| {
            let umem_bytes = request.umem.map(|umem| umem.bytes());
            limits(allowance, |limit| match limit {
                "umem-bytes" => umem_bytes,
                _ => None,
            })
        }),
        Why::BusyPollTooLarge { rule, .. } => in_rule(policy, rule, |_, allowance| {
            let budget = request.busy_poll.map(|busy_poll| busy_poll.budget.into());
            limits(allowance, |limit| match limit {
                "busy-poll-budget" => budget,
                _ => None,
            })
        }),
        Why::TooManyQueues { rule, .. } => in_rule(policy, rule, |_, allowance| {
            let queues = u64::try_from(request.queues.len()).ok();
            limits(allowance, |limit| match limit {
                "queues" => queues,
                _ => None,
            })
        }),
        Why::RingTooLarge { rule, .. } => in_rule(policy, rule, |_, allowance| {
            limits(allowance, |limit| match limit {
                "ring-entries" => Some(request.rings.largest().into()),
                _ => None,
            })
        }),
    }
}

/// The limits of a rule with another value for one of them. What is left out of the policy is left out here, too.
fn limits(allowance: &Allowance, changed: impl Fn(&str) -> Option<u64>) -> String {
    let has = [
        ("queues", allowance.max_queues.map(u64::from)),
        ("ring-entries", Some(allowance.max_ring_entries.into())),
        (
            "umem-bytes",
            Some(allowance.max_umem_bytes).filter(|bytes| *bytes != DEFAULT_UMEM_BYTES),
        ),
        (
            "busy-poll-budget",
            Some(allowance.max_busy_poll_budget.into()).filter(|budget| *budget != 0),
        ),
    ];
    let lines = has.into_iter().filter_map(|(limit, value)| {
        let value = changed(limit).or(value)?;
        Some(format!("{limit} = {value}"))
    });
    format!("limits = {{ {} }}", lines.collect::<Vec<_>>().join(", "))
}

/// Several kinds of sockets in a sentence.
pub(super) fn words(kinds: &[SocketKind]) -> String {
    let words: Vec<&str> = kinds.iter().map(|kind| kind.as_str()).collect();
    words.join(", ")
}

/// So many queues in a sentence.
pub(super) fn count(queues: u32) -> String {
    match queues {
        1 => "1 queue".to_owned(),
        queues => format!("{queues} queues"),
    }
}

fn covered(policy: &Policy, subject: &Subject, request: &Request) -> bool {
    let covers = |rule: &Rule| rule.fit(subject, request) == super::decide::Fit::Covers;
    policy.rules.iter().any(covers)
}

fn in_rule(policy: &Policy, name: &str, change: impl Fn(&Rule, &Allowance) -> String) -> String {
    let Some(rule) = policy.rules.iter().find(|rule| rule.name == name) else {
        return String::new();
    };
    match &rule.effect {
        Effect::Allow(allowance) => {
            let change = change(rule, allowance);
            format!("To allow it, change rule {name} at {} to:\n{change}", rule.at)
        }
        Effect::Deny => String::new(),
    }
}

fn widened(rule: &Rule, request: &Request) -> String {
    format!("queues = \"{}\"", rule.queues.with(&request.queues))
}

/// A new rule for exactly this request.
fn allow_rule(policy: &Policy, subject: &Subject, request: &Request) -> String {
    let named = policy.rules.iter().find_map(|rule| rule.who.name_of(subject.uid));
    let (user, who) = match named {
        Some(name) => (toml_text(name), name.to_owned()),
        None => (subject.uid.to_string(), format!("uid-{}", subject.uid)),
    };
    let plain = |c: char| match c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.') {
        true => c,
        false => '-',
    };
    let base: String = format!("{who}-{}", request.interface)
        .chars()
        .map(plain)
        .take(50)
        .collect();
    let taken = |name: &String| policy.rules.iter().any(|rule| rule.name == *name);
    let numbered = (2..).map(|number: u32| format!("{base}-{number}"));
    let name = std::iter::once(base.clone())
        .chain(numbered)
        .find(|name| !taken(name));
    let mut rule = format!(
        "[[allow]]\nname = \"{}\"\nuser = {user}\ninterface = {}\nqueues = \"{}\"\nsockets = [\"{}\"]",
        name.unwrap_or(base),
        toml_text(&globset::escape(request.interface.as_str())),
        request.queues,
        request.sockets,
    );
    if request.direction != Direction::RxTx {
        rule.push_str(&format!("\ndirection = \"{}\"", request.direction));
    }
    if request.umem.is_some_and(|umem| umem.hugepages) {
        rule.push_str("\nhugepages = true");
    }
    let (ring_entries, umem_bytes) = (
        request.rings.largest(),
        request.umem.map_or(0, |umem| umem.bytes()),
    );
    let above = [
        (ring_entries > DEFAULT_RING_ENTRIES).then(|| format!("ring-entries = {ring_entries}")),
        (umem_bytes > DEFAULT_UMEM_BYTES).then(|| format!("umem-bytes = {umem_bytes}")),
        request
            .busy_poll
            .map(|busy_poll| format!("busy-poll-budget = {}", busy_poll.budget)),
    ];
    let limits: Vec<String> = above.into_iter().flatten().collect();
    if !limits.is_empty() {
        rule.push_str(&format!("\nlimits = {{ {} }}", limits.join(", ")));
    }
    rule
}
