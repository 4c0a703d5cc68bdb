//! The holder has no right at all, and the broker has four, on one thread, for one call at a time.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use e2e::broker::BrokerProcess;
use e2e::holder::Holder;
use e2e::leaks::Leaks;
use e2e::status::{Capabilities, Status};
use e2e::uids::Uid;
use e2e::world::{Side, World};

use crate::lease_scene::{operator, policy, wait_until};
use crate::puppet::Puppet;

/// CAP_NET_ADMIN, CAP_NET_RAW, CAP_IPC_LOCK, CAP_BPF (include/uapi/linux/capability.h).
const KEPT: u64 = 1 << 12 | 1 << 13 | 1 << 14 | 1 << 39;

/// Its whole status but for the capability sets, which it returns.
fn check(broker: &BrokerProcess<'_>, status: &Status) -> Capabilities {
    let uid = broker.uid();
    assert_ne!(uid, 0);
    assert_eq!((status.uids, status.gids), ([uid; 4], [uid; 4]));
    assert!(status.groups.is_empty(), "{:?}", status.groups);
    assert!(status.no_new_privs);
    status.capabilities
}

#[test]
fn a_holder_that_answers_packets_has_no_right() {
    let world = World::new().unwrap();
    let alice = Uid::take().unwrap();
    let _broker = BrokerProcess::start(&world, &policy(&[(alice.number(), "1-7")])).unwrap();
    let holder = Holder::example(&world, Side::Host, &alice.user(), "echo", &["eth0:3"]).unwrap();
    holder.wait_active().unwrap();
    for (_, name, status) in Status::of_threads(holder.pid()).unwrap() {
        assert_eq!(status.uids, [alice.number(); 4], "{name}");
        assert_eq!(status.capabilities, Capabilities::NONE, "{name}");
        assert!(status.no_new_privs && status.groups.is_empty(), "{name}");
    }
    let limits = std::fs::read_to_string(format!("/proc/{}/limits", holder.pid())).unwrap();
    let memlock = limits
        .lines()
        .find(|line| line.starts_with("Max locked memory"))
        .unwrap();
    assert_eq!(memlock.split_whitespace().nth(3), Some("8388608"), "{memlock}");
}

#[test]
fn only_the_engine_may_raise_anything() {
    let world = World::new().unwrap();
    let alice = Uid::take().unwrap();
    let broker = BrokerProcess::start(&world, &policy(&[(alice.number(), "1-7")])).unwrap();
    let mut holder = Puppet::start(&world, Side::Host, &alice.user());
    holder.hold("eth0:3");
    let threads = Status::of_threads(broker.process().pid()).unwrap();
    assert!(threads.iter().any(|(_, name, _)| name == "engine"), "{threads:?}");
    for (_, name, status) in &threads {
        let permitted = if name == "engine" { KEPT } else { 0 };
        let expected = Capabilities {
            permitted,
            ..Capabilities::NONE
        };
        assert_eq!(check(&broker, status), expected, "thread {name}");
    }
}

#[test]
fn nothing_is_effective_under_load_and_no_fd_is_kept() {
    const GRANTS: u32 = 200;
    let world = World::new().unwrap();
    let alice = Uid::take().unwrap();
    let mut leaks = Leaks::snapshot(&world).unwrap();
    let mut broker = BrokerProcess::start(&world, &policy(&[(alice.number(), "1-7")])).unwrap();
    let pid = broker.process().pid();
    let mut holder = Puppet::start(&world, Side::Host, &alice.user());
    // The device's program and maps stay open from the first grant on.
    let first = holder.hold("eth0:1");
    holder.release(first);
    holder.close(first);
    let mut operator = operator(&broker);
    wait_until("no lease is left", || {
        operator.list_leases().unwrap().leases.is_empty()
    });
    let before = e2e::leaks::Fds::of(pid).unwrap();

    let over = AtomicBool::new(false);
    let samples = std::thread::scope(|scope| {
        let sampler = scope.spawn(|| {
            let mut samples = 0;
            while !over.load(Ordering::Relaxed) {
                // Of the process, that is of its main thread.
                let capabilities = check(&broker, &Status::of(pid).unwrap());
                assert_eq!(capabilities, Capabilities::NONE);
                let threads = Status::of_threads(pid).unwrap();
                for (_, name, status) in threads.iter().filter(|(_, name, _)| name != "engine") {
                    assert_eq!(status.capabilities, Capabilities::NONE, "thread {name}");
                }
                samples += 1;
            }
            samples
        });
        for number in 0..GRANTS {
            let lease = holder.acquire(&format!("eth0:{}", 1 + number % 7)).unwrap();
            holder.release(lease);
            holder.close(lease);
        }
        over.store(true, Ordering::Relaxed);
        sampler.join().unwrap()
    });
    assert!(samples > 20, "{samples} samples over {GRANTS} grants");

    // While it is held, a lease keeps one fd for each queue, and what watches its holder.
    let lease = holder.hold("eth0:1-3");
    let held = e2e::leaks::Fds::of(pid).unwrap();
    assert!(held.count() >= before.count() + 3, "{held:?} {before:?}");
    holder.release(lease);
    holder.close(lease);
    let mut abandoned = Puppet::start(&world, Side::Host, &alice.user());
    abandoned.hold("eth0:4-5");
    abandoned.kill();
    wait_until("all fds are closed", || {
        let now = e2e::leaks::Fds::of(pid).unwrap();
        now.differences(&before).next().is_none()
    });
    drop(holder);
    leaks.expect_objects_gone(&world, pid).unwrap();
    broker.stop().unwrap();
    leaks.wait_none(&world, Duration::from_secs(10)).unwrap();
}
