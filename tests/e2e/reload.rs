//! `reload` and SIGHUP: a new policy is taken whole or not at all, and names are those of the time.

use std::os::unix::fs::chown;
use std::time::Duration;

use e2e::broker::{BrokerProcess, Output};
use e2e::uids::Uid;
use e2e::world::{Side, World};
use rustix::process::Signal;
use serde_json::{Value, json};
use xsk_client::wire::{Lease, LeaseState};

use crate::lease_scene::{PATIENCE, Traffic, allow, interface, leases, policy};
use crate::puppet::{Puppet, Seen};

const IDLE: Duration = Duration::from_secs(5);

/// What a broker says of a policy that it does not take.
const NOT_TAKEN: &str = "the policy is not taken, the former one stays in force";

pub(crate) fn reload(broker: &BrokerProcess<'_>, policy: &str, more: &[&str]) -> Output {
    broker.write_policy(policy).unwrap();
    broker.cli(&[&["reload"], more].concat()).unwrap()
}

/// One that is taken.
pub(crate) fn reloaded(broker: &BrokerProcess<'_>, policy: &str) -> Value {
    let output = reload(broker, policy, &["--json"]);
    assert_eq!(output.code, Some(0), "{output:?}");
    serde_json::from_str(&output.stdout).unwrap()
}

pub(crate) fn find(broker: &BrokerProcess<'_>, id: u64) -> Lease {
    let mut leases = leases(broker);
    leases.retain(|lease| lease.lease == id);
    leases.pop().unwrap()
}

pub(crate) fn audited(broker: &BrokerProcess<'_>, event: &str) -> Value {
    broker
        .wait_audit(PATIENCE, |line| line["event"] == event)
        .unwrap()
}

#[test]
fn a_good_policy_takes_the_place_of_the_former_and_packets_flow_on() {
    let world = World::new().unwrap();
    let traffic = Traffic::new(&world);
    let [alice, bob] = [(); 2].map(|()| Uid::take().unwrap());
    let mut broker = BrokerProcess::start(&world, &policy(&[(alice.number(), "3")])).unwrap();
    let [mut of_alice, mut of_bob] = [&alice, &bob].map(|uid| Puppet::start(&world, Side::Host, &uid.user()));
    let lease = of_alice.hold("eth0:3");
    assert_eq!(of_bob.acquire("eth0:4").unwrap_err().kind, "Denied");
    traffic.send_all(3, 0..50);
    assert_eq!(of_alice.receive(lease, 3, 50, IDLE), Seen::only(3, 50));

    let both = policy(&[(alice.number(), "3"), (bob.number(), "4-5")]);
    let told = reloaded(&broker, &both);
    assert_eq!(
        (&told["rules"], &told["notAllowed"]),
        (&json!(2), &json!([])),
        "{told}"
    );
    assert_eq!(told["policyFiles"], json!(["/run/xsk-broker.toml"]));
    assert_eq!(told["interfaces"], json!([]));
    let other = of_bob.hold("eth0:4");
    traffic.send_all(3, 50..100);
    assert_eq!(of_alice.receive(lease, 3, 50, IDLE), Seen::only(3, 50));
    traffic.send_all(4, 0..50);
    assert_eq!(of_bob.receive(other, 4, 50, IDLE), Seen::only(4, 50));
    assert_eq!(find(&broker, lease).not_allowed, None);
    let line = audited(&broker, "reloaded");
    assert_eq!((&line["uid"], &line["gid"]), (&json!(0), &json!(0)), "{line}");

    // Limits hold for what is asked for next.
    reloaded(&broker, &(both + "[limits.per-user]\nleases = 1\n"));
    let full = of_bob.acquire("eth0:5").unwrap_err();
    assert_eq!(
        (full.kind.as_str(), &full.details["limit"]),
        ("QuotaExceeded", &json!(1))
    );
    assert_eq!(find(&broker, other).state, LeaseState::Active);

    // Whoever is no operator is not heard.
    let failure = of_alice.call("Reload", json!({})).unwrap_err();
    assert!(failure.text.contains("for operators"), "{failure:?}");
    assert_eq!(broker.cli_as(&alice.user(), &["reload"]).unwrap().code, Some(77));
    assert!(broker.stop().unwrap().success());
}

#[test]
fn a_wrong_one_never_does() {
    let world = World::new().unwrap();
    let alice = Uid::take().unwrap();
    let good = policy(&[(alice.number(), "1-7")]);
    let mut broker = BrokerProcess::start(&world, &good).unwrap();
    let mut holder = Puppet::start(&world, Side::Host, &alice.user());
    let lease = holder.hold("eth0:3");

    // Each mistake as `check` prints it, in the main file and in one beside it.
    let beside = world.path("xsk-broker.d");
    std::fs::create_dir(&beside).unwrap();
    let wrong = "[[allow]]\nname = \"beside\"\nuser = 7\ninterface = \"eth0\"\nqueues = \"5-4\"\nsockets = [\"naked\"]\n";
    world.write("xsk-broker.d/10.toml", wrong, 0o644).unwrap();
    let output = reload(&broker, &good.replace("queues =", "queue ="), &[]);
    assert_eq!(output.code, Some(78), "{output:?}");
    assert!(output.stderr.contains(NOT_TAKEN), "{output:?}");
    let check = broker.cli(&["check", "/run/xsk-broker.toml"]).unwrap();
    let mistakes: Vec<&str> = check.stderr.split("\n\n").collect();
    let (summary, mistakes) = mistakes.split_last().unwrap();
    assert!(
        summary.contains("not a policy") && mistakes.len() > 3,
        "{check:?}"
    );
    for mistake in mistakes {
        assert!(
            output.stderr.contains(mistake),
            "{mistake}\nis not in\n{}",
            output.stderr
        );
    }
    assert!(
        output.stderr.contains("/run/xsk-broker.d/10.toml:5:10"),
        "{output:?}"
    );
    let told = broker.cli(&["reload", "--json"]).unwrap();
    let told: Value = serde_json::from_str(&told.stdout).unwrap();
    let places: Vec<String> = told["mistakes"]
        .as_array()
        .unwrap()
        .iter()
        .map(|found| {
            format!(
                "{}:{}:{}",
                found["file"].as_str().unwrap(),
                found["line"],
                found["column"]
            )
        })
        .collect();
    assert!(
        places.contains(&"/run/xsk-broker.d/10.toml:5:10".to_owned()),
        "{places:?}"
    );
    assert_eq!(audited(&broker, "reload-refused")["uid"], 0);
    std::fs::remove_dir_all(&beside).unwrap();

    // A file that others may write, one that the broker may not read, none at all.
    let refused = |words: &[&str]| {
        let output = broker.cli(&["reload", "--revoke"]).unwrap();
        assert_eq!(output.code, Some(78), "{output:?}");
        for words in words {
            assert!(output.stderr.contains(words), "{words} is not in {output:?}");
        }
    };
    world.write("xsk-broker.toml", &good, 0o666).unwrap();
    refused(&["can be written by", "chmod go-w /run/xsk-broker.toml"]);
    world.write("xsk-broker.toml", &good, 0o644).unwrap();
    chown(world.path("xsk-broker.toml"), Some(alice.number()), None).unwrap();
    refused(&["not to root", "chown root:root /run/xsk-broker.toml"]);
    std::fs::remove_file(world.path("xsk-broker.toml")).unwrap();
    refused(&["cannot be read: No such file"]);
    world.write("xsk-broker.toml", &good, 0o600).unwrap();
    refused(&["cannot be read: Permission denied", "chmod 0644"]);
    // Its group is enough.
    world.write("xsk-broker.toml", &good, 0o640).unwrap();
    chown(world.path("xsk-broker.toml"), None, Some(broker.uid())).unwrap();
    assert_eq!(broker.cli(&["reload"]).unwrap().code, Some(0));

    // Nothing of all that has touched anything.
    assert_eq!(find(&broker, lease).state, LeaseState::Active);
    assert_eq!(find(&broker, lease).not_allowed, None);
    holder.acquire("eth0:4").unwrap();
    assert!(broker.stop().unwrap().success());
}

#[test]
fn warnings_stand_in_the_way_where_they_did_at_the_start() {
    let world = World::new().unwrap();
    let alice = Uid::take().unwrap();
    let good = policy(&[(alice.number(), "1-7")]);
    let broker = BrokerProcess::builder()
        .arguments(&["--strict"])
        .start(&world, &good)
        .unwrap();
    let output = reload(&broker, &(good.clone() + &interface("wlan0", "")), &[]);
    assert_eq!(output.code, Some(78), "{output:?}");
    assert!(
        output.stderr.contains("no interface wlan0") && output.stderr.contains("--strict"),
        "{output:?}"
    );
    assert_eq!(reloaded(&broker, &good)["warnings"], json!([]));
}

#[test]
fn sighup_does_the_same_and_tells_the_log() {
    let world = World::new().unwrap();
    let [alice, bob] = [(); 2].map(|()| Uid::take().unwrap());
    let mut broker = BrokerProcess::start(&world, &policy(&[(alice.number(), "1-7")])).unwrap();
    let mut holder = Puppet::start(&world, Side::Host, &alice.user());
    let lease = holder.hold("eth0:3");
    let hang_up = |text: &str| {
        broker.write_policy(text).unwrap();
        broker.process().signal(Signal::HUP).unwrap();
    };
    let wait_line = |wanted: &dyn Fn(&str) -> bool| {
        let wanted = |line: &str| wanted(line).then_some(());
        broker.process().wait_stderr(PATIENCE, wanted).unwrap();
    };
    let wait = |words: &str| wait_line(&|line| line.contains(words));
    hang_up("[interface.eth0]\nxdp = \"nativ\"\n");
    wait("/run/xsk-broker.toml:2:7");
    wait(NOT_TAKEN);
    assert_eq!(audited(&broker, "reload-refused")["reason"], "sighup");
    assert_eq!(find(&broker, lease).not_allowed, None);

    // What is wrong is an error, and what is only strange beside it a warning.
    let strange = allow(0, "5").replace("user = 0", "user = \"xsk-strange\"");
    let wrong = "[[deny]]\nname = \"no\"\nuser = \"xsk-wrong\"\ninterface = \"*\"\n";
    hang_up(&(policy(&[(alice.number(), "1-7")]) + &strange + wrong));
    for (name, level) in [("xsk-strange", " WARN "), ("xsk-wrong", " ERROR ")] {
        wait_line(&|line| line.contains(&format!("user `{name}`")) && line.contains(level));
    }

    hang_up(&policy(&[(bob.number(), "1-7")]));
    wait("SIGHUP: the policy was read anew; rules: 1");
    wait("kept, though the policy would not give it now");
    assert_eq!(audited(&broker, "reloaded")["reason"], "sighup");
    assert!(find(&broker, lease).not_allowed.is_some());
    let mut other = Puppet::start(&world, Side::Host, &bob.user());
    other.hold("eth0:4");
    assert!(broker.stop().unwrap().success());
}

#[test]
fn a_burst_of_reloads_ends_with_the_policy_that_was_written_last() {
    let world = World::new().unwrap();
    let alice = Uid::take().unwrap();
    let broker = BrokerProcess::start(&world, &policy(&[(alice.number(), "1-7")])).unwrap();
    let of = |rules: usize| {
        let numbered = |number| allow(alice.number(), "1").replace("uid-", &format!("rule-{number}-"));
        interface("eth0", "") + &(0..rules).map(numbered).collect::<String>()
    };
    for round in 1..20 {
        broker.write_policy(&of(round)).unwrap();
        broker.process().signal(Signal::HUP).unwrap();
        broker.process().signal(Signal::HUP).unwrap();
    }
    assert_eq!(reloaded(&broker, &of(33))["rules"], 33);
    // What was asked for before has been read before.
    let status = broker.cli(&["status", "--json"]).unwrap();
    let status: Value = serde_json::from_str(status.stdout.lines().next().unwrap()).unwrap();
    assert_eq!(status["rules"], 33);
}

/// Puts files of the test's own in the place of passwd and group.
fn own_accounts(world: &World, passwd: &str, group: &str) {
    write_accounts(world, passwd, group);
    let mounted = world.run_in(Side::Host, || {
        for name in ["passwd", "group"] {
            rustix::mount::mount_bind(format!("/run/{name}"), format!("/etc/{name}"))?;
        }
        rustix::io::Result::Ok(())
    });
    mounted.unwrap().unwrap();
}

fn write_accounts(world: &World, passwd: &str, group: &str) {
    let base = ["root:x:0:0::/:/bin/sh\n", "root:x:0:\n"];
    world
        .write("passwd", &format!("{}{passwd}", base[0]), 0o644)
        .unwrap();
    world
        .write("group", &format!("{}{group}", base[1]), 0o644)
        .unwrap();
}

#[test]
fn names_are_those_of_passwd_and_group_at_the_time() {
    let world = World::new().unwrap();
    let [alice, bob] = [(); 2].map(|()| Uid::take().unwrap());
    let account = |name: &str, uid: &Uid| format!("{name}:x:{}:{0}::/:/bin/sh\n", uid.number());
    own_accounts(&world, &account("xsk-alice", &alice), "");
    let rule = |who: &str, queues: &str| {
        allow(0, queues)
            .replace("uid-0", &format!("rule-{queues}"))
            .replace("user = 0", who)
    };
    let text = interface("eth0", "")
        + &rule("user = \"xsk-alice\"", "3")
        + &rule("user = \"xsk-bob\"", "4")
        + &rule("group = \"xsk-group\"", "5");
    let mut broker = BrokerProcess::start(&world, &text).unwrap();
    let [mut of_alice, mut of_bob] = [&alice, &bob].map(|uid| Puppet::start(&world, Side::Host, &uid.user()));
    let lease = of_alice.hold("eth0:3");
    assert_eq!(of_bob.acquire("eth0:4").unwrap_err().kind, "Denied");

    // Accounts that are made while it runs are found when the policy is read, and not before.
    let group = format!("xsk-group:x:{}:\n", bob.number());
    let both = account("xsk-alice", &alice) + &account("xsk-bob", &bob);
    write_accounts(&world, &both, &group);
    assert_eq!(of_bob.acquire("eth0:4").unwrap_err().kind, "Denied");
    assert_eq!(reloaded(&broker, &text)["warnings"], json!([]));
    of_bob.hold("eth0:4");
    of_bob.hold("eth0:5");

    // One that is deleted is nobody's, though it was known at the start.
    write_accounts(&world, &account("xsk-bob", &bob), &group);
    let told = reloaded(&broker, &text);
    assert!(
        told["warnings"][0]["message"]
            .as_str()
            .unwrap()
            .contains("xsk-alice")
    );
    assert!(find(&broker, lease).not_allowed.is_some());
    assert_eq!(of_alice.acquire("eth0:3").unwrap_err().kind, "Denied");

    // Others may be somewhere where a running broker does not look: an allow rule does not match them, a deny rule
    // that would not match them is a mistake.
    let told = reloaded(&broker, &(text.clone() + &rule("user = \"xsk-carol\"", "6")));
    let warnings = told["warnings"].to_string();
    assert!(
        warnings.contains("user `xsk-carol` is not in /etc/passwd")
            && warnings.contains("then reload the policy"),
        "{warnings}"
    );
    let deny = "[[deny]]\nname = \"no\"\ngroup = \"xsk-guests\"\ninterface = \"*\"\n";
    let output = reload(&broker, &(text.clone() + deny), &[]);
    assert_eq!(output.code, Some(78), "{output:?}");
    assert!(
        output
            .stderr
            .contains("group `xsk-guests` is to be refused, is not in /etc/group"),
        "{output:?}"
    );
    assert!(broker.stop().unwrap().success());
}
