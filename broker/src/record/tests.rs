//! Records, as they are written and as they are found.

use super::*;

const GOOD: &str = r#"{
  "version": 1,
  "lease": 7,
  "stage": "active",
  "ended": null,
  "boot": "b",
  "sinceMs": 12,
  "requester": { "uid": 1000, "gid": 1000, "groups": [], "pid": 11 },
  "holder": { "uid": 1000, "pid": 11, "pidfdInode": 5, "startTicks": 99 },
  "interface": "eth0",
  "interfaceIndex": 2,
  "queueLock": "none",
  "terms": {
    "rule": "a", "queues": [2, 3], "sockets": "prepared", "direction": "rx_tx", "mode": null, "umem": null,
    "rings": { "fill": 64, "completion": 64, "rx": 64, "tx": 64 }, "busyPoll": null, "insert": "when-bound",
    "zeroCopy": "allowed", "activateWithinMs": 5000
  },
  "sockets": [
    { "queue": 2, "mode": "copy", "inode": 1, "redirectedBefore": 0 },
    { "queue": 3, "mode": "copy", "inode": 2, "redirectedBefore": 0 }
  ],
  "label": null
}
"#;

#[test]
fn the_largest_is_read() {
    let mut record = Record::decode("lease-7.json", GOOD.as_bytes()).unwrap();
    let mut requester = crate::identity::Requester {
        subject: Subject {
            uid: 1,
            gid: 1,
            groups: (u32::MAX - 65536..u32::MAX).collect(),
        },
        pid: 1,
    };
    requester.keep_groups(|gid| gid == u32::MAX - 1);
    // What the policy names is not left out, though it came last.
    assert_eq!(requester.subject.groups[0], u32::MAX - 1);
    record.requester.groups = requester.subject.groups;
    record.label = Some("\u{1}".repeat(256));
    let socket = RecordedSocket {
        queue: u32::MAX,
        mode: Some(BindMode::ZeroCopy),
        inode: Some(u64::MAX),
        redirected_before: Some(u64::MAX),
    };
    record.sockets = vec![socket; xsk_client::wire::MAX_QUEUES];
    let bytes = u64::try_from(record.encode().unwrap().len()).unwrap();
    assert!(bytes < MOST_BYTES - 4096, "{bytes}");
}

fn refusal(text: &str) -> String {
    Record::decode("lease-7.json", text.as_bytes())
        .unwrap_err()
        .to_string()
}

#[test]
fn what_is_written_is_read() {
    let record = Record::decode("lease-7.json", GOOD.as_bytes()).unwrap();
    assert_eq!(Vec::from_iter(record.filled()), [2, 3]);
    let again = Record::decode("lease-7.json", &record.encode().unwrap()).unwrap();
    assert_eq!(again, record);
}

#[test]
fn what_is_torn_is_refused_wherever_it_was_torn() {
    for length in 0..GOOD.trim_end().len() {
        assert!(
            Record::decode("lease-7.json", &GOOD.as_bytes()[..length]).is_err(),
            "{length}"
        );
    }
}

#[test]
fn what_was_changed_is_refused_with_the_line() {
    let changed = |from: &str, to: &str| refusal(&GOOD.replacen(from, to, 1));
    for (from, to, expected) in [
        (
            "\"version\": 1",
            "\"version\": 2",
            "lease-7.json:2:3: is of version 2",
        ),
        ("\"lease\": 7", "\"lease\": 8", "lease-7.json:3:3: is of lease 8"),
        ("\"active\"", "\"actve\"", "lease-7.json:4:"),
        ("\"uid\": 1000", "\"uid\": -1", "lease-7.json:8:"),
        ("\"label\"", "\"labl\"", "lease-7.json:22:"),
        ("[2, 3]", "[2, 2]", "lease-7.json:14:"),
        ("[2, 3]", "[2, 3, 4]", "lease-7.json:18:3: an active lease"),
        (
            "\"queue\": 3",
            "\"queue\": 4",
            "lease-7.json:18:3: a socket's queue",
        ),
        ("eth0", "eth/0", "lease-7.json:10:"),
        (
            "\"redirectedBefore\": 0",
            "\"redirectedBefore\": null",
            "lease-7.json:18:3: an active lease that receives",
        ),
    ] {
        let words = changed(from, to);
        assert!(words.starts_with(expected), "{from} -> {to}: {words}");
    }
    assert!(refusal(&(GOOD.to_owned() + "x")).contains("trailing characters"));
    // Whatever a later version has, its number is what is told.
    assert!(refusal("{ \"version\": 9, \"more\": {} }").contains("is of version 9"));
}

#[test]
fn who_only_sends_has_no_slots() {
    let text = GOOD
        .replace("rx_tx", "tx")
        .replace("\"redirectedBefore\": 0", "\"redirectedBefore\": null");
    assert!(Record::decode("lease-7.json", text.as_bytes()).is_ok());
}

#[test]
fn a_member_is_found_by_its_own_name_and_those_around_it() {
    let text = Record::decode("lease-7.json", GOOD.as_bytes())
        .unwrap()
        .encode()
        .unwrap();
    let lines: Vec<String> = String::from_utf8(text.clone())
        .unwrap()
        .lines()
        .map(str::to_owned)
        .collect();
    for (member, line, column) in [
        (&["version"][..], "\"version\"", 3),
        (&["holder", "uid"], "\"uid\"", 5),
        (&["requester", "uid"], "\"uid\"", 5),
        // As far as it is there.
        (&["holder", "none"], "\"holder\"", 3),
    ] {
        let (at, from) = place_of(&text, member);
        assert_eq!(from, column, "{member:?}");
        assert!(lines[at - 1].contains(line), "{member:?}: {}", lines[at - 1]);
    }
    let [requester, holder] = ["requester", "holder"].map(|name| place_of(&text, &[name, "uid"]).0);
    assert!(requester < holder, "{requester} {holder}");
    assert_eq!(place_of(&text, &["none"]), (1, 1));
}

#[test]
fn the_name_of_one_that_was_refused_leads_back() {
    assert_eq!(
        Record::before_aside(&Record::aside("lease-7.json")),
        Some("lease-7.json")
    );
    assert_eq!(Record::before_aside("lease-7.json"), None);
}
