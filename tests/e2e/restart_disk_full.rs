//! A run directory in which nothing more can be written: what is held goes on, nothing new is granted, nothing that ended
//! comes back.

use std::fs;
use std::io::Write;
use std::time::Duration;

use e2e::broker::BrokerProcess;
use e2e::uids::Uid;
use e2e::world::{Side, World};
use rustix::mount::{MountFlags, mount};
use serde_json::{Value, json};
use xsk_client::wire::LeaseState;

use crate::lease_scene::{
    PATIENCE, Traffic, allow_with, interface, leases, operator, state_of, wait_event, wait_until,
};
use crate::puppet::{Puppet, Seen};

const RUN_DIR: &str = "/run/xsk-broker";
const IDLE: Duration = Duration::from_secs(5);

/// A file system of a few pages in the place of the run directory.
fn mount_small(world: &World) {
    let small = || {
        fs::create_dir(RUN_DIR).unwrap();
        mount(
            "tmpfs",
            RUN_DIR,
            "tmpfs",
            MountFlags::empty(),
            c"size=64k,mode=0755",
        )
        .unwrap();
    };
    world.run_in(Side::Host, small).unwrap();
}

/// Leaves no byte free there.
fn fill(world: &World) {
    let fill = || {
        let mut filler = fs::File::create(format!("{RUN_DIR}/filler")).unwrap();
        while let Ok(bytes) = filler.write(&[b'x'; 4096]) {
            assert!(bytes > 0);
        }
    };
    world.run_in(Side::Host, fill).unwrap();
}

fn make_room(world: &World) {
    let remove = || fs::remove_file(format!("{RUN_DIR}/filler")).unwrap();
    world.run_in(Side::Host, remove).unwrap();
}

fn names(world: &World) -> Vec<String> {
    let list = || -> Vec<String> {
        let entries = fs::read_dir(RUN_DIR).unwrap();
        let mut names: Vec<String> = entries
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .filter(|name| name.starts_with("lease-"))
            .collect();
        names.sort();
        names
    };
    world.run_in(Side::Host, list).unwrap()
}

#[test]
fn a_journal_that_cannot_be_written_loses_nothing_and_grants_nothing() {
    let world = World::new().unwrap();
    mount_small(&world);
    let [alice, bob] = [(); 2].map(|()| Uid::take().unwrap());
    let more = "activate-within-ms = 60000\n";
    let rules = [&alice, &bob].map(|uid| allow_with(uid.number(), "1-7", more));
    let text = interface("eth0", "") + &rules.concat();
    let mut broker = BrokerProcess::start(&world, &text).unwrap();
    let traffic = Traffic::new(&world);
    let mut holder = Puppet::start(&world, Side::Host, &alice.user());
    let active = holder.hold("eth0:3");
    let pending = holder.acquire("eth0:4").unwrap();
    holder.bind(pending).unwrap();
    fill(&world);

    // Nothing new: the log says which call failed, on which file, and why.
    let mut other = Puppet::start(&world, Side::Host, &bob.user());
    let refused = other.acquire("eth0:5").unwrap_err();
    assert_eq!(refused.kind, "Failed", "{refused:?}");
    let told = |line: &str| {
        let words = [RUN_DIR, "lease-", "No space left on device"];
        words.iter().all(|word| line.contains(word)).then_some(())
    };
    broker.process().wait_stderr(PATIENCE, told).unwrap();
    assert_eq!(leases(&broker).len(), 2);
    assert_eq!(names(&world).len(), 2, "{:?}", names(&world));
    // Nobody is charged for it.
    let status: Value = operator(&broker).call("GetStatus", &json!({})).unwrap();
    let quotas = status["quotas"].as_array().unwrap();
    let queues = quotas.iter().find(|quota| quota["resource"] == "queues").unwrap();
    assert_eq!(queues["inUse"], 2);
    traffic.expect_at_stack(5, 0..10);

    // What is not written down as active is not; it can be asked for again.
    assert_eq!(holder.activate(pending).unwrap_err().kind, "Failed");
    assert_eq!(state_of(&broker, pending), Some(LeaseState::HandedOver));
    traffic.expect_at_stack(4, 0..10);
    traffic.send_all(3, 0..50);
    assert_eq!(holder.receive(active, 3, 50, IDLE), Seen::only(3, 50));

    // An end is one, whatever can be written, and after a crash, too.
    let revoked = operator(&broker).revoke(active).unwrap();
    assert!(revoked.rx_stopped, "{revoked:?}");
    broker.kill().unwrap();
    broker.restart().unwrap();
    assert_ne!(state_of(&broker, active), Some(LeaseState::Active));
    traffic.expect_at_stack(3, 50..60);
    wait_event(&broker, "ended", pending);
    make_room(&world);
    holder.close(active);
    holder.close(pending);
    wait_until("its queue is free", || leases(&broker).is_empty());
    let anew = other.hold_when_free("eth0:3");
    traffic.send_all(3, 60..90);
    assert_eq!(other.receive(anew, 3, 30, IDLE), Seen::only(3, 30));
    assert!(broker.stop().unwrap().success());
}
