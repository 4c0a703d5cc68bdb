//! Who gets what: tables of requests and verdicts.

use std::time::Duration;

use xsk_client::wire::{RuleOutcome, ZeroCopy};

use super::*;
use crate::policy::{Insert, QueueLockSetting, Verdict, View, Why, XdpSetting};
use crate::quota::{Limits, Resource};

const BASE: &str = r#"
[interface.eth0]
queue-lock = "none"
reserved = "0-1"

[interface."eth*"]
queue-lock = "none"

[[allow]]
name = "low"
user = "alice"
interface = "eth0"
queues = "0-4"
sockets = ["prepared"]
limits = { queues = 2, ring-entries = 2048 }

[[allow]]
name = "wide"
user = ["alice", 7]
group = "kvm"
interface = ["eth0", "eth1"]
queues = "2-9"
sockets = ["prepared"]
activate-within-ms = 250
insert = "at-grant"
zero-copy = "required"

[[deny]]
name = "not-nine"
user = "*"
interface = "eth?"
queues = "9"

[[deny]]
name = "no-guests"
group = "guests"
interface = "*"

[[allow]]
name = "all"
user = "carol"
interface = "*"
queues = "*"
sockets = ["prepared"]
"#;

/// The rule that gives it, or a word for the refusal.
fn verdict(policy: &Policy, who: &str, what: &str) -> String {
    let (subject, request) = (subject(who), request(what));
    let explained = policy.explain(&subject, &request).into_wire(View::Operator);
    match policy.decide(&subject, &request) {
        Verdict::Granted(terms) => {
            assert!(explained.granted);
            assert_eq!(explained.rule.as_deref(), Some(terms.rule()));
            assert_eq!(
                (terms.interface(), terms.queues()),
                (&request.interface, &request.queues)
            );
            terms.rule().to_owned()
        }
        Verdict::Refused(refusal) => {
            assert!(!explained.granted);
            match refusal.why() {
                Why::NotListed => "not listed".to_owned(),
                Why::NoRule => "no rule".to_owned(),
                Why::Denied { rule, .. } => format!("denied by {rule}"),
                Why::Reserved { queue, .. } => format!("{queue} reserved"),
                Why::QueuesOutside { rule, queue, .. } => format!("{queue} outside {rule}"),
                Why::NotAllInOneRule { rules } => format!("split over {}", rules.join(" ")),
                Why::TooManyQueues { rule, limit } => format!("{rule} gives {limit}"),
                Why::RingTooLarge { rule, limit } => format!("{rule} gives rings of {limit}"),
                Why::KindNotAllowed { rule, .. } => format!("kind not in {rule}"),
                // See `sockets.rs`.
                other => panic!("{other:?}"),
            }
        }
    }
}

#[test]
fn verdicts() {
    let policy = policy(BASE);
    for (who, what, expected) in [
        // The first rule that covers all decides, and gives its own limits.
        ("alice", "eth0:2-3", "low"),
        ("alice", "eth0:2-4", "wide"),
        ("alice", "eth0:2/4096", "wide"),
        ("alice", "eth0:8", "wide"),
        ("alice", "eth1:2", "wide"),
        ("7", "eth0:2", "wide"),
        ("bob", "eth0:5", "wide"),
        // Nobody else.
        ("8", "eth0:2", "no rule"),
        ("root", "eth0:2", "no rule"),
        ("alice", "eth2:2", "no rule"),
        // Reserved, though a rule covers it; and not told to who has no such rule.
        ("alice", "eth0:1-2", "1 reserved"),
        ("8", "eth0:1", "no rule"),
        ("bob", "eth1:0", "0 outside wide"),
        // A deny rule touches one queue of several.
        ("alice", "eth0:8-9", "denied by not-nine"),
        ("8", "eth0:9", "denied by not-nine"),
        // By primary group; wherever the rules stand.
        ("carol", "eth0:5", "denied by no-guests"),
        // Not touched at all, whatever a rule says.
        ("carol", "wlan0:5", "not listed"),
        ("8", "wlan0:5", "not listed"),
        // Near misses.
        ("alice", "eth0:10", "10 outside low"),
        ("alice", "eth0:2,10", "10 outside low"),
        ("alice", "eth0:1,5", "split over low wide"),
        ("alice", "eth0:2/8192", "low gives rings of 2048"),
        ("bob", "eth0:2/8192", "wide gives rings of 4096"),
    ] {
        assert_eq!(verdict(&policy, who, what), expected, "{who} {what}");
    }
}

#[test]
fn limit_of_queues_in_one_request() {
    let narrow = BASE.replace("queues = \"2-9\"", "queues = \"7-9\"");
    assert_eq!(verdict(&policy(&narrow), "alice", "eth0:2-4"), "low gives 2");
}

#[test]
fn terms_carry_what_the_rule_says() {
    let policy = policy(BASE);
    let terms = |who, what| match policy.decide(&subject(who), &request(what)) {
        Verdict::Granted(terms) => terms,
        Verdict::Refused(refusal) => panic!("{}", refusal.message_for_operator()),
    };
    let low = terms("alice", "eth0:2/512");
    assert_eq!(
        (low.rule(), low.max_queues(), low.insert()),
        ("low", Some(2), Insert::WhenBound)
    );
    assert_eq!(low.zero_copy(), ZeroCopy::Allowed);
    assert_eq!(low.activate_within(), Duration::from_secs(5));
    assert_eq!(
        (low.rings(), low.sockets()),
        (RingSizes::all(512), SocketKind::Prepared)
    );
    assert_eq!(low.settings().reserved.below(9), [0, 1]);
    assert_eq!(low.settings().queue_lock, QueueLockSetting::None);
    let wide = terms("bob", "eth1:2");
    assert_eq!(
        (wide.rule(), wide.max_queues(), wide.insert()),
        ("wide", None, Insert::AtGrant)
    );
    assert_eq!(wide.zero_copy(), ZeroCopy::Required);
    let explained = policy
        .explain(&subject("bob"), &request("eth1:2"))
        .into_wire(View::Peer);
    assert_eq!(
        explained.reason,
        "rule wide is the first that covers all of it, for sockets bound in zero-copy mode"
    );
    assert_eq!(wide.activate_within(), Duration::from_millis(250));
    assert!(wide.settings().reserved.is_empty());
}

#[test]
fn sections_exact_before_patterns_in_file_order() {
    let policy = policy(
        r#"
        [interface."e*"]
        queue-lock = "none"
        xdp = "generic"
        [interface."eth*"]
        queue-lock = "none"
        [interface.eth1]
        queue-lock = "none"
        xdp = "native"
        uplink = true
        [interface."eth0.100"]
        queue-lock = "none"
        xdp = "auto"
        reserved = "3"
        "#,
    );
    let xdp = |name: &str| {
        policy
            .interface(&name.parse().unwrap())
            .map(|settings| settings.xdp)
    };
    assert_eq!(xdp("eth1"), Some(XdpSetting::Native));
    assert_eq!(xdp("eth0"), Some(XdpSetting::Generic));
    assert_eq!(xdp("eth0.100"), Some(XdpSetting::Auto));
    assert_eq!(xdp("wlan0"), None);
}

#[test]
fn patterns() {
    for (pattern, yes, no) in [
        ("*", "eth0.", "\u{0}"),
        ("*", ".hidden", "\u{0}"),
        ("eth?", "eth9", "eth10"),
        ("eth[0-3]", "eth3", "eth4"),
        ("eth[!0]", "eth1", "eth0"),
        ("{eth,ens}*", "ens3", "veth0"),
        ("*.100", "eth0.100", "eth0-100"),
        ("eth0.*", "eth0.100", "eth0"),
    ] {
        let policy = policy(&format!("[interface.\"{pattern}\"]\nqueue-lock = \"none\""));
        let listed = |name: &str| name.parse().is_ok_and(|name| policy.interface(&name).is_some());
        assert!(listed(yes) && !listed(no), "{pattern}");
    }
}

#[test]
fn several_files_count_in_their_order() {
    let section = b"[interface.eth0]\nqueue-lock = \"none\"\n";
    let rule = |name: &str| {
        format!(
            "[[allow]]\nname = \"{name}\"\nuser = 5\ninterface = \"eth0\"\nqueues = \"*\"\nsockets = \"prepared\"\n"
        )
    };
    let (a, b) = (rule("a"), rule("b"));
    let loaded = read(&[section, b.as_bytes(), a.as_bytes()]).unwrap();
    assert_eq!(verdict(&loaded.policy, "5", "eth0:0"), "b");
    assert_eq!(loaded.policy.rule_count(), 2);
    assert_eq!(loaded.files.len(), 3);
    assert_eq!(loaded.policy.files(), loaded.files);
}

#[test]
fn covers_is_about_allow_rules_of_theirs() {
    let policy = policy(BASE);
    let covers = |who, name: &str| policy.covers(&subject(who), &name.parse().unwrap());
    assert!(covers("alice", "eth0") && covers("bob", "eth1") && covers("carol", "wlan0"));
    assert!(!covers("alice", "eth2") && !covers("8", "eth0"));
}

#[test]
fn a_peer_cannot_tell_devices_from_rules() {
    let policy = policy(BASE);
    let message = |who, what: &str| match policy.decide(&subject(who), &request(what)) {
        Verdict::Refused(refusal) => {
            assert!(
                refusal
                    .to_wire()
                    .to_string()
                    .contains(&refusal.message_for_peer())
            );
            refusal.message_for_peer().replace(what, "IF:Q")
        }
        Verdict::Granted(terms) => panic!("{terms:?}"),
    };
    // No rule, no section, no such device, denied by a rule for everybody.
    let words = message("8", "eth0:2");
    assert_eq!(
        words,
        "IF:Q: the policy does not give this to uid 8. The operator sees why with: \
         xsk-broker explain --user 8 IF:Q"
    );
    for what in ["eth1:2", "wlan0:2", "eth0:9", "nosuch:2", "eth0:0"] {
        assert_eq!(message("8", what), words);
    }
    // What concerns one's own rules is said.
    assert_eq!(
        message("alice", "eth0:11"),
        "IF:Q: rule low gives queues 0-4 of it, not queue 11"
    );
}

#[test]
fn explanations() {
    let policy = policy(BASE);
    let explain = |who, what, view| policy.explain(&subject(who), &request(what)).into_wire(view);
    let said = |explained: &xsk_client::wire::Explained| -> Vec<String> {
        let line = |it: &xsk_client::wire::RuleVerdict| format!("{} {}: {}", it.outcome, it.rule, it.why);
        explained.rules.iter().map(line).collect()
    };

    let operator = explain("alice", "eth0:2-3", View::Operator);
    assert_eq!(operator.reason, "rule low is the first that covers all of it");
    assert_eq!(
        said(&operator),
        [
            "decides low: covers all of it",
            "matches wide: covers all of it",
            "differs not-nine: denies queues 9 only",
            "differs no-guests: user alice (1001) is not in group guests (2000)",
            "differs all: user alice (1001) is not carol (1003)",
        ]
    );
    let peer = explain("alice", "eth0:2-3", View::Peer);
    assert_eq!(
        said(&peer),
        ["decides low: covers all of it", "matches wide: covers all of it"]
    );

    let operator = explain("alice", "eth0:8-9", View::Operator);
    assert_eq!(operator.rule.as_deref(), Some("not-nine"));
    assert_eq!(
        operator.reason,
        "eth0:8-9 for user alice (1001): denied by rule not-nine (p0.toml:28)"
    );
    assert_eq!(operator.rules[0].why, "queue 8 is outside 0-4");
    assert_eq!(operator.rules[2].outcome, RuleOutcome::Decides);
    let peer = explain("alice", "eth0:8-9", View::Peer);
    assert_eq!((peer.rule, peer.suggestion), (None, None));
    assert!(!peer.reason.contains("not-nine"));
    assert!(peer.rules.iter().all(|said| said.rule != "not-nine"));

    let operator = explain("8", "eth7:2", View::Operator);
    assert_eq!(
        operator.rules[1].why,
        "uid 8 is not alice (1001) or 7 or in group kvm (109)"
    );
    assert_eq!(explain("8", "eth7:2", View::Peer).rules, []);
}

/// What is suggested is written into the policy, and then the request is granted.
#[test]
fn suggestions_work() {
    for (who, what, old, expected) in [
        ("8", "eth1:2-3", "", "uid-8-eth1"),
        ("8", "eth1:2-3/16384", "", "uid-8-eth1"),
        ("alice", "wlan0.7:0", "", "alice-wlan0.7"),
        ("alice", "eth3:0", "", "alice-eth3"),
        ("alice", "eth0:3,10", "queues = \"0-4\"", "low"),
        (
            "alice",
            "eth0:2/8192",
            "limits = { queues = 2, ring-entries = 2048 }",
            "low",
        ),
        ("alice", "eth0:0,2", "reserved = \"0-1\"", "low"),
        ("alice", "eth0:1,5", "queues = \"0-4\"", "low"),
    ] {
        let explained = policy(BASE)
            .explain(&subject(who), &request(what))
            .into_wire(View::Operator);
        let Some(suggestion) = explained.suggestion else {
            assert!(explained.granted, "{who} {what}");
            continue;
        };
        // Where the host keeps a queue for itself, a second change is named.
        let (suggestion, more) = suggestion.split_once("\n\nAnd, ").unwrap_or((&suggestion, ""));
        let (words, toml) = suggestion.split_once(":\n").unwrap();
        let mut text = match old.is_empty() {
            true => format!("{BASE}\n{toml}"),
            false => BASE.replacen(old, toml, 1),
        };
        if let Some((_, reserved)) = more.split_once(":\n") {
            text = text.replacen("reserved = \"0-1\"", reserved, 1);
        }
        assert_eq!(verdict(&policy(&text), who, what), expected, "{words}: {toml}");
    }
}

#[test]
fn limits_are_what_is_written_and_else_what_is_usual() {
    let text = "[limits.per-user]\nqueues = 3\numem-bytes = 8192\n[limits.in-all]\nqueues = 5\n";
    let limits = policy(text).limits();
    let (usual, mut expected) = (Limits::default(), Limits::default());
    *expected.per_user.of_mut(Resource::Queues) = 3;
    *expected.per_user.of_mut(Resource::UmemBytes) = 8192;
    *expected.in_all.of_mut(Resource::Queues) = 5;
    assert_eq!(limits, expected);
    assert_eq!(policy("").limits(), usual);
}
