//! A holder cannot make a socket of its own, nor bind a granted one to another device; and what it binds elsewhere gets
//! no packet and costs it its lease.
//!
//! What the sample `xskrestricted` of xdp-for-windows asserts of its restricted child is among this (samples/xskrestricted in
//! microsoft/xdp-for-windows): it can make no socket of its own (there `XskCreate` is ERROR_ACCESS_DENIED), nor, in its form
//! before eBPF, a program, and with the one that it was given it registers memory, makes rings and forwards. There the parent
//! binds before the handle is duplicated, as here for kind `bound`.

use e2e::bpf::{self, MapType, ProgramType};
use e2e::instructions::{R0, exit, mov_value};
use e2e::raw_xsk::bind_to_device;
use e2e::world::Side;
use rustix::io::Errno;
use rustix::net::{AddressFamily, sockopt};
use xsk_client::sys::{self, Ring};
use xsk_client::wire::{Acquire, LeaseState, SocketKind};

use crate::lease_scene::{PATIENCE, SILENCE, state_of, wait_event};
use crate::puppet::{Puppet, Seen};
use crate::rogue_scene::{Granted, ROGUES, SPARE, VICTIMS, errno, for_each, memory};

/// Confines a socket to no device at all.
const NO_INDEX: u32 = 0;

#[test]
fn its_own_sockets_and_other_devices_are_out_of_reach() {
    for_each(|scene| {
        scene.as_rogue(|| {
            assert_eq!(errno(sys::xdp_socket()).unwrap_err(), Errno::PERM);
            let mut granted = scene.acquire();
            granted.prepare();
            for index in scene.others {
                for queue in [0, ROGUES] {
                    let refused = Err(scene.refusal(Errno::INVAL));
                    assert_eq!(granted.bind(index, queue), refused, "ifindex {index}");
                }
                // Nor by lifting the confinement first.
                assert_eq!(
                    errno(sys::confine_to_device(&granted.socket, index)),
                    Err(Errno::PERM)
                );
            }
            assert_eq!(
                errno(sys::confine_to_device(&granted.socket, NO_INDEX)),
                Err(Errno::PERM)
            );
            for name in ["eth1", "lo", "", "eth0"] {
                let error = bind_to_device(&granted.socket, name).unwrap_err();
                assert_eq!(
                    error.raw_os_error(),
                    Some(Errno::PERM.raw_os_error()),
                    "SO_BINDTODEVICE {name:?}"
                );
            }
            // No such queue, and none at all.
            for queue in [8, u32::MAX] {
                let refused = Err(scene.refusal(Errno::INVAL));
                assert_eq!(granted.bind(scene.index, queue), refused, "queue {queue}");
            }
            // All of that left it as good as before for its own.
            granted.bind(scene.index, ROGUES).unwrap();
            granted.broker.activate(granted.lease).unwrap();
        });
    });
}

#[test]
fn rings_and_memory_are_made_once() {
    for_each(|scene| {
        scene.as_rogue(|| {
            let mut granted = scene.acquire();
            granted.prepare();
            let refused = |granted: &Granted, expected: Errno| {
                for ring in Ring::ALL {
                    for entries in [1, 64, 4096, 1 << 20, 1 << 31] {
                        let made = errno(sys::create_ring(&granted.socket, ring, entries));
                        scene.assert_refused(made, expected, &format!("{ring} ring of {entries}"));
                    }
                }
                let registered = errno(sys::register_umem(&granted.socket, &memory(1), 4096, 0));
                scene.assert_refused(registered, Errno::BUSY, "other memory");
            };
            refused(&granted, Errno::INVAL);
            granted.bind(scene.index, ROGUES).unwrap();
            refused(&granted, Errno::BUSY);
            let elsewhere = [(scene.index, ROGUES), (scene.index, 5), (scene.others[0], ROGUES)];
            for ((index, queue), expected) in
                elsewhere
                    .into_iter()
                    .zip([Errno::BUSY, Errno::BUSY, Errno::INVAL])
            {
                scene.assert_refused(granted.bind(index, queue), expected, "a second bind");
                scene.assert_refused(
                    granted.bind_shared(index, queue, &granted),
                    expected,
                    "a shared bind",
                );
            }
            granted.broker.activate(granted.lease).unwrap();
        });
    });
}

/// What remains: giant rings of a socket that came without any are its holder's choice. Once there are some, there are
/// no others.
#[test]
fn a_bare_sockets_rings_are_its_holders_choice() {
    for_each(|scene| {
        scene.as_rogue(|| {
            let granted = scene.acquire();
            let expected = match scene.kind {
                SocketKind::Bare => Ok(()),
                SocketKind::Prepared | SocketKind::Bound => Err(scene.refusal(Errno::INVAL)),
            };
            for ring in Ring::ALL {
                // 16 times what the rule's `ring-entries` gives.
                let made = errno(sys::create_ring(&granted.socket, ring, 65_536));
                assert_eq!(made, expected, "{ring} ring");
            }
            let again = errno(sys::create_ring(&granted.socket, Ring::Rx, 64));
            scene.assert_refused(again, Errno::INVAL, "a ring once more");
        });
    });
}

/// Others hand out the map, which leads to every queue of the device.
#[test]
fn it_is_given_a_socket_and_no_map_link_or_program() {
    for_each(|scene| {
        scene.as_rogue(|| {
            let mut broker = scene.broker.client_of(&scene.rogue).unwrap();
            let request = Acquire::new(format!("eth0:{ROGUES}").parse().unwrap(), scene.kind);
            let (_, fds) = broker.acquire(&request).unwrap();
            let families: Vec<_> = fds.iter().map(sockopt::socket_domain).collect();
            assert_eq!(families, [Ok(AddressFamily::XDP)]);
        });
    });
}

/// Redirecting packets is not only for who has the map: a program of one's own would do.
#[test]
fn its_own_programs_and_maps_are_out_of_reach() {
    for_each(|scene| {
        // XDP_PASS; root can load it.
        let code = [mov_value(R0, 2), exit()];
        let load = || bpf::load(ProgramType::Xdp, "test_rogue", &code);
        drop(load().unwrap());
        scene.as_rogue(|| {
            let refused = |error: anyhow::Error| match error.downcast_ref::<std::io::Error>() {
                Some(error) => error.raw_os_error(),
                None => panic!("{error:#}"),
            };
            let not_permitted = Some(Errno::PERM.raw_os_error());
            let _granted = scene.acquire();
            assert_eq!(refused(load().unwrap_err()), not_permitted);
            let map = bpf::create_map(MapType::XskMap, "test_rogue", 4, 8);
            assert_eq!(refused(map.unwrap_err()), not_permitted);
        });
    });
}

/// A socket that is not bound yet, over the umem of one that is, on a queue that was granted to neither.
#[test]
fn a_shared_umem_leads_to_no_other_queue() {
    for_each(|scene| {
        scene.as_rogue(|| {
            let mut first = scene.acquire();
            first.prepare();
            first.bind(scene.index, ROGUES).unwrap();
            first.broker.activate(first.lease).unwrap();
            let mut second = scene.acquire_queue(SPARE);
            second.make_rings();
            for index in scene.others {
                let refused = second.bind_shared(index, SPARE, &first);
                assert_eq!(refused, Err(scene.refusal(Errno::INVAL)), "ifindex {index}");
            }
            let no_such_queue = second.bind_shared(scene.index, 8, &first);
            assert_eq!(no_such_queue, Err(scene.refusal(Errno::INVAL)));
            if scene.lock == "none" {
                // As by any other bind: it gets no packet, and loses the lease.
                second.bind_shared(scene.index, 5, &first).unwrap();
                let told = second.broker.activate(second.lease).unwrap_err().to_string();
                assert!(
                    told.contains("was bound to something else") || told.contains("there is no lease"),
                    "{told}"
                );
                return;
            }
            for queue in (0..8).filter(|queue| ![ROGUES, SPARE].contains(queue)) {
                assert_eq!(
                    second.bind_shared(scene.index, queue, &first),
                    Err(scene.refusal(Errno::BUSY)),
                    "queue {queue}"
                );
            }
            // Memory of its own holder's, at that.
            second.bind_shared(scene.index, SPARE, &first).unwrap();
            second.broker.activate(second.lease).unwrap();
        });
    });
}

/// Under a lock the kernel takes no such bind. Under `queue-lock = "none"` it does, and what comes of it is: no packet, a line in the audit log, no lease.
#[test]
fn what_is_bound_elsewhere_gets_no_packet_and_loses_the_lease() {
    for_each(|scene| {
        let granted = scene.as_rogue(|| {
            let mut granted = scene.acquire();
            granted.prepare();
            if scene.lock != "none" {
                // It does not come to that.
                for queue in (0..8).filter(|queue| *queue != ROGUES) {
                    let refused = Err(scene.refusal(Errno::BUSY));
                    assert_eq!(granted.bind(scene.index, queue), refused, "queue {queue}");
                }
                granted.bind(scene.index, ROGUES).unwrap();
                granted.broker.activate(granted.lease).unwrap();
                return None;
            }
            granted.bind(scene.index, 5).unwrap();
            // A bare socket is found out by the broker's own look, which may come first.
            let told = granted.broker.activate(granted.lease).unwrap_err().to_string();
            assert!(
                told.contains("was bound to something else") || told.contains("there is no lease"),
                "{told}"
            );
            Some(granted)
        });
        let Some(granted) = granted else { return };
        wait_event(&scene.broker, "rogue-bind", granted.lease);
        assert_eq!(
            wait_event(&scene.broker, "ended", granted.lease)["reason"],
            "rogue-bind"
        );
        assert_ne!(state_of(&scene.broker, granted.lease), Some(LeaseState::Active));
        // Neither its own queue's packets nor those of the one that it took are its own: the host has both.
        for queue in [ROGUES, 5] {
            scene.traffic.expect_at_stack(queue, 0..50);
        }
        let statistics = sys::statistics(&granted.socket).unwrap();
        assert_eq!(statistics, sys::Statistics::default());
        // And whoever holds another queue is none the worse.
        let mut victim = Puppet::start(scene.world, Side::Host, &scene.victim.user());
        let lease = victim.hold(&format!("eth0:{VICTIMS}"));
        scene.traffic.send_all(VICTIMS, 0..50);
        assert_eq!(
            victim.receive(lease, VICTIMS, 50, PATIENCE),
            Seen::only(VICTIMS, 50)
        );
    });
}

/// A victim's queue that is held is taken: the kernel says so to whoever tries.
#[test]
fn a_queue_that_is_bound_cannot_be_bound_again() {
    for_each(|scene| {
        let mut victim = Puppet::start(scene.world, Side::Host, &scene.victim.user());
        let lease = victim.hold(&format!("eth0:{VICTIMS}"));
        scene.as_rogue(|| {
            let mut granted = scene.acquire();
            granted.prepare();
            for _ in 0..200 {
                let refused = Err(scene.refusal(Errno::BUSY));
                assert_eq!(granted.bind(scene.index, VICTIMS), refused);
            }
        });
        scene.traffic.send_all(VICTIMS, 0..100);
        assert_eq!(
            victim.receive(lease, VICTIMS, 100, PATIENCE),
            Seen::only(VICTIMS, 100)
        );
        assert_eq!(scene.traffic.stack_gets(VICTIMS, SILENCE), None);
    });
}
