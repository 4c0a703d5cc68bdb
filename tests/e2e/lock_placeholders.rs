//! `queue-lock = "placeholders"`: what was handed out unbound can be bound to what was granted, and to nothing else.

use std::time::{Duration, Instant};

use e2e::broker::BrokerProcess;
use e2e::ethtool::Channels;
use e2e::leaks::Leaks;
use e2e::raw_xsk::RawXsk;
use e2e::uids::Uid;
use e2e::world::{Side, World};
use rustix::net::xdp::SocketAddrXdpFlags;
use rustix::process::Signal;
use xsk_client::CallError;
use xsk_client::sys::{Mapping, Prefault};
use xsk_client::wire::{Acquire, BrokerError, LeaseState, QueueLock, SocketKind, UmemShape};

use crate::bound_scene::needs_bound;
use crate::lease_scene::{PATIENCE, Traffic, allow_kinds, eth0, operator, state_of, wait_event, wait_until};
use crate::puppet::{Order, Puppet};
use crate::rogue::{Race, Rogue};

const QUEUES: u32 = 8;

fn policy(lock: &str, uids: &[&Uid], more: &str) -> String {
    let rules: String = uids
        .iter()
        .map(|uid| allow_kinds(uid.number(), "1-7", &["prepared", "bare"], more))
        .collect();
    format!("[interface.eth0]\nqueue-lock = \"{lock}\"\nreserved = \"0\"\n{rules}")
}

/// Nothing of ours is on any queue.
fn wait_all_free(world: &World) {
    let index = world.device(Side::Host).index;
    wait_until("every queue is free", || {
        let probe = world.run_in(Side::Host, || RawXsk::new(1)).unwrap().unwrap();
        (0..QUEUES).all(|queue| {
            probe.bind(index, queue, SocketAddrXdpFlags::XDP_ZEROCOPY) == Err(rustix::io::Errno::OPNOTSUPP)
        })
    });
}

#[test]
fn an_unbound_socket_kept_for_ever_never_wins_a_queue() {
    never_wins(SocketKind::Prepared);
}

#[test]
fn nor_does_one_whose_rings_are_its_holders() {
    never_wins(SocketKind::Bare);
}

fn never_wins(kind: SocketKind) {
    let world = World::new().unwrap();
    let [alice, mallory] = [(); 2].map(|()| Uid::take().unwrap());
    let mut leaks = Leaks::snapshot(&world).unwrap();
    let mut broker = BrokerProcess::start(&world, &policy("placeholders", &[&alice, &mallory], "")).unwrap();
    leaks.expect_objects_gone(&world, broker.process().pid()).unwrap();
    let mut rogue = Rogue::start_with(&world, &mallory.user(), 1, kind, Race::AfterRelease);
    let mut holder = Puppet::start(&world, Side::Host, &alice.user());
    rogue.lose_to(&mut holder, Puppet::hold_when_free);
    rogue.kill();
    drop(holder);
    wait_all_free(&world);
    assert!(broker.stop().unwrap().success());
    leaks.wait_none(&world, PATIENCE).unwrap();
}

#[test]
fn revoke_says_that_what_was_never_bound_never_will_be() {
    let world = World::new().unwrap();
    let alice = Uid::take().unwrap();
    let broker = BrokerProcess::start(&world, &policy("placeholders", &[&alice], "")).unwrap();
    let mut holder = Puppet::start(&world, Side::Host, &alice.user());
    // The broker itself says so, to whoever asks.
    let lease = holder.acquire("eth0:3").unwrap();
    let revoked = operator(&broker).revoke(lease).unwrap();
    assert_eq!(
        (revoked.rx_stopped, revoked.tx_may_continue, revoked.lease),
        (true, false, None)
    );
    let lease = holder.acquire("eth0:3").unwrap();
    let output = broker.cli(&["revoke", &lease.to_string()]).unwrap();
    assert_eq!(output.code, Some(0), "{output:?}");
    let words = "TX never began: no socket of it was bound, and none can be any more";
    assert!(output.stdout.contains(words), "{output:?}");
    assert!(holder.bind(lease).is_err());
}

#[test]
fn without_a_lock_it_wins() {
    // Which is why the test above means something.
    let world = World::new().unwrap();
    let [alice, mallory] = [(); 2].map(|()| Uid::take().unwrap());
    let _broker = BrokerProcess::start(&world, &policy("none", &[&alice, &mallory], "")).unwrap();
    let rogue = Rogue::start(&world, &mallory.user(), 1, Race::AfterRelease);
    assert!(rogue.has_won() < QUEUES);
}

#[test]
fn while_a_socket_is_out_unbound_every_other_queue_is_taken() {
    let world = World::new().unwrap();
    let [alice, bob, mallory] = [(); 3].map(|()| Uid::take().unwrap());
    let more = "activate-within-ms = 60000\n";
    let broker =
        BrokerProcess::start(&world, &policy("placeholders", &[&alice, &bob, &mallory], more)).unwrap();
    let traffic = Traffic::new(&world);
    let mut early = Puppet::start(&world, Side::Host, &bob.user());
    let early_lease = early.hold("eth0:5");
    let mut rogue = Rogue::start(&world, &mallory.user(), 1, Race::WhileGranted);
    let seen = eth0(&broker);
    assert_eq!(seen.queue_lock, Some(QueueLock::Placeholders));
    // All but its own and the one that bob has, the reserved one too.
    assert_eq!(seen.placeholders, [0, 2, 3, 4, 6, 7]);
    assert_eq!(seen.foreign, Vec::<u32>::new());
    let list = broker.cli(&["list"]).unwrap().stdout;
    assert!(list.contains("eth0: queues 0,2-4,6-7 are kept busy"), "{list}");
    // They take no packet from the host.
    for queue in [0, 2, 7] {
        traffic.expect_at_stack(queue, 0..10);
    }

    // Nobody else gets a socket that would leave unbound; it waits, but not for ever, and others do not wait with it.
    let mut late = Puppet::start(&world, Side::Host, &alice.user());
    let refused = late.acquire("eth0:3").unwrap_err();
    assert_eq!(refused.kind, "QueueBusy", "{refused:?}");
    assert!(refused.text.contains("not bound yet"), "{refused:?}");
    assert!(refused.details["retryAfterMs"].as_u64().unwrap() > 0);

    // A lease that ends meanwhile leaves its queue to nobody.
    early.kill();
    wait_event(&broker, "ended", early_lease);
    std::thread::sleep(Duration::from_millis(300));
    let tries = rogue.tries();
    assert_eq!(Vec::from_iter(tries.keys().copied()), [libc::EBUSY], "{tries:?}");
    assert_eq!(state_of(&broker, early_lease), Some(LeaseState::Lingering));

    let lease = rogue.lease();
    rogue.kill();
    wait_event(&broker, "ended", lease);
    wait_until("bob's queue is free", || state_of(&broker, early_lease).is_none());
    let lease = late.hold("eth0:5");
    assert_eq!(eth0(&broker).placeholders, Vec::<u32>::new());
    let audit = wait_event(&broker, "granted", lease);
    assert_eq!(audit["queueLock"], "placeholders");
}

/// A lease of kind `bound` leaves no socket before it is bound, so it may be granted meanwhile; to be bound it waits as all
/// do, and is told for what.
#[test]
fn what_keeps_a_queue_busy_is_told_to_who_wants_to_bind() {
    needs_bound!();
    let world = World::new().unwrap();
    let [bob, mallory] = [(); 2].map(|()| Uid::take().unwrap());
    let more = "activate-within-ms = 60000\n";
    let text =
        policy("placeholders", &[&mallory], more) + &allow_kinds(bob.number(), "1-7", &["bound"], more);
    let broker = BrokerProcess::start(&world, &text).unwrap();
    let mut client = broker.client_of(&bob).unwrap();
    let mut acquire = |queue: u32| {
        let target = format!("eth0:{queue}").parse().unwrap();
        let (acquired, umem) = client.acquire(&Acquire::new(target, SocketKind::Bound))?;
        let bytes = usize::try_from(UmemShape::DEFAULT.bytes()).unwrap();
        drop(Mapping::new(&umem[0], 0, bytes, Prefault::Yes).unwrap());
        Ok::<_, CallError>(acquired.lease)
    };
    let lease = acquire(5).unwrap();
    let mut rogue = Puppet::start(&world, Side::Host, &mallory.user());
    let unbound = rogue.acquire("eth0:1").unwrap();
    let busy = |error: CallError| match error {
        CallError::Refused { cause, .. } => match *cause {
            BrokerError::QueueBusy { queue, message, .. } => (queue, message),
            other => panic!("{other}"),
        },
        other => panic!("{other}"),
    };
    let placeholder = |queue| {
        format!(
            "queue {queue} of eth0 is kept busy by a placeholder, since sockets of another lease are not bound yet; ask again"
        )
    };
    assert_eq!(busy(acquire(4).unwrap_err()), (4, placeholder(4)));
    assert_eq!(busy(client.bind(lease).unwrap_err()), (5, placeholder(5)));
    rogue.release(unbound);
    rogue.close(unbound);
    client.bind(lease).unwrap();
    client.activate(lease).unwrap();
}

#[test]
fn queues_that_are_added_get_a_placeholder_too() {
    let world = World::new().unwrap();
    let mallory = Uid::take().unwrap();
    let more = "activate-within-ms = 60000\n";
    let broker = BrokerProcess::start(&world, &policy("placeholders", &[&mallory], more)).unwrap();
    // Native XDP on a veth wants as many queues to receive on as its peer has to send on.
    let few = Channels { rx: 8, tx: 1 };
    world
        .ethtool(Side::PEER)
        .set_channels(&world.device(Side::PEER).name, few)
        .unwrap();
    world
        .ethtool(Side::Host)
        .set_channels("eth0", Channels { rx: 2, tx: 3 })
        .unwrap();
    let mut holder = Puppet::start(&world, Side::Host, &mallory.user());
    holder.acquire("eth0:1").unwrap();
    // Any id below the greater of both counts can be bound to.
    assert_eq!(eth0(&broker).placeholders, [0, 2]);
    world
        .ethtool(Side::Host)
        .set_channels("eth0", Channels { rx: 4, tx: 6 })
        .unwrap();
    wait_until("the new ones are taken", || {
        eth0(&broker).placeholders == [0, 2, 3, 4, 5]
    });
}

#[test]
fn after_a_crash_the_device_waits_for_who_has_an_unbound_socket() {
    waits_after_a_crash(SocketKind::Prepared);
}

#[test]
fn after_a_crash_it_waits_for_a_bare_one_as_well() {
    waits_after_a_crash(SocketKind::Bare);
}

fn waits_after_a_crash(kind: SocketKind) {
    let world = World::new().unwrap();
    let [alice, mallory] = [(); 2].map(|()| Uid::take().unwrap());
    // No deadline before the crash, on a slow machine.
    let more = "activate-within-ms = 60000\n";
    let mut broker =
        BrokerProcess::start(&world, &policy("placeholders", &[&alice, &mallory], more)).unwrap();
    let mut rogue = Rogue::start_with(&world, &mallory.user(), 1, kind, Race::WhileGranted);
    broker.kill().unwrap();
    broker.restart().unwrap();
    let mut holder = Puppet::start(&world, Side::Host, &alice.user());
    for _ in 0..3 {
        let refused = holder.acquire("eth0:3").unwrap_err();
        assert_eq!(refused.kind, "QueueBusy", "{refused:?}");
        assert!(refused.text.contains("may still be unbound"), "{refused:?}");
    }
    assert_eq!(eth0(&broker).tainted_by, Some(rogue.pid()));
    let status = broker.cli(&["status"]).unwrap().stdout;
    assert!(status.contains(&format!("pid {}", rogue.pid())), "{status}");
    rogue.kill();
    wait_all_free(&world);
    for number in 0..200 {
        let lease = holder.hold_when_free(&format!("eth0:{}", 1 + number % 7));
        holder.release(lease);
        holder.close(lease);
    }
    assert_eq!(eth0(&broker).tainted_by, None);
}

/// The broker has no fd of its sockets, and so nothing to keep its queue with while a placeholder is put there.
#[test]
fn while_a_lease_lives_that_was_taken_over_nothing_leaves_unbound() {
    let world = World::new().unwrap();
    let [alice, bob, mallory] = [(); 3].map(|()| Uid::take().unwrap());
    let text =
        policy("placeholders", &[&alice, &mallory], "") + &allow_kinds(bob.number(), "1-7", &["bound"], "");
    let mut broker = BrokerProcess::start(&world, &text).unwrap();
    let mut holder = Puppet::start(&world, Side::Host, &alice.user());
    let (lease, second) = (holder.hold("eth0:5"), holder.hold("eth0:6"));
    broker.kill().unwrap();
    broker.restart().unwrap();
    assert_eq!(state_of(&broker, lease), Some(LeaseState::Active));

    let mut other = Puppet::start(&world, Side::Host, &mallory.user());
    let refused = other.acquire("eth0:1").unwrap_err();
    // It is over when they are: worth waiting for, and nobody knows how long.
    assert_eq!(refused.kind, "QueueBusy", "{refused:?}");
    assert!(refused.details["retryAfterMs"].is_null(), "{refused:?}");
    let until = format!("unbound until leases {lease} and {second} end");
    assert!(refused.text.contains(&until), "{refused:?}");
    let seen = eth0(&broker);
    assert_eq!(
        (seen.blocked_by, seen.blocked_by_others),
        (Some(lease), vec![second])
    );
    let user = mallory.number().to_string();
    for (words, code) in [
        (&["list"][..], 0),
        (&["status"], 0),
        (&["explain", "--user", &user, "eth0:1"], 75),
        (&["grant", "--as", &user, "eth0:1", "--", "/bin/true"], 75),
    ] {
        let told = broker.cli(words).unwrap();
        assert_eq!(told.code, Some(code), "{told:?}");
        let said = told.stdout.clone() + &told.stderr;
        assert!(said.contains(&until), "{told:?}");
    }
    holder.close(second);
    holder.release(second);
    wait_until("the second is free", || state_of(&broker, second).is_none());
    let refused = other.acquire("eth0:1").unwrap_err();
    assert!(
        refused.text.contains(&format!("until lease {lease} ends")),
        "{refused:?}"
    );
    // Nothing of kind `bound` leaves unbound.
    if e2e::kernel::lacks_for_bound().is_none() {
        let mut client = broker.client_of(&bob).unwrap();
        let target = "eth0:2".parse().unwrap();
        client.acquire(&Acquire::new(target, SocketKind::Bound)).unwrap();
    }

    holder.kill();
    wait_event(&broker, "ended", lease);
    wait_until("its queue is free", || state_of(&broker, lease).is_none());
    assert_eq!(eth0(&broker).blocked_by, None);
    other.hold("eth0:5");
}

/// One that has ended while its holder keeps the socket is as any other that lingers: nobody is granted its queue, and what
/// leaves unbound may be bound to that alone, once it is let go.
#[test]
fn one_that_lingers_after_it_was_taken_over_blocks_nobody_and_is_granted_to_nobody() {
    let world = World::new().unwrap();
    let [alice, mallory] = [(); 2].map(|()| Uid::take().unwrap());
    let mut broker = BrokerProcess::start(&world, &policy("placeholders", &[&alice, &mallory], "")).unwrap();
    let mut holder = Puppet::start(&world, Side::Host, &alice.user());
    let lease = holder.hold("eth0:5");
    broker.kill().unwrap();
    broker.restart().unwrap();
    operator(&broker).revoke(lease).unwrap();
    assert_eq!(state_of(&broker, lease), Some(LeaseState::Lingering));
    assert_eq!(eth0(&broker).blocked_by, None);
    let mut other = Puppet::start(&world, Side::Host, &mallory.user());
    assert_eq!(other.acquire("eth0:5").unwrap_err().kind, "QueueBusy");
    let out = other.acquire("eth0:1").unwrap();
    assert_eq!(eth0(&broker).placeholders, [0, 2, 3, 4, 6, 7]);
    // When it is let go of its queue gets a placeholder, too.
    holder.close(lease);
    wait_until("its queue is kept busy", || {
        eth0(&broker).placeholders.contains(&5)
    });
    other.bind(out).unwrap();
    other.activate(out).unwrap();
    wait_until("its queue is free", || state_of(&broker, lease).is_none());
}

#[test]
fn a_stop_retires_what_is_out() {
    let world = World::new().unwrap();
    let mallory = Uid::take().unwrap();
    let mut broker = BrokerProcess::start(&world, &policy("placeholders", &[&mallory], "")).unwrap();
    let rogue = Rogue::start(&world, &mallory.user(), 1, Race::WhileGranted);
    assert!(broker.stop().unwrap().success());
    std::thread::sleep(Duration::from_millis(300));
    println!("{:?}", rogue.tries());
}

#[test]
fn a_lock_that_cannot_be_had_is_no_lock() {
    let world = World::new().unwrap();
    let alice = Uid::take().unwrap();
    let broker = BrokerProcess::start(&world, &policy("lsm", &[&alice], "")).unwrap();
    let mut holder = Puppet::start(&world, Side::Host, &alice.user());
    match eth0(&broker).queue_lock {
        Some(lock) => assert_eq!(lock, QueueLock::Lsm),
        None => {
            let refused = holder.acquire("eth0:3").unwrap_err();
            assert_eq!(refused.kind, "DeviceUnavailable", "{refused:?}");
            assert!(refused.text.contains("queue-lock = \"lsm\""), "{refused:?}");
            assert!(!refused.text.ends_with(": "), "no reason: {refused:?}");
        }
    }
}

#[test]
fn a_strangers_socket_is_told() {
    let world = World::new().unwrap();
    let alice = Uid::take().unwrap();
    let broker = BrokerProcess::start(&world, &policy("placeholders", &[&alice], "")).unwrap();
    let index = world.device(Side::Host).index;
    let stranger = world.run_in(Side::Host, || RawXsk::new(2)).unwrap().unwrap();
    stranger.bind_copy(index, 6).unwrap();
    let mut holder = Puppet::start(&world, Side::Host, &alice.user());
    // It is in nobody's way but of who wants this queue.
    let lease = holder.hold("eth0:3");
    assert_eq!(eth0(&broker).foreign, [6]);
    let list = broker.cli(&["list"]).unwrap().stdout;
    assert!(list.contains("eth0: queue 6 has a socket of no lease"), "{list}");
    let refused = holder.acquire("eth0:6").unwrap_err();
    assert_eq!(refused.kind, "QueueBusy", "{refused:?}");
    drop(stranger);
    holder.ask(&Order::Release { lease }).unwrap();
    wait_until("nobody has it", || eth0(&broker).foreign.is_empty());
}

/// The other end of a scratch device lies in a network namespace that only the broker's open file keeps.
#[test]
fn a_killed_broker_takes_its_scratch_devices_with_it() {
    let world = World::new().unwrap();
    let scratch = || {
        let links = world.netlink(Side::Host).links().unwrap();
        links.iter().filter(|link| link.name.starts_with("xskr")).count()
    };
    let mallory = Uid::take().unwrap();
    let mut broker = BrokerProcess::start(&world, &policy("placeholders", &[&mallory], "")).unwrap();
    let deadline = Instant::now() + PATIENCE;
    let mut was_there = false;
    while !was_there {
        assert!(Instant::now() < deadline, "no socket was seen being retired");
        // A lease that ends before its socket was bound: the socket is retired.
        let mut holder = Puppet::start(&world, Side::Host, &mallory.user());
        let lease = holder.acquire("eth0:1").unwrap();
        holder.release(lease);
        while scratch() == 0 && state_of(&broker, lease).is_some() {}
        broker.process().signal(Signal::STOP).unwrap();
        // What a thread of it was doing in the kernel is done by now, and what is there is left to nobody.
        std::thread::sleep(Duration::from_millis(100));
        was_there = scratch() > 0;
        broker.kill().unwrap();
        drop(holder);
        wait_until("no scratch device is left", || scratch() == 0);
        broker.restart().unwrap();
    }
}
