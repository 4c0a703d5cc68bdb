//! Records that are not what a broker wrote are refused by name, the others are taken over; `serve --dry-run` says so
//! before, and `purge` takes down all of it.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::PathBuf;
use std::time::Duration;

use e2e::broker::{BrokerProcess, Output, cli};
use e2e::leaks::Leaks;
use e2e::uids::Uid;
use e2e::world::{Side, World};

use crate::lease_scene::{PATIENCE, Traffic, interface, leases, policy, wait_until};
use crate::puppet::{Puppet, Seen};
use crate::restart_scene::{filled_slots, pieces, pinned_map};

const IDLE: Duration = Duration::from_secs(5);

/// A file of the run directory, as this process can reach it.
fn file(world: &World, name: &str) -> PathBuf {
    world.path("xsk-broker").join(name)
}

fn record(world: &World, lease: u64) -> PathBuf {
    file(world, &format!("lease-{lease}.json"))
}

/// All files of the run directory with their contents, and all pins.
fn everything(world: &World) -> BTreeMap<String, Vec<u8>> {
    let mut all = BTreeMap::new();
    for directory in ["xsk-broker", "bpf/xsk-broker"] {
        for entry in fs::read_dir(world.path(directory)).unwrap() {
            let entry = entry.unwrap();
            let name = format!("{directory}/{}", entry.file_name().display());
            all.insert(name, fs::read(entry.path()).unwrap_or_default());
        }
    }
    all
}

fn dry_run(world: &World, broker: &BrokerProcess<'_>, more: &[&str]) -> Output {
    let uid = broker.uid().to_string();
    let arguments = [
        "serve",
        "--dry-run",
        "--policy",
        "/run/xsk-broker.toml",
        "--run-dir",
        "/run/xsk-broker",
        "--bpf-dir",
        "/run/bpf/xsk-broker",
        "--user",
        &uid,
    ];
    cli(world, None, &[&arguments, more].concat()).unwrap()
}

fn purge(world: &World, more: &[&str]) -> Output {
    let arguments = [
        "purge",
        "--run-dir",
        "/run/xsk-broker",
        "--bpf-dir",
        "/run/bpf/xsk-broker",
    ];
    cli(world, None, &[&arguments, more].concat()).unwrap()
}

#[test]
fn what_is_damaged_is_refused_with_its_line_and_the_rest_goes_on() {
    let world = World::new().unwrap();
    let [alice, stranger] = [(); 2].map(|()| Uid::take().unwrap());
    let mut broker = BrokerProcess::start(&world, &policy(&[(alice.number(), "1-7")])).unwrap();
    let traffic = Traffic::new(&world);
    let mut holder = Puppet::start(&world, Side::Host, &alice.user());
    let [good, torn, edited, foreign, future, open] =
        [1, 2, 3, 4, 5, 6].map(|queue| holder.hold(&format!("eth0:{queue}")));
    let pending = holder.acquire("eth0:7").unwrap();
    broker.kill().unwrap();

    let text = |lease| fs::read_to_string(record(&world, lease)).unwrap();
    let write = |lease, text: &str| fs::write(record(&world, lease), text).unwrap();
    let whole = text(torn);
    let half = &whole[..whole.len() / 2];
    write(torn, half);
    write(
        edited,
        &text(edited).replace("\"stage\": \"active\"", "\"stage\": \"for-ever\""),
    );
    chown(record(&world, foreign), Some(stranger.number()), None).unwrap();
    write(future, &text(future).replace("\"version\": 1", "\"version\": 2"));
    fs::set_permissions(record(&world, open), PermissionsExt::from_mode(0o666)).unwrap();
    // What a broker was killed in the middle of says nothing.
    fs::write(file(&world, "lease-99.json.new"), "{").unwrap();

    // Told before, with nothing changed by it.
    let before = everything(&world);
    let told = pieces(&dry_run(&world, &broker, &["--json"]));
    assert_eq!(everything(&world), before);
    let of = |kind: &str, name: &str| told[&(kind.to_owned(), name.to_owned())].clone();
    assert_eq!(of("program", "eth0").0, "take-over");
    let (action, why) = of("lease", &good.to_string());
    assert_eq!(action, "take-over");
    assert!(
        why.contains(&format!("eth0:1, rule uid-{}", alice.number())),
        "{why}"
    );
    // What a manager's fd store has is passed to the service alone.
    let (action, why) = of("lease", &pending.to_string());
    assert_eq!(action, "end");
    assert!(why.ends_with("which is not to be seen from here"), "{why}");
    let line = |lease, member: &str| {
        let text = fs::read_to_string(record(&world, lease)).unwrap();
        1 + text.lines().position(|line| line.contains(member)).unwrap()
    };
    let expected = [
        // Where it is torn right behind a line, what is missing is on the next one.
        (torn, format!(":{}:", 1 + half.matches('\n').count())),
        (edited, format!(":{}:", line(edited, "for-ever"))),
        (foreign, format!("belongs to uid {}", stranger.number())),
        (
            future,
            format!(":{}:3: is of version 2", line(future, "\"version\"")),
        ),
        (open, "can be written by others (mode 0666)".to_owned()),
    ];
    for (lease, words) in &expected {
        let name = format!("lease-{lease}.json");
        let (action, why) = of("record", &name);
        assert_eq!(action, "refuse");
        assert!(
            why.starts_with(&name) && why.contains(words),
            "{why}, not {words}"
        );
    }
    let table = dry_run(&world, &broker, &[]).stdout;
    assert!(table.lines().next().unwrap().starts_with("ACTION"), "{table}");
    assert!(table.contains("take over  program  eth0"), "{table}");

    broker.restart().unwrap();
    for (lease, words) in &expected {
        let name = format!("lease-{lease}.json");
        let told = |line: &str| (line.contains(&name) && line.contains(words)).then_some(());
        broker.process().wait_stderr(PATIENCE, told).unwrap();
        assert!(record(&world, *lease).exists(), "{name} is to stay");
    }
    assert!(!file(&world, "lease-99.json.new").exists());
    let listed: Vec<u64> = leases(&broker).iter().map(|lease| lease.lease).collect();
    assert_eq!(listed, [good]);
    let index = world.device(Side::Host).index;
    let map = pinned_map(&world, &broker, index).unwrap();
    assert_eq!(Vec::from_iter(filled_slots(&world, &map)), [1]);
    traffic.send_all(1, 0..100);
    assert_eq!(holder.receive(good, 1, 100, IDLE), Seen::only(1, 100));
    for queue in 2..7 {
        traffic.expect_at_stack(queue, 0..10);
    }
    // Its number is not given again, so that its file stays what it was.
    let anew = holder.hold("eth0:7");
    assert!(anew > open, "{anew}");
}

/// A record that was refused and is repaired later does not take a queue from who was granted it meanwhile.
#[test]
fn who_was_granted_a_queue_last_keeps_it() {
    let world = World::new().unwrap();
    let alice = Uid::take().unwrap();
    let mut broker = BrokerProcess::start(&world, &policy(&[(alice.number(), "1-7")])).unwrap();
    let traffic = Traffic::new(&world);
    let mut first = Puppet::start(&world, Side::Host, &alice.user());
    let old = first.hold("eth0:3");
    let set_mode = |mode| fs::set_permissions(record(&world, old), PermissionsExt::from_mode(mode)).unwrap();
    broker.kill().unwrap();
    set_mode(0o666);
    broker.restart().unwrap();
    drop(first);
    let mut second = Puppet::start(&world, Side::Host, &alice.user());
    let new = second.hold("eth0:3");
    broker.kill().unwrap();
    set_mode(0o600);
    broker.restart().unwrap();
    let listed: Vec<u64> = leases(&broker).iter().map(|lease| lease.lease).collect();
    assert_eq!(listed, [new]);
    traffic.send_all(3, 0..100);
    assert_eq!(second.receive(new, 3, 100, IDLE), Seen::only(3, 100));
    let why = format!("lease-{old}.json: queue 3 of eth0 is lease {new}'s, too");
    let told = |line: &str| line.contains(&why).then_some(());
    broker.process().wait_stderr(PATIENCE, told).unwrap();
}

#[test]
fn purge_takes_down_everything_of_the_brokers() {
    let world = World::builder().peers(2).build().unwrap();
    let alice = Uid::take().unwrap();
    let mut leaks = Leaks::snapshot(&world).unwrap();
    let rules = policy(&[(alice.number(), "1-7")]) + &interface("eth1", "");
    let mut broker = BrokerProcess::start(&world, &rules).unwrap();
    let traffic = Traffic::new(&world);
    let mut holder = Puppet::start(&world, Side::Host, &alice.user());
    let lease = holder.hold("eth0:3");
    holder.hold("eth1:3");
    leaks.expect_objects_gone(&world, broker.process().pid()).unwrap();
    let refused = purge(&world, &[]);
    assert_ne!(refused.code, Some(0), "{refused:?}");
    assert!(refused.stderr.contains("a broker is running"), "{refused:?}");

    broker.kill().unwrap();
    fs::write(file(&world, "of-somebody-else"), "").unwrap();
    let before = everything(&world);
    let told = pieces(&purge(&world, &["--dry-run", "--json"]));
    assert_eq!(everything(&world), before);
    traffic.send_all(3, 0..100);
    assert_eq!(holder.receive(lease, 3, 100, IDLE), Seen::only(3, 100));
    let of = |kind: &str, name: &str| told[&(kind.to_owned(), name.to_owned())].clone();
    for name in ["eth0", "eth1"] {
        assert_eq!(of("program", name).0, "remove");
    }
    let (action, why) = of("record", &format!("lease-{lease}.json"));
    assert_eq!(action, "remove");
    assert!(
        why.contains(&format!("pid {} of uid {}", holder.pid(), alice.number())),
        "{why}"
    );
    assert_eq!(of("file", "control.sock").0, "remove");
    assert_eq!(of("file", "of-somebody-else").0, "leave");

    let done = purge(&world, &[]);
    assert_eq!(done.code, Some(0), "{done:?}");
    traffic.expect_at_stack(3, 100..110);
    assert!(file(&world, "of-somebody-else").exists());
    fs::remove_file(file(&world, "of-somebody-else")).unwrap();
    drop(holder);
    leaks.wait_none(&world, PATIENCE).unwrap();
    assert_eq!(purge(&world, &[]).stdout, "nothing is left\n");
    broker.restart().unwrap();
    wait_until("nothing was taken over", || leases(&broker).is_empty());
}
