//! Records that somebody has edited so that they are right in themselves, and cannot be true: refused by name, with the line.
//! What nobody can contradict is believed: who may write there could do anything.

use std::fs;

use e2e::broker::BrokerProcess;
use e2e::service_manager::ServiceManager;
use e2e::uids::Uid;
use e2e::world::{Side, World};

use crate::lease_scene::{allow, interface, leases, policy, state_of, wait_until};
use crate::puppet::Puppet;
use crate::restart_scene::{dry_run, filled_slots, pieces, pinned_map, record, wait_told};

/// Edits the record of a lease: `from` becomes `to` in the first line after one that contains `after`. Gives its line.
fn edit(world: &World, lease: u64, after: &str, [from, to]: [&str; 2]) -> usize {
    let path = record(world, lease);
    let text = fs::read_to_string(&path).unwrap();
    let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
    let begin = lines.iter().position(|line| line.contains(after)).unwrap();
    let at = begin
        + lines[begin..]
            .iter()
            .position(|line| line.contains(from))
            .unwrap();
    lines[at] = lines[at].replace(from, to);
    fs::write(path, lines.join("\n")).unwrap();
    at + 1
}

#[test]
fn what_the_kernel_contradicts_is_refused_with_its_line() {
    let world = World::builder().peers(2).build().unwrap();
    let [alice, bob] = [(); 2].map(|()| Uid::take().unwrap());
    let rules = policy(&[(alice.number(), "1-7")]) + &interface("eth1", "");
    let mut broker = BrokerProcess::start(&world, &rules).unwrap();
    let mut holder = Puppet::start(&world, Side::Host, &alice.user());
    // Whose record is right, though it is the older one.
    let neighbour = holder.hold("eth1:4");
    let [good, holders, requesters, named, emptied] =
        [1, 2, 3, 4, 5].map(|queue| holder.hold(&format!("eth0:{queue}")));
    broker.kill().unwrap();
    let uids = [
        format!("\"uid\": {}", alice.number()),
        format!("\"uid\": {}", bob.number()),
    ];
    let uids = [&*uids[0], &*uids[1]];
    let [ours, theirs] = [world.wire(0), world.wire(1)].map(|wire| wire.host.index);
    let indexes = [
        format!("\"interfaceIndex\": {ours}"),
        format!("\"interfaceIndex\": {theirs}"),
    ];
    let not_his = format!(
        "process {} is not of uid {}, and never was",
        holder.pid(),
        bob.number()
    );
    edit(&world, named, "", [&indexes[0], &indexes[1]]);
    let name_line = fs::read_to_string(record(&world, named)).unwrap();
    let name_line = 1 + name_line
        .lines()
        .position(|line| line.contains("\"interface\""))
        .unwrap();
    let redirected = ["\"redirectedBefore\": 0", "\"redirectedBefore\": null"];
    // The line of the list: it is about all of them.
    let sockets_line = edit(&world, emptied, "\"sockets\": [", redirected) - 5;
    let expected = [
        (
            holders,
            edit(&world, holders, "\"holder\"", uids),
            not_his.clone(),
        ),
        (
            requesters,
            edit(&world, requesters, "\"requester\"", uids),
            not_his,
        ),
        (
            named,
            name_line,
            format!("eth0 has the index {ours}, not {theirs}"),
        ),
        (
            emptied,
            sockets_line,
            "an active lease that receives has a slot".to_owned(),
        ),
    ];
    let told = pieces(&dry_run(&world, &broker, &["--json"]));
    for (lease, line, words) in &expected {
        let name = format!("lease-{lease}.json");
        let (action, why) = &told[&("record".to_owned(), name.clone())];
        assert_eq!(action, "refuse", "{why}");
        assert!(
            why.starts_with(&format!("{name}:{line}:")) && why.contains(words),
            "{why}, not {line} {words}"
        );
    }
    broker.restart().unwrap();
    for (lease, line, words) in &expected {
        wait_told(&broker, &format!("lease-{lease}.json:{line}:"));
        wait_told(&broker, words);
    }
    let listed: Vec<u64> = leases(&broker).iter().map(|lease| lease.lease).collect();
    assert_eq!(listed, [neighbour, good]);
    let map = pinned_map(&world, &broker, ours).unwrap();
    assert_eq!(Vec::from_iter(filled_slots(&world, &map)), [1]);
}

#[test]
fn a_socket_that_the_service_manager_has_not_is_refused() {
    let world = World::new().unwrap();
    let alice = Uid::take().unwrap();
    let manager = ServiceManager::new(&world).unwrap();
    manager.set("FDSTORE", "16");
    let text = interface("eth0", "") + &allow(alice.number(), "1-7");
    let mut broker = BrokerProcess::builder()
        .service(manager.service())
        .start(&world, &text)
        .unwrap();
    let mut holder = Puppet::start(&world, Side::Host, &alice.user());
    let (edited, good) = (holder.hold("eth0:3"), holder.hold("eth0:4"));
    let names = [format!("xsk-{edited}-3"), format!("xsk-{good}-4")];
    manager
        .wait_names(&[&names[0], &names[1]], crate::lease_scene::PATIENCE)
        .unwrap();
    broker.kill().unwrap();
    edit(&world, edited, "\"sockets\": [", ["\"inode\": ", "\"inode\": 1"]);
    broker.restart().unwrap();
    wait_told(&broker, "the service manager has kept another socket for queue 3");
    let listed: Vec<u64> = leases(&broker).iter().map(|lease| lease.lease).collect();
    assert_eq!(listed, [good]);
    // What it has kept of the other one it lets go of.
    manager
        .wait_names(&[&names[1]], crate::lease_scene::PATIENCE)
        .unwrap();
}

#[test]
fn what_nobody_can_contradict_is_believed() {
    let world = World::builder().peers(2).build().unwrap();
    let alice = Uid::take().unwrap();
    let rules = policy(&[(alice.number(), "1-7")]) + &interface("eth1", "");
    let mut broker = BrokerProcess::start(&world, &rules).unwrap();
    let mut holder = Puppet::start(&world, Side::Host, &alice.user());
    let [ruled, renamed] = [1, 2].map(|queue| holder.hold(&format!("eth0:{queue}")));
    let moved = holder.hold("eth1:3");
    // Renamed while a broker runs: another device may have the former name from then on.
    let netlink = world.netlink(Side::Host);
    let [first, second] = [world.wire(0), world.wire(1)].map(|wire| wire.host.index);
    netlink.rename(second, "eth9").unwrap();
    wait_until("it was written down", || {
        let text = fs::read_to_string(record(&world, moved)).unwrap();
        text.contains("\"interface\": \"eth9\"")
    });
    broker.kill().unwrap();
    // And while none runs.
    netlink.rename(first, "eth1").unwrap();
    // A rule that there is not: what counts is whether today's policy gives the same.
    edit(
        &world,
        ruled,
        "\"terms\"",
        [&format!("uid-{}", alice.number()), "no-such-rule"],
    );
    let narrower = policy(&[(alice.number(), "1")]) + &interface("eth1", "") + &interface("eth9", "");
    broker.write_policy(&narrower).unwrap();
    broker.restart().unwrap();
    let now = leases(&broker);
    let not_allowed = |id| {
        let found = now.iter().find(|lease| lease.lease == id);
        found
            .unwrap_or_else(|| panic!("{id}: {now:?}"))
            .not_allowed
            .clone()
    };
    assert_eq!(not_allowed(ruled), None);
    for lease in [renamed, moved] {
        let why = not_allowed(lease).unwrap();
        assert!(why.contains(", not queue "), "{why}");
        assert!(state_of(&broker, lease).is_some());
    }
}
