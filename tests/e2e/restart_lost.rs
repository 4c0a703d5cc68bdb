//! What somebody has taken away of what a broker goes by: no lease ends and no slot is emptied without a word that is true.

use std::fs;

use e2e::broker::BrokerProcess;
use e2e::uids::Uid;
use e2e::world::{Side, World};

use crate::lease_scene::{PATIENCE, Traffic, leases, policy, wait_event};
use crate::puppet::Puppet;
use crate::restart_scene::{dry_run, filled_slots, pieces, pin, pinned_map, record, wait_told};

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
    wait_told(&broker, "took over 1 leases");
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
    wait_told(&broker, &expected);
    traffic.expect_at_stack(3, 0..10);
    holder.close(lease);
    let next = holder.hold_when_free("eth0:3");
    assert!(next > lease, "{next}");
}
