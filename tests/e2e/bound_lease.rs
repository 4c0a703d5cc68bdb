//! A lease of kind `bound` through its life: when `Bind` may be called and by whom, what it costs the broker, and how it
//! ends.

use e2e::broker::BrokerProcess;
use e2e::raw_xsk::{busy_poll, set_busy_poll_budget};
use e2e::uids::Uid;
use e2e::world::{Side, World};
use rustix::io::Errno;
use xsk_client::Broker;
use xsk_client::wire::{
    Acquire, BindMode, BrokerError, BusyPoll, Direction, LeaseState, ModeWish, SocketKind,
};

use crate::bound_scene::{Acquisition, EVERY_QUEUE, Held, allow, errno, needs_bound, policy, refusal, wish};
use crate::lease_scene::{PATIENCE, Traffic, interface, leases, read_frame, wait_event};
use crate::scene::Scene;

#[test]
fn who_never_binds_loses_the_lease_at_its_deadline() {
    needs_bound!();
    let world = World::new().unwrap();
    let [alice, bob] = [(); 2].map(|()| Uid::take().unwrap());
    let text = interface("eth0", "")
        + &allow(alice.number(), "1-7", "activate-within-ms = 300")
        + &allow(bob.number(), "1-7", "");
    let broker = BrokerProcess::start(&world, &text).unwrap();
    let socket = broker.paths().socket();
    let mut acquisition = world
        .run_as(Side::Host, &alice.user(), || {
            Acquisition::new(&socket, &wish("eth0:3", Direction::RxTx)).unwrap()
        })
        .unwrap();
    let lease = acquisition.acquired.lease;
    let listed = &leases(&broker)[0];
    assert_eq!((listed.state, listed.queues.len()), (LeaseState::HandedOver, 1));
    drop(acquisition.populate());
    let ended = wait_event(&broker, "ended", lease);
    assert_eq!(ended["reason"], "not-activated");
    assert!(matches!(
        refusal(acquisition.bind()),
        BrokerError::NoSuchLease { .. }
    ));
    // Nobody ever had a socket, so there is nothing to wait for.
    assert!(leases(&broker).is_empty());
    world
        .run_as(Side::Host, &bob.user(), || {
            drop(Held::new(&socket, &wish("eth0:3", Direction::RxTx)));
        })
        .unwrap();

    // Bound in time is not activated in time.
    let mut acquisition = world
        .run_as(Side::Host, &alice.user(), || {
            Acquisition::new(&socket, &wish("eth0:4", Direction::RxTx)).unwrap()
        })
        .unwrap();
    drop(acquisition.populate());
    let (_, sockets) = acquisition.bind().unwrap();
    let lease = acquisition.acquired.lease;
    assert_eq!(wait_event(&broker, "ended", lease)["reason"], "not-activated");
    drop(sockets);
    wait_event(&broker, "freed", lease);
}

#[test]
fn bind_is_for_its_holder_once_and_for_this_kind() {
    needs_bound!();
    let world = World::new().unwrap();
    let alice = Uid::take().unwrap();
    let text =
        policy(&[]) + &allow(alice.number(), EVERY_QUEUE, "").replace("\"bound\"", "\"bound\", \"prepared\"");
    let broker = BrokerProcess::start(&world, &text).unwrap();
    let socket = broker.paths().socket();
    let mut other = crate::puppet::Puppet::start(&world, Side::Host, &alice.user());
    world
        .run_as(Side::Host, &alice.user(), || {
            let mut acquisition = Acquisition::new(&socket, &wish("eth0:3-4", Direction::RxTx)).unwrap();
            let lease = acquisition.acquired.lease;
            drop(acquisition.populate());
            // Another process of the same user.
            let failure = other
                .ask(&crate::puppet::Order::BrokerBind { lease })
                .unwrap_err();
            assert_eq!(failure.kind, "NoSuchLease");
            assert_eq!(
                failure.text.replace(&lease.to_string(), "N"),
                other
                    .ask(&crate::puppet::Order::BrokerBind { lease: 999 })
                    .unwrap_err()
                    .text
                    .replace("999", "N")
            );
            // Too early.
            assert!(matches!(
                refusal(acquisition.broker.activate(lease)),
                BrokerError::NotBound { .. }
            ));
            let (reply, sockets) = acquisition.bind().unwrap();
            let queues: Vec<u32> = reply.sockets.iter().map(|socket| socket.queue).collect();
            assert_eq!((queues, sockets.len()), (vec![3, 4], 2));
            // Again.
            for _ in 0..2 {
                assert!(matches!(
                    refusal(acquisition.bind()),
                    BrokerError::AlreadyBound { .. }
                ));
            }
            acquisition.broker.activate(lease).unwrap();
            assert!(matches!(
                refusal(acquisition.bind()),
                BrokerError::AlreadyBound { .. }
            ));
            acquisition.broker.release(lease).unwrap();
            assert!(matches!(
                refusal(acquisition.bind()),
                BrokerError::NoSuchLease { .. }
            ));
            // A kind whose holder binds.
            let prepared = Acquire::new("eth0:5".parse().unwrap(), SocketKind::Prepared);
            let (acquired, _sockets) = acquisition.broker.acquire(&prepared).unwrap();
            match refusal(acquisition.broker.bind(acquired.lease)) {
                BrokerError::InvalidRequest { message } => assert!(message.contains("of kind prepared")),
                other => panic!("{other}"),
            }
        })
        .unwrap();
}

#[test]
fn zero_copy_is_given_or_told() {
    needs_bound!();
    let world = World::new().unwrap();
    let alice = Uid::take().unwrap();
    let broker = BrokerProcess::start(&world, &policy(&[(alice.number(), EVERY_QUEUE)])).unwrap();
    let socket = broker.paths().socket();
    let with_mode = |mode| Acquire {
        mode: Some(mode),
        ..wish("eth0:3-4", Direction::RxTx)
    };
    world
        .run_as(Side::Host, &alice.user(), || {
            // A veth has none, which is known before anybody touches memory for it.
            let mut broker = Broker::connect_to(&socket).unwrap();
            match refusal(broker.acquire(&with_mode(ModeWish::ZeroCopy))) {
                BrokerError::ZeroCopyUnavailable { queue, .. } => assert_eq!(queue, 3),
                other => panic!("{other}"),
            }
            let mut acquisition = Acquisition::new(&socket, &with_mode(ModeWish::ZeroCopyElseCopy)).unwrap();
            drop(acquisition.populate());
            let (reply, _sockets) = acquisition.bind().unwrap();
            assert!(reply.sockets.iter().all(|socket| socket.mode == BindMode::Copy));
        })
        .unwrap();
}

#[test]
fn busy_polling_is_set_and_cannot_be_raised() {
    needs_bound!();
    let world = World::new().unwrap();
    let alice = Uid::take().unwrap();
    let text = policy(&[])
        + &allow(alice.number(), EVERY_QUEUE, "limits = { busy-poll-budget = 64 }")
            .replace("\"bound\"", "\"bound\", \"prepared\"");
    let broker = BrokerProcess::start(&world, &text).unwrap();
    let traffic = Traffic::new(&world);
    let socket = broker.paths().socket();
    let wanted = BusyPoll {
        budget: 64,
        usecs: 20,
    };
    world
        .run_as(Side::Host, &alice.user(), || {
            let mut held = Held::new(
                &socket,
                &Acquire {
                    busy_poll: Some(wanted),
                    ..wish("eth0:3", Direction::RxTx)
                },
            );
            let prepared = Acquire {
                busy_poll: Some(wanted),
                ..Acquire::new("eth0:4".parse().unwrap(), SocketKind::Prepared)
            };
            let (_, sockets) = held.broker.acquire(&prepared).unwrap();
            for fd in [held.fd(3), std::os::fd::AsFd::as_fd(&sockets[0])] {
                assert_eq!(busy_poll(fd).unwrap(), (1, 20));
                // The budget cannot be read, but what it is can be set, and no more.
                assert_eq!(errno(set_busy_poll_budget(fd, 65)), Some(Errno::PERM));
                set_busy_poll_budget(fd, 64).unwrap();
                // Lowered is lowered for good.
                set_busy_poll_budget(fd, 16).unwrap();
                assert_eq!(errno(set_busy_poll_budget(fd, 17)), Some(Errno::PERM));
            }
            for number in 0..100 {
                traffic.send(3, number);
                let frame = held.socket(3).receive(PATIENCE).unwrap().expect("a frame");
                assert_eq!(read_frame(&frame), Some((3, number)));
            }
            // Without it, a socket is as the kernel makes it.
            let plain = Held::new(&socket, &wish("eth0:5", Direction::RxTx));
            assert_eq!(busy_poll(plain.fd(5)).unwrap().0, 0);
            assert_eq!(errno(set_busy_poll_budget(plain.fd(5), 9)), Some(Errno::PERM));
            let above = Acquire {
                busy_poll: Some(BusyPoll {
                    budget: 65,
                    usecs: 20,
                }),
                ..wish("eth0:6", Direction::RxTx)
            };
            assert!(matches!(
                refusal(Acquisition::new(&socket, &above)),
                BrokerError::Denied { .. }
            ));
        })
        .unwrap();
}

#[test]
fn at_grant_means_at_bind_where_the_broker_binds() {
    needs_bound!();
    let world = World::new().unwrap();
    let alice = Uid::take().unwrap();
    let text = policy(&[]) + &allow(alice.number(), EVERY_QUEUE, "insert = \"at-grant\"");
    let broker = BrokerProcess::start(&world, &text).unwrap();
    let traffic = Traffic::new(&world);
    let socket = broker.paths().socket();
    world
        .run_as(Side::Host, &alice.user(), || {
            let acquisition = Acquisition::new(&socket, &wish("eth0:3", Direction::RxTx)).unwrap();
            // Nothing is lost before it is bound: there is no socket yet.
            traffic.expect_at_stack(3, 0..100);
            let mut held = acquisition.hold();
            for number in 100..200 {
                traffic.send(3, number);
                let frame = held.socket(3).receive(PATIENCE).unwrap().expect("a frame");
                assert_eq!(read_frame(&frame), Some((3, number)));
            }
            held.broker.activate(held.lease).unwrap();
        })
        .unwrap();
}

#[test]
fn two_hundred_grants_leave_nothing_in_the_broker() {
    needs_bound!();
    const WARM: u32 = 20;
    const GRANTS: u32 = 200;
    const SLACK_KIB: u64 = 1024;
    let world = World::new().unwrap();
    let scene = Scene::with_policy(&world, |uid| {
        crate::scene::tenant_rule(uid) + &allow(uid, EVERY_QUEUE, "") + crate::scene::EVERY_INTERFACE
    });
    let socket = scene.broker.paths().socket();
    let pid = scene.broker.process().pid();
    let resident_kib = || {
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        let lines = status
            .lines()
            .filter(|line| line.starts_with("VmRSS:") || line.starts_with("VmSize:"));
        let kib = lines.map(|line| line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap());
        kib.collect::<Vec<_>>()
    };
    let mut before = Vec::new();
    world
        .run_as(Side::Host, &scene.uid.user(), || {
            for round in 0..WARM + GRANTS {
                if round == WARM {
                    before = resident_kib();
                }
                let direction = Direction::ALL[usize::try_from(round).unwrap() % 3];
                let queue = 1 + round % 7;
                match round % 4 {
                    // Some are never bound, some never activated, some have several queues.
                    0 => {
                        let wish = wish(&format!("eth0:{queue}"), direction);
                        let mut acquisition = Acquisition::when_free(&socket, &wish);
                        let lease = acquisition.acquired.lease;
                        acquisition.broker.release(lease).unwrap();
                    }
                    1 => {
                        let wish = wish(&format!("eth0:{queue}"), direction);
                        let mut held = Acquisition::when_free(&socket, &wish).hold();
                        held.broker.release(held.lease).unwrap();
                    }
                    _ => {
                        let queues = if queue < 7 {
                            format!("{queue}-{}", queue + 1)
                        } else {
                            queue.to_string()
                        };
                        let mut held = Held::new(&socket, &wish(&format!("eth0:{queues}"), direction));
                        held.broker.release(held.lease).unwrap();
                    }
                }
            }
        })
        .unwrap();
    let mut operator = scene.operator();
    crate::lease_scene::wait_until("the kernel has let go of all", || {
        let reply = operator.call("ListLeases", &serde_json::json!({})).unwrap();
        reply["parameters"]["leases"].as_array().unwrap().is_empty()
    });
    drop(operator);
    for (before, after) in before.iter().zip(resident_kib()) {
        assert!(after < before + SLACK_KIB, "{before} KiB, then {after}");
    }
    scene.finish();
}
