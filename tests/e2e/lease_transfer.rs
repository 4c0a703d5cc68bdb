//! `Transfer` moves a lease to exactly the process that is meant, and to no uid that the rule does not name.

use std::os::fd::AsFd;

use e2e::broker::BrokerProcess;
use e2e::holder::Holder;
use e2e::raw_client::{INTERFACE, RawClient};
use e2e::skip::Skip;
use e2e::uids::Uid;
use e2e::world::{Side, World};
use rustix::process::{DumpableBehavior, set_dumpable_behavior};
use serde_json::{Value, json};
use xsk_client::ProcessId;
use xsk_client::wire::{Change, EndReason, Lease, LeaseState};

use crate::lease_monitor::{event, monitor};
use crate::lease_scene::{
    PATIENCE, allow, allow_with, interface, leases, operator, state_of, wait_event, wait_until,
};
use crate::puppet::Puppet;

/// alice, who may give her leases to bob, and has one queue at a time; bob, who may have no queue himself; and carol.
struct Scene {
    world: World,
    alice: Uid,
    bob: Uid,
    carol: Uid,
}

impl Scene {
    fn new() -> Self {
        let [alice, bob, carol] = [(); 3].map(|()| Uid::take().unwrap());
        Self {
            world: World::new().unwrap(),
            alice,
            bob,
            carol,
        }
    }

    fn broker(&self) -> BrokerProcess<'_> {
        let more = format!("limits = {{ queues = 1 }}\ntransfer-to = {}", self.bob.number());
        let text = interface("eth0", "")
            + &allow_with(self.alice.number(), "1-7", &more)
            + &allow(self.carol.number(), "1-7");
        BrokerProcess::start(&self.world, &text).unwrap()
    }

    fn puppet(&self, uid: &Uid) -> Puppet {
        Puppet::start(&self.world, Side::Host, &uid.user())
    }

    fn sleeper(&self, uid: &Uid) -> Holder {
        Holder::body(&self.world, Side::Host, &uid.user(), "sleep_long", &[]).unwrap()
    }
}

fn only(broker: &BrokerProcess<'_>) -> Lease {
    let mut leases = leases(broker);
    assert_eq!(leases.len(), 1, "{leases:?}");
    leases.remove(0)
}

#[test]
fn a_lease_moves_and_its_requester_stays_charged() {
    let scene = Scene::new();
    let broker = scene.broker();
    let (mut manager, mut vmm) = (scene.puppet(&scene.alice), scene.puppet(&scene.bob));
    let (mut of_alice, _) = monitor(&broker, &scene.alice);
    let (mut of_bob, seen) = monitor(&broker, &scene.bob);
    assert_eq!(seen, 0);
    let lease = manager.hold("eth0:3");
    let reply = manager.transfer(lease, vmm.pid()).unwrap();
    assert_eq!(reply["holder"]["pid"], vmm.pid());
    assert_eq!(reply["holder"]["uid"], scene.bob.number());
    assert_eq!(
        wait_event(&broker, "transferred", lease)["uid"],
        scene.alice.number()
    );

    let listed = only(&broker);
    assert_eq!(
        (listed.requester.uid, listed.holder.uid),
        (scene.alice.number(), scene.bob.number())
    );
    assert_eq!((listed.holder.pid, listed.state), (vmm.pid(), LeaseState::Active));
    // Both hear of it: who asked for it, and who has it.
    event(&mut of_alice);
    event(&mut of_alice);
    for monitor in [&mut of_alice, &mut of_bob] {
        let moved = event(monitor);
        assert_eq!(
            (moved.lease, moved.change, moved.holder.pid),
            (lease, Change::Holder, vmm.pid())
        );
    }
    let full = manager.acquire("eth0:4").unwrap_err();
    assert_eq!(
        (full.kind.as_str(), &full.details["resource"]),
        ("QuotaExceeded", &json!("queues"))
    );

    // It lives and dies with its new holder.
    manager.kill();
    vmm.activate(lease).unwrap();
    let mut manager = scene.puppet(&scene.alice);
    assert_eq!(manager.acquire("eth0:4").unwrap_err().kind, "QuotaExceeded");
    assert_eq!(state_of(&broker, lease), Some(LeaseState::Active));
    vmm.kill();
    assert_eq!(wait_event(&broker, "ended", lease)["reason"], "holder-exited");
    for monitor in [&mut of_alice, &mut of_bob] {
        let mut last = event(monitor);
        while last.state != LeaseState::Freed {
            last = event(monitor);
        }
        assert_eq!((last.lease, last.reason), (lease, Some(EndReason::HolderExited)));
    }
    manager.acquire("eth0:4").unwrap();
}

#[test]
fn nobody_else_can_be_meant() {
    let scene = Scene::new();
    let broker = scene.broker();
    let (mut alice, mut bob, mut carol) = (
        scene.puppet(&scene.alice),
        scene.puppet(&scene.bob),
        scene.puppet(&scene.carol),
    );
    let (lease, of_carol) = (alice.hold("eth0:3"), carol.hold("eth0:5"));
    let meant = ProcessId::of(pidfd_of(bob.pid()).as_fd())
        .unwrap()
        .transfer_of(lease);
    let good = serde_json::to_value(meant).unwrap();
    let with = |member: &str, value: Value| {
        let mut call = good.clone();
        call[member] = value;
        call
    };
    let inode = meant.pidfd_inode.unwrap();
    let dead = {
        let mut process = scene.sleeper(&scene.bob);
        let call = ProcessId::of(process.process().pidfd().as_fd())
            .unwrap()
            .transfer_of(lease);
        process.kill().unwrap();
        serde_json::to_value(call).unwrap()
    };
    let mut without = good.clone();
    without.as_object_mut().unwrap().remove("pidfdInode");
    without.as_object_mut().unwrap().remove("startTicks");
    let cases = [
        (
            with("startTicks", json!(meant.start_ticks.unwrap() + 1)),
            "NoSuchProcess",
        ),
        (dead, "NoSuchProcess"),
        (with("pid", json!(0)), "NoSuchProcess"),
        (with("pid", json!(u32::MAX)), "NoSuchProcess"),
        (with("pid", json!(-1)), "InvalidRequest"),
        // Another process of bob's, or anybody's, with the numbers of this one.
        (with("pid", json!(1)), "NoSuchProcess"),
        (without, "InvalidRequest"),
        (with("lease", json!(of_carol)), "NoSuchLease"),
        (with("lease", json!(999)), "NoSuchLease"),
        (with("more", json!(true)), "InvalidRequest"),
    ];
    for (call, expected) in cases {
        let failure = alice.call("Transfer", call.clone()).unwrap_err();
        assert_eq!(failure.kind, expected, "{call}: {failure:?}");
    }
    // The same inode for all of them is how kernels before 6.9 have it.
    if pidfds_are_unique() {
        let failure = alice
            .call("Transfer", with("pidfdInode", json!(inode + 1)))
            .unwrap_err();
        assert_eq!(failure.kind, "NoSuchProcess");
        assert!(failure.text.contains("pidfdInode differs"), "{}", failure.text);
    }
    // Of other uids than the rule names: a stranger's, root's, and her own.
    for pid in [carol.pid(), std::process::id(), alice.pid()] {
        let failure = alice.transfer(lease, pid).unwrap_err();
        assert_eq!(failure.kind, "Denied", "{failure:?}");
        assert!(failure.text.contains("transfer-to"), "{}", failure.text);
    }
    // Who asks must have it: bob is allowed to get it, not to take it, and carol's rule names nobody.
    assert_eq!(bob.transfer(lease, bob.pid()).unwrap_err().kind, "NoSuchLease");
    assert_eq!(carol.transfer(of_carol, bob.pid()).unwrap_err().kind, "Denied");
    let untouched: Vec<u32> = leases(&broker).iter().map(|lease| lease.holder.pid).collect();
    assert_eq!(untouched, [alice.pid(), carol.pid()]);

    alice.call("Transfer", good.clone()).unwrap();
    assert_eq!(
        alice.call("Transfer", good).unwrap_err().kind,
        "NoSuchLease",
        "it has given it away"
    );
    assert_eq!(alice.activate(lease).unwrap_err().kind, "NoSuchLease");
    alice.release(lease);
    assert_eq!(
        state_of(&broker, lease),
        Some(LeaseState::Active),
        "nor can it release it"
    );
    // The new holder may pass it on among those that the rule names.
    let second = scene.puppet(&scene.bob);
    bob.transfer(lease, second.pid()).unwrap();
    bob.kill();
    carol.activate(of_carol).unwrap();
    assert_eq!(state_of(&broker, lease), Some(LeaseState::Active));
}

/// A pid is given to another process, of a uid that would be allowed: it is not the one that was meant.
#[test]
fn a_pid_that_was_reused_is_another_process() {
    let scene = Scene::new();
    let broker = scene.broker();
    let mut alice = scene.puppet(&scene.alice);
    let lease = alice.hold("eth0:3");
    const NEXT_PID: &str = "/proc/sys/kernel/ns_last_pid";
    if let Err(error) = std::fs::OpenOptions::new().write(true).open(NEXT_PID) {
        let probe = format!("open({NEXT_PID}): {error}");
        Skip::KernelLacks { probe }.report().unwrap();
        return;
    }
    let (mut tries, mut reused) = (0, None);
    while reused.is_none() {
        tries += 1;
        assert!(tries < 200, "no pid is given twice");
        let mut first = scene.sleeper(&scene.bob);
        let (pid, meant) = (
            first.pid(),
            ProcessId::of(first.process().pidfd().as_fd()).unwrap(),
        );
        first.kill().unwrap();
        drop(first);
        std::fs::write(NEXT_PID, (pid - 1).to_string()).unwrap();
        let second = scene.sleeper(&scene.bob);
        reused = (second.pid() == pid).then_some((meant, second));
    }
    let (meant, second) = reused.unwrap();
    println!("pid {} was given twice after {tries} tries", second.pid());
    let call = serde_json::to_value(meant.transfer_of(lease)).unwrap();
    let failure = alice.call("Transfer", call).unwrap_err();
    assert_eq!(failure.kind, "NoSuchProcess", "{failure:?}");
    assert!(
        failure.text.contains("another one than was named"),
        "{}",
        failure.text
    );
    assert_eq!(only(&broker).holder.pid, alice.pid());
    // The one that has the pid now can be meant, too.
    alice.transfer(lease, second.pid()).unwrap();
    assert_eq!(only(&broker).holder.pid, second.pid());
}

/// A body: a process that nobody may look into.
pub(crate) fn undumpable(_arguments: &[String]) {
    set_dumpable_behavior(DumpableBehavior::NotDumpable).unwrap();
    println!("undumpable");
    std::thread::sleep(std::time::Duration::from_secs(600));
}

/// Of a process the broker needs what everybody may read, even where it could not be traced.
#[test]
fn a_process_that_cannot_be_looked_into_can_hold_a_lease() {
    let scene = Scene::new();
    let broker = scene.broker();
    let mut alice = scene.puppet(&scene.alice);
    let lease = alice.hold("eth0:3");
    let mut vmm = Holder::body(&scene.world, Side::Host, &scene.bob.user(), "undumpable", &[]).unwrap();
    vmm.wait_line("undumpable", PATIENCE).unwrap();
    alice.transfer(lease, vmm.pid()).unwrap();
    assert_eq!(only(&broker).holder.pid, vmm.pid());
    vmm.kill().unwrap();
    assert_eq!(wait_event(&broker, "ended", lease)["reason"], "holder-exited");
    alice.close(lease);
    wait_until("its queue is free", || leases(&broker).is_empty());
}

fn pidfd_of(pid: u32) -> std::os::fd::OwnedFd {
    use rustix::process::{Pid, PidfdFlags, pidfd_open};
    pidfd_open(
        Pid::from_raw(i32::try_from(pid).unwrap()).unwrap(),
        PidfdFlags::empty(),
    )
    .unwrap()
}

fn pidfds_are_unique() -> bool {
    let inode = |pid| rustix::fs::fstat(pidfd_of(pid)).unwrap().st_ino;
    inode(std::process::id()) != inode(1)
}

/// The reply to `Acquire` waits until its client has read an earlier one. Meanwhile the lease moves.
#[test]
fn a_reply_that_comes_too_late_neither_ends_nor_gives_what_has_moved() {
    let scene = Scene::new();
    let broker = scene.broker();
    let connector = broker.connector(&scene.alice).unwrap();
    let connect = || RawClient::connect(&connector, &broker.paths().socket()).unwrap();
    let mut vmm = scene.puppet(&scene.bob);
    // So that it has its connection.
    vmm.acquire("eth0:3").unwrap_err();
    let mut other = connect();
    let acquire = json!({ "interface": "eth0", "queues": [3], "sockets": "prepared" });
    let mut both = Vec::new();
    for (method, parameters) in [("ListLeases", json!({})), ("Acquire", acquire)] {
        let call = json!({ "method": format!("{INTERFACE}.{method}"), "parameters": parameters });
        both.extend_from_slice(format!("{call}\0").as_bytes());
    }
    for reads in [true, false] {
        let mut late = connect();
        late.send(&both).unwrap();
        wait_until("it is granted", || leases(&broker).len() == 1);
        let lease = only(&broker).lease;
        let to = ProcessId::of(pidfd_of(vmm.pid()).as_fd())
            .unwrap()
            .transfer_of(lease);
        let moved = other
            .call("Transfer", &serde_json::to_value(to).unwrap())
            .unwrap();
        assert_eq!(moved["parameters"]["holder"]["pid"], vmm.pid(), "{moved}");
        if reads {
            late.receive().unwrap().unwrap();
            let refused = late.receive().unwrap().unwrap();
            assert_eq!(refused["error"], format!("{INTERFACE}.NoSuchLease"), "{refused}");
        }
        drop(late);
        wait_until("its connection is closed", || {
            operator(&broker).get_status().unwrap().connections == 2
        });
        assert_eq!(only(&broker).holder.pid, vmm.pid());
        vmm.release(lease);
        wait_until("it has ended", || leases(&broker).is_empty());
    }
}
