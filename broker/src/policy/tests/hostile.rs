//! Whatever a file contains, reading it ends with a policy or with mistakes that have a place in it.

use proptest::prelude::*;

use super::*;
use crate::policy::{Severity, View};

const SEED: &str = include_str!("../../../../policy.example.toml");

/// Pieces that are likely to meet a corner.
const PIECES: &[&str] = &[
    "[[allow]]\n",
    "[[deny]]\n",
    "[interface.eth0]\n",
    "[interface.\"*\"]\n",
    "[allow]\n",
    "[[interface]]\n",
    "name = \"a\"\n",
    "user = \"*\"\n",
    "user = [\"*\", 1]\n",
    "group = 4294967295\n",
    "queues = \"0-4294967295\"\n",
    "queues = \"9-1\"\n",
    "limits = { queues = 1, queues = 2 }\n",
    "limits.queues = 1\n",
    "interface.eth0.x.y = 1\n",
    "interface = \"[z-a]\"\n",
    "interface = \"{a,{b,c}}*\"\n",
    "interface = \"\\\\\"\n",
    "xdp = 1979-05-27T07:32:00Z\n",
    "ring-entries = 99999999999999999999999999\n",
    "ring-entries = 0xffffffffffffffffffff\n",
    "a.b.c.d.e = 1\n",
    "= 1\n",
    "\"\" = 1\n",
    "'",
    "\"\"\"",
    "\"",
    "[",
    "]",
    "{",
    "}",
    "\\u0000",
    "\\U0010ffff",
    "\0",
    "\u{feff}",
    "\r",
    "\r\n",
    "\t",
    "é",
    "\u{202e}",
    "inf",
    "nan",
    "-0",
    "1e999",
    ".",
    ",",
    "#",
    "\n",
];

#[derive(Debug, Clone)]
enum Change {
    Insert(usize, usize),
    Remove(usize, usize),
    Repeat(usize, usize),
    Byte(usize, u8),
}

fn change() -> impl Strategy<Value = Change> {
    let at = 0..SEED.len();
    prop_oneof![
        (at.clone(), 0..PIECES.len()).prop_map(|(at, piece)| Change::Insert(at, piece)),
        (at.clone(), 0..400_usize).prop_map(|(at, length)| Change::Remove(at, length)),
        (at.clone(), 0..400_usize).prop_map(|(at, length)| Change::Repeat(at, length)),
        (at, any::<u8>()).prop_map(|(at, byte)| Change::Byte(at, byte)),
    ]
}

fn apply(text: &mut Vec<u8>, change: &Change) {
    let end = text.len();
    let range = |at: usize, length: usize| at.min(end)..(at + length).min(end);
    match *change {
        Change::Insert(at, piece) => {
            let at = range(at, 0);
            text.splice(at, PIECES[piece].bytes());
        }
        Change::Remove(at, length) => drop(text.drain(range(at, length))),
        Change::Repeat(at, length) => {
            let again = text[range(at, length)].to_vec();
            text.splice(range(at, 0), again);
        }
        Change::Byte(at, byte) => text[range(at, 1)].fill(byte),
    }
}

/// Reads it; every mistake must have a place that exists, and be printable.
fn survive(text: &[u8]) -> Option<Policy> {
    let lines = text.iter().filter(|byte| **byte == b'\n').count() + 1;
    let (diagnostics, policy) = match read(&[text]) {
        Ok(loaded) => (loaded.warnings, Some(loaded.policy)),
        Err(error) => {
            let is_error = |it: &crate::policy::Diagnostic| it.severity == Severity::Error;
            assert!(error.diagnostics.iter().any(is_error));
            (error.diagnostics, None)
        }
    };
    for diagnostic in &diagnostics {
        let printed = diagnostic.to_string();
        assert!(
            printed.chars().all(|c| c == '\n' || !c.is_control()),
            "{printed:?}"
        );
        if let Some(at) = &diagnostic.position {
            assert!((1..=lines).contains(&at.line), "{printed}");
            let line = text.split(|byte| *byte == b'\n').nth(at.line - 1).unwrap();
            assert!((1..=line.len() + 1).contains(&at.column), "{printed}");
        } else {
            assert_eq!(diagnostic.severity, Severity::Warning, "{printed}");
        }
    }
    policy
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(600) })]

    #[test]
    fn mutated_policies(changes in proptest::collection::vec(change(), 1..12)) {
        let mut text = SEED.as_bytes().to_vec();
        for change in &changes {
            apply(&mut text, change);
        }
        if let Some(policy) = survive(&text) {
            for what in ["eth0:2-4,7", "veth0:4294967295", "eth0:0"] {
                let explained = policy.explain(&subject("root"), &request(what)).into_wire(View::Operator);
                let granted = matches!(
                    policy.decide(&subject("root"), &request(what)),
                    crate::policy::Verdict::Granted(_)
                );
                prop_assert_eq!(explained.granted, granted);
            }
        }
    }

    #[test]
    fn piles_of_pieces(pieces in proptest::collection::vec(0..PIECES.len(), 0..60)) {
        survive(pieces.iter().map(|piece| PIECES[*piece]).collect::<String>().as_bytes());
    }

    #[test]
    fn bytes(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        survive(&bytes);
    }
}

#[test]
fn the_seed_is_good() {
    assert_eq!(survive(SEED.as_bytes()).unwrap().rule_count(), 4);
}

#[test]
fn floods() {
    for text in [
        format!("a = {}", "[".repeat(500_000)),
        format!("a = {}", "{a=".repeat(300_000)),
        format!("[{}]", "a.".repeat(400_000)),
        format!("{} = 1", "interface.eth0.".repeat(60_000)),
        "=\n".repeat(200_000),
        "[[allow]]\n".repeat(100_000),
        "[interface.eth0]\n".repeat(60_000),
        format!("x = \"{}", "y".repeat(1_000_000)),
        format!("[[allow]]\nuser = [{}]", "1,".repeat(400_000)),
        format!("[[allow]]\nqueues = \"{}\"", "1,".repeat(400_000)),
        format!(
            "[[allow]]\nname = \"{}\"\n{} = 1",
            "n".repeat(100_000),
            "k".repeat(500_000)
        ),
    ] {
        assert!(survive(text.as_bytes()).is_none());
    }
}
