//! What to write into the policy so that a refused request is allowed: exact TOML, and where it goes.

use xsk_client::wire::SocketKind;

use crate::identity::Subject;

use super::mistake::{section_header, toml_text};
use super::refusal::Why;
use super::rule::{Allowance, Effect, Rule};
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
            let section = format!(
                "{}\nqueue-lock = \"none\"",
                section_header(request.interface.as_str())
            );
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
        Why::TooManyQueues { rule, .. } => in_rule(policy, rule, |_, allowance| {
            let ring_entries = allowance.max_ring_entries;
            format!(
                "limits = {{ queues = {}, ring-entries = {ring_entries} }}",
                request.queues.len()
            )
        }),
        Why::RingTooLarge { rule, .. } => in_rule(policy, rule, |_, allowance| {
            let ring_entries = request.rings.largest();
            match allowance.max_queues {
                Some(queues) => format!("limits = {{ queues = {queues}, ring-entries = {ring_entries} }}"),
                None => format!("limits = {{ ring-entries = {ring_entries} }}"),
            }
        }),
    }
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
    if request.rings.largest() > super::rule::DEFAULT_RING_ENTRIES {
        let ring_entries = request.rings.largest();
        rule.push_str(&format!("\nlimits = {{ ring-entries = {ring_entries} }}"));
    }
    rule
}
