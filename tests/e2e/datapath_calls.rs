//! What the client library costs besides instructions: no allocation and no system call but needed kicks on the hot path,
//! and, all in all, no system call that its list for seccomp(2) does not have.

use std::time::Duration;

use e2e::allocations;
use e2e::broker::BrokerProcess;
use e2e::holder::Holder;
use e2e::packet_socket::PacketSocket;
use e2e::packets;
use e2e::trace::{Call, Traced};
use e2e::uids::Uid;
use e2e::world::{Side, World};
use rustix::process::Pid;
use seccompiler::{BpfProgram, SeccompAction, SeccompFilter};
use xsk_client::seccomp::{OPEN, RUN, SystemCall};
use xsk_client::wire::SocketKind;
use xsk_client::{BindOptions, Broker, Grant, Request, Umem, UmemOptions, Xsk};

use crate::bound_scene::needs_bound;
use crate::lease_scene::{PATIENCE, allow_kinds, interface, payload, port};

const QUEUE: u32 = 3;
/// How many frames one kick sends (`TX_BATCH_SIZE`, net/xdp/xsk.c).
const KICK: usize = 32;
/// How many a holder sends back under its filter.
const FRAMES: u64 = 300;

fn open(kind: SocketKind) -> Xsk {
    let mut broker = Broker::connect().unwrap();
    let target = "eth0:3".parse().unwrap();
    let umem = UmemOptions::new().chunks(1024);
    let bound = match kind {
        SocketKind::Bound => Grant::acquire(&mut broker, Request::bound(target, &umem))
            .unwrap()
            .bind_by_broker(&mut broker)
            .unwrap()
            .one()
            .unwrap(),
        kind => Grant::acquire(&mut broker, Request::new(target).kind(kind))
            .unwrap()
            .bind_one(Umem::new(&umem).unwrap(), &BindOptions::new())
            .unwrap(),
    };
    let xsk = bound.activate(&mut broker).unwrap();
    // It lives as long as we do.
    std::mem::forget(broker);
    xsk
}

/// A body: turns of the hot path, each between two calls that nothing else makes, the second of which tells how many kicks
/// were needed.
pub(crate) fn hot_path(_arguments: &[String]) {
    let mut xsk = open(SocketKind::Prepared);
    let before = allocations::count();
    drop(Box::new(before));
    assert!(allocations::count() > before, "allocations are counted");
    println!("thread {}", rustix::thread::gettid().as_raw_nonzero());
    loop {
        xsk.wait(Some(Duration::from_millis(10))).unwrap();
        let before = allocations::count();
        let _parent = rustix::process::getppid();
        let needed = turn(&mut xsk);
        let told = Pid::from_raw(i32::try_from(needed).unwrap() + 1).unwrap();
        rustix::process::test_kill_process(told).ok();
        assert_eq!(allocations::count(), before, "the hot path has allocated");
    }
}

/// Receives all that is there, sends back two of three, and sends as many of its own as there is room for.
fn turn(xsk: &mut Xsk) -> usize {
    let mut needed = 0;
    loop {
        let mut batch = xsk.receive(64).unwrap();
        let received = batch.len();
        let mut sent = 0;
        let mut number = 0;
        while let Some(frame) = batch.next_frame() {
            number += 1;
            if number % 3 > 0 && frame.send().is_ok() {
                sent += 1;
            }
        }
        drop(batch);
        needed += usize::div_ceil(sent, KICK);
        if received == 0 {
            break;
        }
    }
    for frames in [64, 1, 33] {
        let sent = xsk.transmit(frames).unwrap().send_each(|frame| {
            frame[..64].fill(0xff);
            64
        });
        needed += usize::div_ceil(sent, KICK);
    }
    needed
}

#[test]
fn the_hot_path_allocates_nothing_and_makes_no_call_but_needed_kicks() {
    let world = World::new().unwrap();
    let alice = Uid::take().unwrap();
    let policy = interface("eth0", "") + &allow_kinds(alice.number(), "1-7", &["prepared"], "");
    let _broker = BrokerProcess::start(&world, &policy).unwrap();
    let peer = PacketSocket::open(&world, Side::PEER).unwrap();
    peer.steer(QUEUE).unwrap();
    let holder = Holder::body(&world, Side::Host, &alice.user(), "hot_path", &[]).unwrap();
    let thread = holder
        .process()
        .wait_stdout(PATIENCE, |line| line.strip_prefix("thread ")?.parse().ok());
    let thread = thread.unwrap_or_else(|error| panic!("{error}: {}", holder.process().last_words()));
    let mut traced = Traced::seize(thread).unwrap();
    let (from, to) = (
        world.device(Side::PEER).end(9),
        world.device(Side::Host).end(port(QUEUE)),
    );
    for number in 0..20 {
        for frame in 0..40 {
            peer.send(&packets::udp(from, to, &payload(QUEUE, number * 40 + frame, 100)))
                .unwrap();
        }
        let calls = one_turn(&mut traced)
            .unwrap_or_else(|error| panic!("{error}: {}", holder.process().last_words()));
        let (end, kicks) = calls.split_last().unwrap();
        assert!(
            kicks.iter().all(|call| call.number == libc::SYS_sendto),
            "{calls:?}"
        );
        let needed = usize::try_from(end.argument).unwrap() - 1;
        assert!(
            (1..=needed).contains(&kicks.len()),
            "{} kicks, {needed} needed",
            kicks.len()
        );
    }
}

/// The calls of one turn, and the one that tells what was needed.
fn one_turn(traced: &mut Traced) -> std::io::Result<Vec<Call>> {
    while traced.next_call()?.number != libc::SYS_getppid {}
    let mut calls = Vec::new();
    loop {
        let call = traced.next_call()?;
        calls.push(call);
        if call.number == libc::SYS_kill {
            return Ok(calls);
        }
    }
}

/// What the test's program itself needs, beside the library: output, memory, time, and its end.
const OF_THE_PROGRAM: &[i64] = &[
    libc::SYS_write,
    libc::SYS_mmap,
    libc::SYS_munmap,
    libc::SYS_mremap,
    libc::SYS_mprotect,
    libc::SYS_madvise,
    libc::SYS_brk,
    libc::SYS_futex,
    libc::SYS_clock_gettime,
    libc::SYS_sigaltstack,
    libc::SYS_rt_sigprocmask,
    libc::SYS_exit_group,
    // In debug builds the standard library asks whether a file descriptor is open before it closes it (F_GETFD,
    // `debug_assert_fd_is_open`); while packets flow the library makes no such call of its own.
    #[cfg(debug_assertions)]
    libc::SYS_fcntl,
];

/// From here on every other call ends this process.
fn restrict(calls: impl Iterator<Item = i64>) {
    let rules = calls.map(|call| (call, Vec::new())).collect();
    let arch = std::env::consts::ARCH.try_into().unwrap();
    let filter = SeccompFilter::new(rules, SeccompAction::KillProcess, SeccompAction::Allow, arch).unwrap();
    let program: BpfProgram = filter.try_into().unwrap();
    seccompiler::apply_filter(&program).unwrap();
}

fn numbers(calls: &[SystemCall]) -> impl Iterator<Item = i64> {
    calls.iter().map(|call| call.number)
}

/// A body: a holder that opens under the whole list, and runs under half of it.
pub(crate) fn filtered(arguments: &[String]) {
    // The second filter is added to the first, which has to allow that.
    let second = [libc::SYS_seccomp, libc::SYS_prctl];
    restrict(
        numbers(OPEN)
            .chain(numbers(RUN))
            .chain(OF_THE_PROGRAM.iter().copied())
            .chain(second),
    );
    let kind = serde_json::from_value(arguments[0].clone().into()).unwrap();
    let mut xsk = open(kind);
    restrict(numbers(RUN).chain(OF_THE_PROGRAM.iter().copied()));
    println!("active");
    let mut frames = 0;
    while frames < FRAMES {
        xsk.wait(Some(Duration::from_millis(100))).unwrap();
        let mut batch = xsk.receive(64).unwrap();
        while let Some(frame) = batch.next_frame() {
            frame.send().unwrap();
            frames += 1;
        }
        drop(batch);
        assert_eq!(xsk.statistics().unwrap().tx_invalid_descs, 0);
    }
    drop(xsk);
    println!("let go");
    std::process::exit(0);
}

#[test]
fn holders_of_each_kind_make_no_system_call_that_is_not_listed() {
    for kind in [SocketKind::Prepared, SocketKind::Bare, SocketKind::Bound] {
        if kind == SocketKind::Bound {
            needs_bound!();
        }
        let world = World::new().unwrap();
        let alice = Uid::take().unwrap();
        let policy = interface("eth0", "") + &allow_kinds(alice.number(), "1-7", &[&kind.to_string()], "");
        let _broker = BrokerProcess::start(&world, &policy).unwrap();
        let peer = PacketSocket::open(&world, Side::PEER).unwrap();
        peer.steer(QUEUE).unwrap();
        let mut holder = Holder::body(
            &world,
            Side::Host,
            &alice.user(),
            "filtered",
            &[&kind.to_string()],
        )
        .unwrap();
        let active = holder.wait_line("active", PATIENCE);
        active.unwrap_or_else(|error| panic!("{kind}: {error}: {}", holder.process().last_words()));
        let (from, to) = (
            world.device(Side::PEER).end(9),
            world.device(Side::Host).end(port(QUEUE)),
        );
        for number in 0..FRAMES {
            let frame = packets::udp(from, to, &payload(QUEUE, number, 100));
            peer.send(&frame).unwrap();
            let came = peer.expect(PATIENCE, |bytes| (bytes == frame).then_some(()));
            assert_eq!(
                came.unwrap(),
                Some(()),
                "{kind}: {}",
                holder.process().last_words()
            );
        }
        let status = holder.wait(PATIENCE).unwrap();
        assert!(
            status.success(),
            "{kind}: {status}: {}",
            holder.process().last_words()
        );
    }
}
