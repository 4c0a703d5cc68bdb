//! Records that are not what a broker wrote are refused by name, the others are taken over; `serve --dry-run` says so
//! before, and `purge` takes down all of it.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::Path;
use std::time::Duration;

use e2e::broker::BrokerProcess;
use e2e::leaks::Leaks;
use e2e::uids::Uid;
use e2e::world::{Side, World};
use xsk_client::wire::LeaseState;

use crate::lease_scene::{PATIENCE, Traffic, interface, leases, policy, state_of, wait_event, wait_until};
use crate::puppet::{Puppet, Seen};
use crate::restart_scene::{dry_run, file, filled_slots, pieces, pinned_map, purge, record, wait_told};

fn set_mode(file: &Path, mode: u32) {
    fs::set_permissions(file, PermissionsExt::from_mode(mode)).unwrap();
}

/// Repairs a record that was refused, and gives it its name again.
fn put_back(world: &World, lease: u64) {
    let aside = file(world, &format!("lease-{lease}.json.refused"));
    set_mode(&aside, 0o600);
    fs::rename(aside, record(world, lease)).unwrap();
}

const IDLE: Duration = Duration::from_secs(5);

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
    set_mode(&record(&world, open), 0o666);
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
        let aside = format!("{name}.refused");
        let remove = format!("/{aside}`");
        let told = |line: &str| (line.contains(&remove) && line.contains(words)).then_some(());
        broker.process().wait_stderr(PATIENCE, told).unwrap();
        assert!(
            file(&world, &aside).exists(),
            "{name} is to stay, by another name"
        );
        assert!(!record(&world, *lease).exists(), "{name}");
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
    broker.kill().unwrap();
    let told = pieces(&dry_run(&world, &broker, &["--json"]));
    let purged = pieces(&purge(&world, &["--json"]));
    for (lease, _) in &expected {
        let aside = ("record".to_owned(), format!("lease-{lease}.json.refused"));
        assert_eq!(told[&aside].0, "leave");
        let (action, why) = &purged[&aside];
        assert_eq!(action, "remove");
        assert!(why.starts_with("refused when a broker started: "), "{why}");
    }
}

/// A record that was refused, and is repaired and put back later, does not take a queue from who was granted it meanwhile.
#[test]
fn who_was_granted_a_queue_last_keeps_it() {
    let world = World::new().unwrap();
    let alice = Uid::take().unwrap();
    let mut broker = BrokerProcess::start(&world, &policy(&[(alice.number(), "1-7")])).unwrap();
    let traffic = Traffic::new(&world);
    let mut first = Puppet::start(&world, Side::Host, &alice.user());
    let old = first.hold("eth0:3");
    broker.kill().unwrap();
    set_mode(&record(&world, old), 0o666);
    broker.restart().unwrap();
    drop(first);
    let mut second = Puppet::start(&world, Side::Host, &alice.user());
    let new = second.hold("eth0:3");
    broker.kill().unwrap();
    put_back(&world, old);
    broker.restart().unwrap();
    let listed: Vec<u64> = leases(&broker).iter().map(|lease| lease.lease).collect();
    assert_eq!(listed, [new]);
    traffic.send_all(3, 0..100);
    assert_eq!(second.receive(new, 3, 100, IDLE), Seen::only(3, 100));
    wait_told(&broker, &format!("lease-{old}.json:"));
    wait_told(&broker, &format!("queue 3 of eth0 is lease {new}'s, too"));
}

/// The slots of a refused record's lease were emptied: whatever becomes of the file, it is no lease any more.
#[test]
fn what_was_refused_once_is_not_taken_over_when_it_is_repaired() {
    let world = World::new().unwrap();
    let alice = Uid::take().unwrap();
    let mut broker = BrokerProcess::start(&world, &policy(&[(alice.number(), "1-7")])).unwrap();
    let traffic = Traffic::new(&world);
    let mut holder = Puppet::start(&world, Side::Host, &alice.user());
    let lease = holder.hold("eth0:3");
    broker.kill().unwrap();
    set_mode(&record(&world, lease), 0o666);
    broker.restart().unwrap();
    assert_eq!(state_of(&broker, lease), None);
    traffic.expect_at_stack(3, 0..10);
    broker.kill().unwrap();
    let aside = file(&world, &format!("lease-{lease}.json.refused"));
    set_mode(&aside, 0o600);
    broker.restart().unwrap();
    assert_eq!(state_of(&broker, lease), None);
    assert!(aside.exists());

    // Back in its place by hand, it speaks of a slot that is empty.
    broker.kill().unwrap();
    put_back(&world, lease);
    let told = pieces(&dry_run(&world, &broker, &["--json"]));
    let (action, why) = &told[&("lease".to_owned(), lease.to_string())];
    assert_eq!(action, "end");
    assert!(why.contains("the slot of queue 3 is empty"), "{why}");
    broker.restart().unwrap();
    assert_eq!(wait_event(&broker, "ended", lease)["reason"], "restarted");
    wait_told(&broker, "ends: the slot of queue 3 is empty");
    // Its holder has the queue still, by a socket that receives nothing.
    assert_eq!(state_of(&broker, lease), Some(LeaseState::Lingering));
    traffic.expect_at_stack(3, 10..20);
    holder.close(lease);
    wait_until("its queue is free", || state_of(&broker, lease).is_none());
    assert!(holder.hold("eth0:3") > lease);
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
    for more in [&[] as &[&str], &["--dry-run"]] {
        let refused = purge(&world, more);
        assert_eq!((refused.code, &*refused.stdout), (Some(75), ""), "{refused:?}");
        assert!(refused.stderr.contains("a broker is running"), "{refused:?}");
    }

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
