//! What a rule says of the sockets themselves: kind, direction, umem, busy polling.

use xsk_client::wire::{BusyPoll, Direction, ModeWish, UmemShape};

use super::*;
use crate::policy::{Verdict, View};

const BASE: &str = r#"
[interface.eth0]
queue-lock = "none"

[[allow]]
name = "listeners"
user = "alice"
interface = "eth0"
queues = "2-4"
sockets = ["bound"]
direction = "rx"
limits = { umem-bytes = 8388608 }

[[allow]]
name = "both"
user = "bob"
interface = "eth0"
queues = "2-4"
sockets = ["prepared", "bound"]
hugepages = true
limits = { queues = 2, busy-poll-budget = 64 }
"#;

fn wish(change: impl FnOnce(&mut Acquire)) -> Acquire {
    let mut acquire = Acquire::new("eth0:2".parse().unwrap(), SocketKind::Bound);
    change(&mut acquire);
    acquire
}

fn chunks(chunks: u32) -> Option<UmemShape> {
    Some(UmemShape {
        chunks,
        ..UmemShape::default()
    })
}

fn busy(budget: u16) -> Option<BusyPoll> {
    Some(BusyPoll { budget, usecs: 50 })
}

fn huge() -> Option<UmemShape> {
    Some(UmemShape {
        hugepages: true,
        ..UmemShape::default()
    })
}

/// The reason for the peer, without the queue that it begins with; nothing where it is granted.
fn refusal(policy: &Policy, who: &str, acquire: &Acquire) -> String {
    let (subject, request) = (subject(who), Request::from(acquire.clone()));
    let explained = policy.explain(&subject, &request).into_wire(View::Operator);
    match policy.decide(&subject, &request) {
        Verdict::Granted(terms) => {
            assert!(explained.granted);
            assert_eq!(terms.direction(), request.direction);
            assert_eq!(terms.umem(), request.umem);
            String::new()
        }
        Verdict::Refused(refusal) => {
            assert!(!explained.granted);
            let message = refusal.message_for_peer();
            message.strip_prefix("eth0:2: rule ").unwrap().to_owned()
        }
    }
}

#[test]
fn a_rule_gives_what_it_says_and_less() {
    let policy = policy(BASE);
    let direction = |direction| move |acquire: &mut Acquire| acquire.direction = Some(direction);
    let umem = |umem| move |acquire: &mut Acquire| acquire.umem = umem;
    for (who, wish, expected) in [
        ("alice", wish(direction(Direction::Rx)), ""),
        ("alice", wish(|_| ()), "listeners gives direction rx, not rx+tx"),
        (
            "alice",
            wish(direction(Direction::Tx)),
            "listeners gives direction rx, not tx",
        ),
        ("bob", wish(direction(Direction::Tx)), ""),
        ("bob", wish(direction(Direction::Rx)), ""),
        ("bob", wish(|_| ()), ""),
        ("bob", wish(umem(chunks(32768))), ""),
        (
            "bob",
            wish(umem(chunks(32770))),
            "both gives umems of at most 67108864 bytes, not 67112960",
        ),
        ("bob", wish(umem(huge())), ""),
        (
            "alice",
            wish(|acquire| {
                acquire.umem = huge();
                acquire.direction = Some(Direction::Rx);
            }),
            "listeners gives no umem on huge pages",
        ),
        ("bob", wish(|acquire| acquire.busy_poll = busy(64)), ""),
        (
            "bob",
            wish(|acquire| acquire.busy_poll = busy(65)),
            "both gives busy polling with a budget of at most 64, not 65",
        ),
        (
            "alice",
            wish(|acquire| {
                acquire.busy_poll = busy(0);
                acquire.direction = Some(Direction::Rx);
            }),
            "listeners gives no busy polling",
        ),
    ] {
        assert_eq!(refusal(&policy, who, &wish), expected, "{who} {wish:?}");
    }
}

/// What is suggested is written into the rule, and then the request is granted.
#[test]
fn suggestions_work() {
    let policies = [
        (
            "alice",
            wish(|_| ()),
            "direction = \"rx\"\n",
            "direction = \"rx+tx\"",
        ),
        (
            "alice",
            wish(|acquire| {
                acquire.direction = Some(Direction::Rx);
                acquire.umem = chunks(8192);
            }),
            "limits = { umem-bytes = 8388608 }\n",
            "limits = { ring-entries = 4096, umem-bytes = 16777216 }",
        ),
        (
            "bob",
            wish(|acquire| acquire.busy_poll = busy(128)),
            "limits = { queues = 2, busy-poll-budget = 64 }\n",
            "limits = { queues = 2, ring-entries = 4096, busy-poll-budget = 128 }",
        ),
        (
            "alice",
            wish(|acquire| {
                acquire.direction = Some(Direction::Rx);
                acquire.umem = huge();
            }),
            "direction = \"rx\"\n",
            "hugepages = true",
        ),
    ];
    for (who, wish, old, expected) in policies {
        let explained = policy(BASE)
            .explain(&subject(who), &wish.clone().into())
            .into_wire(View::Operator);
        let suggestion = explained.suggestion.unwrap();
        let (_, toml) = suggestion.split_once(":\n").unwrap();
        assert_eq!(toml, expected);
        let kept = if toml.starts_with("hugepages") { old } else { "" };
        let text = BASE.replacen(old, &format!("{toml}\n{kept}"), 1);
        assert_eq!(refusal(&policy(&text), who, &wish), "", "{toml}");
    }
    // A whole new rule, with everything that is out of the ordinary.
    let all = wish(|acquire| {
        acquire.direction = Some(Direction::Tx);
        acquire.umem = Some(UmemShape {
            chunks: 65536,
            ..huge().unwrap()
        });
        acquire.busy_poll = busy(200);
    });
    let explained = policy(BASE)
        .explain(&subject("carol"), &all.clone().into())
        .into_wire(View::Operator);
    let suggestion = explained.suggestion.unwrap();
    let (_, toml) = suggestion.split_once(":\n").unwrap();
    assert_eq!(refusal(&policy(&format!("{BASE}\n{toml}")), "carol", &all), "");
}

#[test]
fn the_mode_is_what_zero_copy_says() {
    use Direction::{RxTx, Tx};
    use ModeWish::{Copy, ZeroCopy, ZeroCopyElseCopy};
    for (word, direction, mode, expected) in [
        ("allowed", RxTx, None, Some(Copy)),
        ("allowed", RxTx, Some(ZeroCopy), Some(ZeroCopy)),
        ("allowed", RxTx, Some(ZeroCopyElseCopy), Some(ZeroCopyElseCopy)),
        ("required", RxTx, None, Some(ZeroCopy)),
        ("required", RxTx, Some(ZeroCopyElseCopy), Some(ZeroCopy)),
        ("required", RxTx, Some(Copy), None),
        ("required", Tx, None, None),
        ("forbidden", RxTx, None, Some(Copy)),
        ("forbidden", RxTx, Some(ZeroCopyElseCopy), Some(Copy)),
        ("forbidden", RxTx, Some(ZeroCopy), None),
        ("forbidden", Tx, None, Some(Copy)),
    ] {
        let rule = BASE.replace("hugepages = true", &format!("zero-copy = \"{word}\""));
        let policy = policy(&rule);
        let wish = wish(|acquire| {
            acquire.direction = Some(direction);
            acquire.mode = mode;
        });
        match policy.decide(&subject("bob"), &wish.clone().into()) {
            Verdict::Granted(terms) => assert_eq!(Some(terms.mode()), expected, "{word} {mode:?}"),
            Verdict::Refused(refusal) => {
                assert_eq!(expected, None, "{word} {direction} {mode:?}: {refusal:?}");
                let told = refusal.message_for_peer();
                assert!(told.contains(&format!("has `zero-copy = \"{word}\"`")), "{told}");
            }
        }
    }
}

#[test]
fn who_only_sends_is_bound_in_copy_mode() {
    let wish = wish(|acquire| {
        acquire.direction = Some(Direction::Tx);
        acquire.mode = Some(ModeWish::ZeroCopyElseCopy);
    });
    match policy(BASE).decide(&subject("bob"), &wish.into()) {
        Verdict::Granted(terms) => assert_eq!(terms.mode(), ModeWish::Copy),
        Verdict::Refused(refusal) => panic!("{refusal:?}"),
    }
}

#[test]
fn a_direction_that_nobody_can_keep_is_a_mistake() {
    for (sockets, direction, good) in [
        ("[\"bound\"]", "rx", true),
        ("[\"bound\"]", "tx", true),
        ("[\"prepared\", \"bound\"]", "rx+tx", true),
        ("[\"prepared\", \"bound\"]", "rx", false),
        ("\"prepared\"", "tx", false),
        ("\"bound\"", "both", false),
    ] {
        let text = BASE
            .replacen("sockets = [\"bound\"]", &format!("sockets = {sockets}"), 1)
            .replacen("\"rx\"", &format!("\"{direction}\""), 1);
        let read = read(&[text.as_bytes()]);
        assert_eq!(read.is_ok(), good, "{sockets} {direction}");
        if let Err(error) = read {
            let told = error.diagnostics[0].position.as_ref().unwrap();
            assert_eq!((error.diagnostics.len(), told.line), (1, 11), "{error}");
        }
    }
}
