//! The XDP program on the real kernel: BPF_PROG_TEST_RUN over packet fixtures, hostile ones included.
//!
//! A test run executes the program in the kernel as a driver would, on a frame and a receive queue of ours,
//! and returns its action without carrying it out; so what is tested here is the decision and the counting.
//! Needs root (CAP_BPF, CAP_NET_ADMIN, CAP_NET_RAW, and CAP_SYS_ADMIN for a network namespace of its own),
//! and leaves nothing behind: devices die with the anonymous namespace, maps and program with their fds.

#![expect(
    clippy::expect_used,
    clippy::panic,
    reason = "tests panic, and so do their helpers beside them"
)]

mod program;
mod veth;

use xdp_ebpf::QueueCounters;

use crate::program::{Program, XDP_PASS, XDP_REDIRECT, unbound_socket};
use crate::veth::{Veth, in_private_network};

/// What the device has, and what the maps are sized to: one queue lies beyond the maps.
const DEVICE_QUEUES: u32 = 4;
const MAP_ENTRIES: u32 = 3;

const NOTHING: QueueCounters = QueueCounters {
    redirected: 0,
    passed: 0,
};

/// Frames of every shape that a driver may hand over. The program reads none of them, and this holds it to
/// that.
fn frames() -> Vec<(&'static str, Vec<u8>)> {
    let ethernet = |ether_type: [u8; 2], payload: &[u8]| {
        let mut frame = vec![0x02, 0, 0, 0, 0, 1, 0x02, 0, 0, 0, 0, 2];
        frame.extend(ether_type);
        frame.extend(payload);
        frame
    };
    // A linear congruential generator: the same garbage in every run.
    let garbage = (0_u32..1024)
        .scan(0x2545_f491_u32, |state, _| {
            *state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            Some(state.to_be_bytes()[0])
        })
        .collect();
    vec![
        ("an Ethernet header and nothing else", ethernet([0x08, 0x00], &[])),
        ("a runt ARP", ethernet([0x08, 0x06], &[0, 1])),
        (
            "an IPv4 header whose lengths point beyond the frame",
            ethernet([0x08, 0x00], &[0x4f, 0, 0xff, 0xff]),
        ),
        (
            "VLAN tags to the end",
            ethernet([0x81, 0x00], &[0x81, 0x00].repeat(32)),
        ),
        (
            "the largest frame of MTU 1500",
            ethernet([0x08, 0x00], &[0x45; 1500]),
        ),
        (
            "a jumbo frame in several buffers",
            ethernet([0x86, 0xdd], &[0x60; 9000]),
        ),
        (
            "the largest frame there is",
            ethernet([0x86, 0xdd], &[0xff; 65_000]),
        ),
        ("zeroes", vec![0; 64]),
        ("ones", vec![0xff; 64]),
        ("garbage", garbage),
    ]
}

#[test]
fn a_frame_of_an_ungranted_queue_goes_to_the_stack_and_is_counted() {
    in_private_network(
        "a_frame_of_an_ungranted_queue_goes_to_the_stack_and_is_counted",
        || {
            let veth = Veth::create(DEVICE_QUEUES);
            for (what, frame) in frames() {
                let mut program = Program::load(MAP_ENTRIES);
                assert_eq!(program.run(&frame, &veth, 1), XDP_PASS, "{what}");
                assert_eq!(
                    program.counters(),
                    [
                        NOTHING,
                        QueueCounters {
                            redirected: 0,
                            passed: 1
                        },
                        NOTHING
                    ],
                    "{what}"
                );
            }
        },
    );
}

#[test]
fn a_frame_of_a_granted_queue_is_redirected_and_counted() {
    in_private_network("a_frame_of_a_granted_queue_is_redirected_and_counted", || {
        let veth = Veth::create(DEVICE_QUEUES);
        let socket = unbound_socket();
        for (what, frame) in frames() {
            let mut program = Program::load(MAP_ENTRIES);
            program.fill_slot(2, &socket);
            assert_eq!(program.run(&frame, &veth, 2), XDP_REDIRECT, "{what}");
            assert_eq!(
                program.counters(),
                [
                    NOTHING,
                    NOTHING,
                    QueueCounters {
                        redirected: 1,
                        passed: 0
                    }
                ],
                "{what}"
            );
        }
    });
}

#[test]
fn queues_are_told_apart() {
    in_private_network("queues_are_told_apart", || {
        let veth = Veth::create(DEVICE_QUEUES);
        let socket = unbound_socket();
        let mut program = Program::load(MAP_ENTRIES);
        program.fill_slot(0, &socket);
        for (queue, times, action) in [(0, 5, XDP_REDIRECT), (1, 3, XDP_PASS), (2, 2, XDP_PASS)] {
            for _ in 0..times {
                assert_eq!(program.run(&[0; 64], &veth, queue), action, "queue {queue}");
            }
        }
        assert_eq!(
            program.counters(),
            [
                QueueCounters {
                    redirected: 5,
                    passed: 0
                },
                QueueCounters {
                    redirected: 0,
                    passed: 3
                },
                QueueCounters {
                    redirected: 0,
                    passed: 2
                },
            ]
        );
    });
}

#[test]
fn a_slot_that_is_emptied_gives_its_queue_back_to_the_stack() {
    in_private_network("a_slot_that_is_emptied_gives_its_queue_back_to_the_stack", || {
        let veth = Veth::create(DEVICE_QUEUES);
        let mut program = Program::load(MAP_ENTRIES);

        let socket = unbound_socket();
        program.fill_slot(1, &socket);
        assert_eq!(program.run(&[0; 64], &veth, 1), XDP_REDIRECT);
        program.empty_slot(1);
        assert_eq!(
            program.run(&[0; 64], &veth, 1),
            XDP_PASS,
            "after the broker deleted the slot"
        );

        program.fill_slot(1, &socket);
        drop(socket);
        assert_eq!(
            program.run(&[0; 64], &veth, 1),
            XDP_PASS,
            "after the socket's last fd was closed"
        );
        assert_eq!(
            program.counters()[1],
            QueueCounters {
                redirected: 1,
                passed: 2
            }
        );
    });
}

#[test]
fn a_queue_beyond_the_maps_goes_to_the_stack_uncounted() {
    in_private_network("a_queue_beyond_the_maps_goes_to_the_stack_uncounted", || {
        let veth = Veth::create(DEVICE_QUEUES);
        let mut program = Program::load(MAP_ENTRIES);
        for (what, frame) in frames() {
            assert_eq!(program.run(&frame, &veth, MAP_ENTRIES), XDP_PASS, "{what}");
        }
        assert_eq!(program.counters(), [NOTHING; 3]);
    });
}
