//! A manager's whole day, with the library's example: it takes a queue, starts a VMM of another uid with it, hands the
//! lease over, watches, takes the queue again when the VMM has died, dies itself, and comes back.

use std::os::fd::AsFd;
use std::process::Command;

use e2e::binaries;
use e2e::broker::BrokerProcess;
use e2e::process::Process;
use e2e::uids::Uid;
use e2e::world::{Side, World};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use xsk_client::wire::{Lease, LeaseState};

use crate::lease_scene::{PATIENCE, allow_with, interface, leases, wait_until};

/// A process that a test does not start itself; it ends with the test.
struct Vmm(std::os::fd::OwnedFd);

impl Vmm {
    fn of(pid: u32) -> Self {
        let pid = Pid::from_raw(i32::try_from(pid).unwrap()).unwrap();
        Self(pidfd_open(pid, PidfdFlags::empty()).unwrap())
    }
}

impl Drop for Vmm {
    fn drop(&mut self) {
        // Gone already is fine.
        pidfd_send_signal(self.0.as_fd(), Signal::KILL).ok();
    }
}

fn manager(world: &World, uid: &Uid) -> Process {
    let install = |name| world.install(name, &binaries::client(name).unwrap()).unwrap();
    let mut command = Command::new(install("manager"));
    command.env_clear().env("RUST_BACKTRACE", "1");
    command
        .arg("eth0:3")
        .arg(uid.number().to_string())
        .arg(install("echo"));
    Process::spawn(world.namespace(Side::Host), None, command).unwrap()
}

/// Lease and pid of the first line that begins so and is about a later lease than that.
fn told_after(manager: &Process, word: &str, earlier: u64) -> (u64, u32) {
    manager
        .wait_stdout(PATIENCE, |line| {
            let mut words = line.strip_prefix(word)?.split(" pid ");
            let lease: u64 = words.next()?.parse().ok()?;
            let pid = words.next()?.parse().ok()?;
            (lease > earlier).then_some((lease, pid))
        })
        .unwrap()
}

fn told(manager: &Process, word: &str) -> (u64, u32) {
    told_after(manager, word, 0)
}

fn only(broker: &BrokerProcess<'_>) -> Lease {
    let mut leases = leases(broker);
    assert_eq!(leases.len(), 1, "{leases:?}");
    leases.remove(0)
}

#[test]
fn a_managers_day() {
    let world = World::new().unwrap();
    let vmm_uid = Uid::take().unwrap();
    let more = format!("transfer-to = {}", vmm_uid.number());
    let text = interface("eth0", "") + &allow_with(0, "1-7", &more);
    let broker = BrokerProcess::start(&world, &text).unwrap();

    // Morning: a VMM is started, and works.
    let mut first = manager(&world, &vmm_uid);
    let (lease, pid) = told(&first, "started lease ");
    let vmm = Vmm::of(pid);
    first
        .wait_stdout(PATIENCE, |line| line.starts_with("active lease").then_some(()))
        .unwrap();
    let held = only(&broker);
    assert_eq!(
        (held.requester.uid, held.holder.uid, held.holder.pid),
        (0, vmm_uid.number(), pid)
    );
    assert_eq!((held.lease, held.state), (lease, LeaseState::Active));

    // Noon: the VMM is killed; the manager hears of it, and starts another one on the same queue.
    drop(vmm);
    let (next, pid) = told_after(&first, "started lease ", lease);
    let vmm = Vmm::of(pid);
    let heard: Vec<String> = first.stdout();
    assert!(heard.contains(&format!("lease {lease} freed")), "{heard:?}");
    wait_until("the second VMM works", || {
        only(&broker).state == LeaseState::Active
    });
    assert_eq!(only(&broker).lease, next);

    // Afternoon: the manager itself is killed. The VMM goes on.
    first.kill().unwrap();
    let still = only(&broker);
    assert_eq!(
        (still.lease, still.state, still.holder.pid),
        (next, LeaseState::Active, pid)
    );

    // Evening: a new manager finds the VMM of the old one, and follows it.
    let mut second = manager(&world, &vmm_uid);
    assert_eq!(told(&second, "found lease "), (next, pid));
    assert_eq!(only(&broker).state, LeaseState::Active);
    drop(vmm);
    let (last, pid) = told(&second, "started lease ");
    let vmm = Vmm::of(pid);
    assert!(last > next);
    wait_until("the third VMM works", || {
        leases(&broker)
            .iter()
            .any(|lease| lease.lease == last && lease.state == LeaseState::Active)
    });
    // Night.
    second.kill().unwrap();
    drop(vmm);
    wait_until("the queue is free", || leases(&broker).is_empty());
}
