//! A broker that is started again takes over what is held, and nobody's packets are lost by it.

use std::time::{Duration, Instant};

use e2e::bpf::{self, MapType};
use e2e::broker::BrokerProcess;
use e2e::leaks::Leaks;
use e2e::uids::Uid;
use e2e::world::{Side, World};
use serde_json::{Value, json};
use xsk_client::wire::{Direction, Interface, Lease, LeaseState, SocketKind};

use crate::lease_scene::{
    PATIENCE, Traffic, allow_kinds, allow_with, interface, leases, operator, policy, state_of, wait_event,
    wait_until,
};
use crate::puppet::{Order, Puppet, Seen};
use crate::restart_scene::{check, filled_slots, four_holders, pin, pinned_map, records, under_a_stream};

const IDLE: Duration = Duration::from_secs(5);

fn uids() -> [Uid; 4] {
    [(); 4].map(|()| Uid::take().unwrap())
}

fn policy_for<'u>(uids: impl IntoIterator<Item = &'u Uid>) -> String {
    let rules: Vec<(u32, &str)> = uids.into_iter().map(|uid| (uid.number(), "1-7")).collect();
    policy(&rules)
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort_unstable();
    times[times.len() / 2]
}

#[test]
fn holders_go_on_through_crashes_and_their_leases_are_taken_over() {
    const RESTARTS: usize = 10;
    let world = World::new().unwrap();
    let uids = uids();
    let mut leaks = Leaks::snapshot(&world).unwrap();
    let mut broker = BrokerProcess::start(&world, &policy_for(&uids)).unwrap();
    leaks.expect_objects_gone(&world, broker.process().pid()).unwrap();
    let traffic = Traffic::new(&world);
    let mut holders = four_holders(&world, &uids);
    let pids: Vec<u32> = holders.iter().map(|held| held.puppet.pid()).collect();
    let before = leases(&broker);
    let (packets, times) = under_a_stream(&traffic, &mut holders, || {
        let mut times = Vec::new();
        for _ in 0..RESTARTS {
            let killed = Instant::now();
            broker.kill().unwrap();
            broker.restart().unwrap();
            times.push(killed.elapsed());
            std::thread::sleep(Duration::from_millis(50));
            let now = leases(&broker);
            assert_eq!(now.iter().map(|lease| lease.holder.pid).collect::<Vec<_>>(), pids);
        }
        times
    });
    println!(
        "{packets} packets through {RESTARTS} crashes, none lost; SIGKILL to serving: median {} ms",
        median(times).as_millis()
    );
    let after = check(&world, &broker, &holders);
    for (before, after) in before.iter().zip(&after) {
        assert_eq!(
            (
                before.lease,
                &before.rule,
                before.queues[0].mode,
                before.queues[0].socket_inode
            ),
            (
                after.lease,
                &after.rule,
                after.queues[0].mode,
                after.queues[0].socket_inode
            ),
        );
        assert!(after.age_ms >= before.age_ms);
        // The XDP program's counts go on; the socket's own are its holder's alone now.
        assert!(after.queues[0].counters.redirected * 4 >= packets, "{after:?}");
    }

    // Each of them is a lease as any other: activated, asked for, released, revoked, ended with its holder.
    let [first, second, third, fourth] = &mut holders[..] else {
        panic!()
    };
    first.puppet.ask(&Order::Reconnect).unwrap();
    assert_eq!(
        first.puppet.activate(first.lease).unwrap(),
        json!({ "lease": first.lease, "sockets": [{ "queue": 1, "mode": "copy" }] })
    );
    let busy = second.puppet.acquire("eth0:1").unwrap_err();
    assert_eq!(busy.kind, "QueueBusy", "{busy:?}");
    first.puppet.release(first.lease);
    traffic.expect_at_stack(1, 0..10);
    assert_eq!(wait_event(&broker, "ended", first.lease)["reason"], "released");
    let revoked = operator(&broker).revoke(second.lease).unwrap();
    assert!(revoked.rx_stopped && revoked.tx_may_continue, "{revoked:?}");
    traffic.expect_at_stack(2, 0..10);
    third.puppet.kill();
    assert_eq!(
        wait_event(&broker, "ended", third.lease)["reason"],
        "holder-exited"
    );
    traffic.send_all(4, 0..100);
    assert_eq!(
        fourth.puppet.receive(fourth.lease, 4, 100, IDLE),
        Seen::only(4, 100)
    );
    for held in [first, second] {
        held.puppet.close(held.lease);
    }
    wait_until("three are free", || leases(&broker).len() == 1);
    let mut again = Puppet::start(&world, Side::Host, &uids[0].user());
    let lease = again.hold("eth0:1");
    assert!(
        before.iter().all(|before| before.lease < lease),
        "a number was used twice"
    );
    traffic.send_all(1, 0..100);
    assert_eq!(again.receive(lease, 1, 100, IDLE), Seen::only(1, 100));

    drop((again, holders));
    assert!(broker.stop().unwrap().success());
    leaks.wait_none(&world, PATIENCE).unwrap();
}

#[test]
fn a_stop_keeps_traffic_running_and_the_next_start_takes_over() {
    let world = World::new().unwrap();
    let uids = uids();
    let mut broker = BrokerProcess::start(&world, &policy_for(&uids)).unwrap();
    let traffic = Traffic::new(&world);
    let mut holders = four_holders(&world, &uids);
    let (packets, ()) = under_a_stream(&traffic, &mut holders, || {
        assert!(broker.stop().unwrap().success());
        std::thread::sleep(Duration::from_millis(300));
        broker.restart().unwrap();
        std::thread::sleep(Duration::from_millis(100));
    });
    println!("{packets} packets through a stop and a start, none lost");
    check(&world, &broker, &holders);
}

#[test]
fn no_number_is_given_twice() {
    let world = World::new().unwrap();
    let uid = Uid::take().unwrap();
    let mut broker = BrokerProcess::start(&world, &policy_for([&uid])).unwrap();
    let mut last = 0;
    for in_order in [true, false, true] {
        let mut holder = Puppet::start(&world, Side::Host, &uid.user());
        for _ in 0..3 {
            let lease = holder.acquire("eth0:3").unwrap();
            assert!(lease > last, "{lease} after {last}");
            last = lease;
            holder.release(lease);
            holder.close(lease);
        }
        // Nothing is left by which the next one could know.
        wait_until("its leases have ended", || leases(&broker).is_empty());
        match in_order {
            true => assert!(broker.stop().unwrap().success()),
            false => drop(broker.kill().unwrap()),
        }
        broker.restart().unwrap();
    }
    assert!(broker.stop().unwrap().success());
}

#[test]
fn what_was_not_activated_ends_and_can_be_had_anew() {
    let world = World::new().unwrap();
    let uids = [(); 3].map(|()| Uid::take().unwrap());
    let mut broker = BrokerProcess::start(&world, &policy_for(&uids)).unwrap();
    let traffic = Traffic::new(&world);
    let [mut handed_over, mut bound, mut active] = uids
        .each_ref()
        .map(|uid| Puppet::start(&world, Side::Host, &uid.user()));
    let not_bound = handed_over.acquire("eth0:2").unwrap();
    let not_activated = bound.acquire("eth0:3").unwrap();
    bound.bind(not_activated).unwrap();
    active.hold("eth0:4");
    broker.kill().unwrap();
    broker.restart().unwrap();
    for lease in [not_bound, not_activated] {
        assert_eq!(wait_event(&broker, "ended", lease)["reason"], "restarted");
    }
    // Of whom nothing is known, nothing is said.
    let accused = |line: &Value| line["event"] == "rogue-bind";
    assert!(!broker.audit().unwrap().iter().any(accused));
    assert_eq!(handed_over.activate(not_bound).unwrap_err().kind, "NoSuchLease");
    assert_eq!(bound.activate(not_activated).unwrap_err().kind, "NoSuchLease");
    traffic.expect_at_stack(2, 0..10);
    traffic.expect_at_stack(3, 0..10);
    // A socket is on the one queue, and none on the other.
    assert_eq!(state_of(&broker, not_activated), Some(LeaseState::Lingering));
    wait_until("the unbound one's queue is free", || {
        state_of(&broker, not_bound).is_none()
    });
    let anew = handed_over.hold("eth0:2");
    bound.close(not_activated);
    wait_until("the other one is free, too", || {
        state_of(&broker, not_activated).is_none()
    });
    let other = bound.hold("eth0:3");
    for (puppet, lease, queue) in [(&mut handed_over, anew, 2), (&mut bound, other, 3)] {
        traffic.send_all(queue, 0..100);
        assert_eq!(puppet.receive(lease, queue, 100, IDLE), Seen::only(queue, 100));
    }
}

#[test]
fn who_died_meanwhile_is_found_and_so_is_a_socket_that_was_closed() {
    let world = World::new().unwrap();
    let uids = uids();
    let mut broker = BrokerProcess::start(&world, &policy_for(&uids)).unwrap();
    let traffic = Traffic::new(&world);
    let mut holders = four_holders(&world, &uids);
    broker.kill().unwrap();
    holders[0].puppet.kill();
    let closed = holders[1].lease;
    holders[1].puppet.close(closed);
    // The kernel takes its time.
    std::thread::sleep(Duration::from_millis(200));
    broker.restart().unwrap();
    assert_eq!(
        wait_event(&broker, "ended", holders[0].lease)["reason"],
        "holder-exited"
    );
    assert_eq!(wait_event(&broker, "ended", closed)["reason"], "restarted");
    wait_until("two are left", || leases(&broker).len() == 2);
    assert_eq!(records(&world, &broker).len(), 2);
    for queue in [1, 2] {
        traffic.expect_at_stack(queue, 0..10);
    }
    check(&world, &broker, &holders[2..]);
    // One that dies later is watched as any other.
    holders[2].puppet.kill();
    assert_eq!(
        wait_event(&broker, "ended", holders[2].lease)["reason"],
        "holder-exited"
    );
}

#[test]
fn a_lease_that_has_moved_is_the_other_ones_after_a_restart() {
    let world = World::new().unwrap();
    let [manager, vm] = [(); 2].map(|()| Uid::take().unwrap());
    let more = format!("transfer-to = [{}]\n", vm.number());
    let rules = interface("eth0", "") + &allow_with(manager.number(), "1-7", &more);
    let mut broker = BrokerProcess::start(&world, &rules).unwrap();
    let mut from = Puppet::start(&world, Side::Host, &manager.user());
    let mut to = Puppet::start(&world, Side::Host, &vm.user());
    let lease = from.hold("eth0:3");
    from.transfer(lease, to.pid()).unwrap();
    broker.kill().unwrap();
    broker.restart().unwrap();
    let listed = leases(&broker).remove(0);
    assert_eq!((listed.holder.pid, listed.holder.uid), (to.pid(), vm.number()));
    assert_eq!(listed.requester.uid, manager.number());
    assert_eq!(from.activate(lease).unwrap_err().kind, "NoSuchLease");
    to.activate(lease).unwrap();
    to.kill();
    assert_eq!(wait_event(&broker, "ended", lease)["reason"], "holder-exited");
}

#[test]
fn kinds_and_orders_of_all_sorts_go_on() {
    let world = World::new().unwrap();
    let alice = Uid::take().unwrap();
    let more = "insert = \"at-grant\"\nactivate-within-ms = 60000\n";
    let kinds = allow_kinds(alice.number(), "1-3", &["prepared", "bound"], "")
        + &allow_kinds(alice.number(), "4-7", &["prepared", "bare"], more).replace("uid-", "at-grant-");
    let mut broker = BrokerProcess::start(&world, &(interface("eth0", "") + &kinds)).unwrap();
    let traffic = Traffic::new(&world);
    let mut holder = Puppet::start(&world, Side::Host, &alice.user());
    let bound = holder.hold_bound("eth0:1-2", Direction::RxTx);
    let bound = match bound {
        Ok(lease) => Some(lease),
        Err(failure) => {
            assert_eq!(failure.kind, "SocketKindUnsupported", "{failure:?}");
            println!("SKIP of kind bound: {}", failure.text);
            None
        }
    };
    // Its slot is filled from the grant on, and it is bound after the crash.
    let at_grant = holder.acquire_kind("eth0:4", SocketKind::Prepared).unwrap();
    let unbound = holder.acquire_kind("eth0:5", SocketKind::Prepared).unwrap();
    broker.kill().unwrap();
    broker.restart().unwrap();
    assert_eq!(state_of(&broker, at_grant), Some(LeaseState::HandedOver));
    assert_eq!(holder.activate(at_grant).unwrap_err().kind, "NotBound");
    holder.bind(at_grant).unwrap();
    holder.activate(at_grant).unwrap();
    assert_eq!(state_of(&broker, at_grant), Some(LeaseState::Active));
    traffic.send_all(4, 0..100);
    assert_eq!(holder.receive(at_grant, 4, 100, IDLE), Seen::only(4, 100));
    if let Some(lease) = bound {
        assert_eq!(state_of(&broker, lease), Some(LeaseState::Active));
        for queue in [1, 2] {
            traffic.send_all(queue, 0..100);
            assert_eq!(holder.receive(lease, queue, 100, IDLE), Seen::only(queue, 100));
        }
        holder.activate(lease).unwrap();
    }
    holder.release(unbound);
    traffic.expect_at_stack(5, 0..10);
}

#[test]
fn what_todays_policy_would_not_give_goes_on_and_is_listed_so() {
    let world = World::new().unwrap();
    let [alice, bob] = [(); 2].map(|()| Uid::take().unwrap());
    let mut broker = BrokerProcess::start(&world, &policy_for([&alice, &bob])).unwrap();
    let traffic = Traffic::new(&world);
    let [mut kept, mut outside] = [&alice, &bob].map(|uid| Puppet::start(&world, Side::Host, &uid.user()));
    let (kept_lease, outside_lease) = (kept.hold("eth0:3"), outside.hold("eth0:4"));
    broker.write_policy(&policy(&[(alice.number(), "1-3")])).unwrap();
    broker.kill().unwrap();
    broker.restart().unwrap();
    let now: Vec<Lease> = leases(&broker);
    let not_allowed = |id| {
        now.iter()
            .find(|lease| lease.lease == id)
            .unwrap()
            .not_allowed
            .clone()
    };
    assert_eq!(not_allowed(kept_lease), None);
    let why = not_allowed(outside_lease).unwrap();
    assert!(why.contains("no allow rule"), "{why}");
    traffic.send_all(4, 0..100);
    assert_eq!(outside.receive(outside_lease, 4, 100, IDLE), Seen::only(4, 100));
    outside.release(outside_lease);
    outside.close(outside_lease);
    wait_until("it is free", || leases(&broker).len() == 1);
    assert_eq!(outside.acquire("eth0:4").unwrap_err().kind, "Denied");
}

#[test]
fn what_is_not_ours_is_left_as_it_is() {
    let world = World::builder().peers(2).build().unwrap();
    let alice = Uid::take().unwrap();
    let rules = policy_for([&alice]) + &interface("eth1", "");
    let mut broker = BrokerProcess::start(&world, &rules).unwrap();
    broker.kill().unwrap();
    // Pins of somebody else's in our directory, under a name of his own and under one that could be ours.
    let map = bpf::create_map(MapType::Array, "foreign", 8, 1).unwrap();
    bpf::pin(&map, &pin(&world, &broker, "somebody-elses")).unwrap();
    let index = world.wire(1).host.index;
    bpf::pin(&map, &pin(&world, &broker, &format!("link-{index}"))).unwrap();
    broker.restart().unwrap();
    for name in ["somebody-elses".to_owned(), format!("link-{index}")] {
        let path = pin(&world, &broker, &name);
        assert!(path.exists(), "{name}");
        let told = |line: &str| line.contains(&name).then_some(());
        broker.process().wait_stderr(PATIENCE, told).unwrap();
        std::fs::remove_file(path).unwrap();
    }
}

#[test]
fn a_device_that_was_deleted_meanwhile_takes_its_leases_along() {
    let world = World::builder().peers(2).build().unwrap();
    let alice = Uid::take().unwrap();
    let rules = policy_for([&alice]) + &interface("eth1", "");
    let mut broker = BrokerProcess::start(&world, &rules).unwrap();
    let mut holder = Puppet::start(&world, Side::Host, &alice.user());
    let (stays, goes) = (holder.hold("eth0:3"), holder.hold("eth1:3"));
    broker.kill().unwrap();
    world
        .netlink(Side::Host)
        .delete(world.wire(1).host.index)
        .unwrap();
    broker.restart().unwrap();
    assert_eq!(wait_event(&broker, "ended", goes)["reason"], "device-gone");
    wait_event(&broker, "freed", goes);
    assert_eq!(state_of(&broker, goes), None);
    assert_eq!(state_of(&broker, stays), Some(LeaseState::Active));
    assert_eq!(records(&world, &broker).into_iter().collect::<Vec<_>>(), [stays]);
    let eth0: Vec<Interface> = operator(&broker).list_interfaces().unwrap().interfaces;
    assert_eq!(eth0[0].held, [3]);
    let index = world.device(Side::Host).index;
    let map = pinned_map(&world, &broker, index).unwrap();
    assert_eq!(filled_slots(&world, &map).into_iter().collect::<Vec<_>>(), [3]);
}
