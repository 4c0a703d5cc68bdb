//! What somebody has taken away of what a broker goes by: no lease ends and no slot is emptied without a word that is true.

use std::fs;

use e2e::broker::BrokerProcess;
use e2e::uids::Uid;
use e2e::world::{Side, World};

use crate::lease_scene::{PATIENCE, Traffic, leases, policy, wait_event};
use crate::puppet::{Puppet, Seen};
use crate::restart_scene::{
    dry_run, dry_run_by, filled_slots, pieces, pin, pinned_map, purge_by, record, records, wait_told,
};

#[test]
fn a_slot_without_a_record_is_emptied_and_told() {
    let world = World::new().unwrap();
    let alice = Uid::take().unwrap();
    let mut broker = BrokerProcess::start(&world, &policy(&[(alice.number(), "1-7")])).unwrap();
    let traffic = Traffic::new(&world);
    let mut holder = Puppet::start(&world, Side::Host, &alice.user());
    let (lost, kept) = (holder.hold("eth0:3"), holder.hold("eth0:4"));
    broker.kill().unwrap();
    fs::remove_file(record(&world, lost)).unwrap();
    let told = pieces(&dry_run(&world, &broker, &["--json"]));
    let slots: Vec<_> = told.iter().filter(|((kind, _), _)| kind == "slot").collect();
    let [((_, name), (action, why))] = &slots[..] else {
        panic!("{told:?}")
    };
    assert_eq!((&**name, &**action), ("eth0:3", "remove"), "{why}");
    // Nothing was changed by the look.
    let map = pinned_map(&world, &broker, world.device(Side::Host).index).unwrap();
    assert_eq!(Vec::from_iter(filled_slots(&world, &map)), [3, 4]);

    broker.restart().unwrap();
    let listed: Vec<u64> = leases(&broker).iter().map(|lease| lease.lease).collect();
    assert_eq!(listed, [kept]);
    assert_eq!(Vec::from_iter(filled_slots(&world, &map)), [4]);
    let line = broker.wait_audit(PATIENCE, |line| line["event"] == "slot-emptied");
    let line = line.unwrap();
    assert_eq!(
        (&line["interface"], &line["queues"]),
        (&"eth0".into(), &serde_json::json!([3])),
        "{line}"
    );
    wait_told(
        &broker,
        "queue 3: a socket is in its slot, and no record says whose",
    );
    traffic.expect_at_stack(3, 0..10);
    // Where there is nothing to tell, nothing is told.
    broker.kill().unwrap();
    broker.restart().unwrap();
    wait_told(&broker, "took over leases: 1, devices: 1");
    let emptied = |line: &serde_json::Value| line["event"] == "slot-emptied";
    assert!(!broker.audit().unwrap().iter().any(emptied));
}

#[test]
fn a_link_pin_that_was_removed_is_named_and_no_device_is_called_gone() {
    let world = World::new().unwrap();
    let alice = Uid::take().unwrap();
    let mut broker = BrokerProcess::start(&world, &policy(&[(alice.number(), "1-7")])).unwrap();
    let traffic = Traffic::new(&world);
    let mut holder = Puppet::start(&world, Side::Host, &alice.user());
    let lease = holder.hold("eth0:3");
    broker.kill().unwrap();
    let name = format!("link-{}", world.device(Side::Host).index);
    fs::remove_file(pin(&world, &broker, &name)).unwrap();
    let expected = format!("the XDP program of eth0 is lost, since {name} is missing");
    let told = pieces(&dry_run(&world, &broker, &["--json"]));
    let (action, why) = &told[&("lease".to_owned(), lease.to_string())];
    assert_eq!(action, "end");
    assert!(why.contains(&expected), "{why}");

    broker.restart().unwrap();
    assert_eq!(wait_event(&broker, "ended", lease)["reason"], "restarted");
    wait_event(&broker, "freed", lease);
    // Both in one line, and as what it is.
    let is_told = |line: &str| {
        let all = ["WARN", &format!("lease {lease} of eth0:3, "), &expected];
        all.iter().all(|words| line.contains(words)).then_some(())
    };
    broker.process().wait_stderr(PATIENCE, is_told).unwrap();
    wait_told(&broker, "eth0: took down what another broker had left: link-");
    traffic.expect_at_stack(3, 0..10);
    holder.close(lease);
    let next = holder.hold_when_free("eth0:3");
    assert!(next > lease, "{next}");
}

#[test]
fn another_bpf_dir_loses_no_lease() {
    const OTHER: &str = "/run/bpf/other";

    let world = World::new().unwrap();
    let alice = Uid::take().unwrap();
    let mut broker = BrokerProcess::start(&world, &policy(&[(alice.number(), "1-7")])).unwrap();
    let traffic = Traffic::new(&world);
    let mut holder = Puppet::start(&world, Side::Host, &alice.user());
    let held = [holder.hold("eth0:3"), holder.hold("eth0:4")];
    let map = pinned_map(&world, &broker, world.device(Side::Host).index).unwrap();
    broker.kill().unwrap();
    let question = "was the broker before started with another --bpf-dir?";
    // The directory is not there, and would be made.
    let told = pieces(&dry_run_by(&world, &broker, OTHER, &["--json"]));
    for lease in held {
        let (action, why) = &told[&("lease".to_owned(), lease.to_string())];
        assert_eq!(action, "leave");
        assert!(why.contains("eth0 runs") && why.contains(question), "{why}");
    }
    let refused_purge = |words: &str| {
        for more in [&["--dry-run"][..], &[]] {
            let refused = purge_by(&world, OTHER, more);
            assert_eq!((refused.code, &*refused.stdout), (Some(78), ""), "{refused:?}");
            assert!(refused.stderr.contains(words), "{refused:?}");
        }
    };
    let words = "eth0 runs a broker's XDP program, by lease";
    refused_purge(words);

    broker.will_pin_in("other");
    broker.restart().unwrap();
    for lease in held {
        let is_told = |line: &str| {
            let all = ["ERROR", &format!("lease {lease} of eth0:"), question];
            all.iter().all(|words| line.contains(words)).then_some(())
        };
        broker.process().wait_stderr(PATIENCE, is_told).unwrap();
    }
    assert_eq!(leases(&broker).len(), 0);
    let refusal = holder.acquire("eth0:5").unwrap_err();
    assert_eq!(refusal.kind, "DeviceUnavailable", "{refusal:?}");
    assert_eq!(Vec::from_iter(records(&world, &broker)), held);
    broker.kill().unwrap();
    // It is there, and nothing of that device in it.
    refused_purge(words);
    assert_eq!(Vec::from_iter(filled_slots(&world, &map)), [3, 4]);

    broker.will_pin_in("xsk-broker");
    broker.restart().unwrap();
    let listed: Vec<u64> = leases(&broker).iter().map(|lease| lease.lease).collect();
    assert_eq!(listed, held);
    wait_told(&broker, "took over leases: 2, devices: 1");
    traffic.send_all(3, 0..10);
    assert_eq!(holder.receive(held[0], 3, 10, PATIENCE), Seen::only(3, 10));
}
