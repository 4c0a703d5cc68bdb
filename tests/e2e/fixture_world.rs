//! The fixture's worlds carry packets, steer them, and vanish.

use std::collections::BTreeSet;
use std::net::UdpSocket;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use e2e::bpf::XdpAttach;
use e2e::echo_loop::EchoLoop;
use e2e::ethtool::Channels;
use e2e::holder::Holder;
use e2e::leaks;
use e2e::netlink::LinkState;
use e2e::packet_socket::PacketSocket;
use e2e::packets::{self, Parsed};
use e2e::patience::stretched;
use e2e::process::Process;
use e2e::queue_program::QueueProgram;
use e2e::steering::Steer;
use e2e::uids::Uid;
use e2e::world::{Side, World};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

const PATIENCE: Duration = Duration::from_secs(10);

/// A UDP socket bound to a side's address.
fn udp(world: &World, side: Side, port: u16) -> UdpSocket {
    let address = world.device(side).address;
    world
        .run_in(side, || UdpSocket::bind((address, port)))
        .unwrap()
        .unwrap()
}

/// Echoes on the host's stack until the value is dropped.
struct StackEcho(
    std::sync::Arc<std::sync::atomic::AtomicBool>,
    Option<std::thread::JoinHandle<()>>,
);

impl StackEcho {
    fn start(socket: UdpSocket) -> Self {
        use std::sync::atomic::Ordering;
        let stop = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
        let stopped = std::sync::Arc::clone(&stop);
        socket.set_read_timeout(Some(Duration::from_millis(20))).unwrap();
        let thread = std::thread::spawn(move || {
            let mut buffer = [0; 2048];
            while !stopped.load(Ordering::Relaxed) {
                if let Ok((len, from)) = socket.recv_from(&mut buffer) {
                    socket.send_to(&buffer[..len], from).unwrap();
                }
            }
        });
        Self(stop, Some(thread))
    }
}

impl Drop for StackEcho {
    fn drop(&mut self) {
        self.0.store(true, std::sync::atomic::Ordering::Relaxed);
        if let Some(thread) = self.1.take() {
            thread.join().unwrap();
        }
    }
}

#[test]
fn udp_goes_both_ways_through_the_stacks() {
    let world = World::builder().peers(2).build().unwrap();
    for peer in [Side::Peer(0), Side::Peer(1)] {
        let Side::Peer(number) = peer else { unreachable!() };
        let address = world.wire(number).host.address;
        let server = world
            .run_in(Side::Host, || UdpSocket::bind((address, 7)))
            .unwrap()
            .unwrap();
        let target = server.local_addr().unwrap();
        let echo = StackEcho::start(server);
        let client = udp(&world, peer, 0);
        let count = EchoLoop::new(target, 2000).run(&client).unwrap();
        assert!(count.is_perfect(), "{count:?}");
        drop(echo);
    }
}

#[test]
fn packets_choose_their_queue() {
    let world = World::new().unwrap();
    let program = QueueProgram::attach(&world, Side::Host, XdpAttach::Native).unwrap();
    // What was sent has not always arrived when send() returns: a veth's receiver may run later.
    let expect_arrived = |expected: [u64; 8]| {
        let deadline = Instant::now() + stretched(Duration::from_secs(5));
        loop {
            let arrived: Vec<u64> = (0..8).map(|queue| program.arrived(queue).unwrap()).collect();
            if arrived.iter().sum::<u64>() >= expected.iter().sum() || Instant::now() > deadline {
                assert_eq!(arrived, expected);
                return;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    };
    let host = world.device(Side::Host).address;
    let elsewhere = "10.77.0.50".parse().unwrap();
    world
        .steer(
            0,
            &[
                Steer::udp_to(1001, 1),
                Steer::udp_to(1007, 7),
                Steer::udp_from(2003, 3),
                Steer::address(elsewhere, 5),
            ],
        )
        .unwrap();
    let server = StackEcho::start(udp(&world, Side::Host, 1001));
    let seventh = StackEcho::start(udp(&world, Side::Host, 1007));
    let plain = StackEcho::start(udp(&world, Side::Host, 1000));

    let any = udp(&world, Side::PEER, 0);
    let third = udp(&world, Side::PEER, 2003);
    let run = |socket: &UdpSocket, port: u16, count| {
        let counted = EchoLoop::new((host, port).into(), count).run(socket).unwrap();
        assert!(counted.is_perfect(), "{counted:?}");
    };
    expect_arrived([0; 8]);
    run(&any, 1001, 1000);
    expect_arrived([0, 1000, 0, 0, 0, 0, 0, 0]);
    run(&any, 1007, 300);
    expect_arrived([0, 1000, 0, 0, 0, 0, 0, 300]);
    run(&third, 1000, 200);
    expect_arrived([0, 1000, 0, 200, 0, 0, 0, 300]);
    run(&any, 1000, 10);
    expect_arrived([10, 1000, 0, 200, 0, 0, 0, 300]);
    // The rule for the destination comes first.
    run(&third, 1001, 5);
    expect_arrived([10, 1005, 0, 200, 0, 0, 0, 300]);

    // The driver counts as we do.
    let driver = world.ethtool(Side::Host).statistics("eth0").unwrap();
    assert_eq!(driver["rx_queue_1_xdp_packets"], 1005);
    assert_eq!(driver["rx_queue_7_xdp_packets"], 300);

    // Frames past the stack: by their address, ARP included, or by the sender's mark.
    let packets = PacketSocket::open(&world, Side::PEER).unwrap();
    let (peer_end, host_end) = (
        world.device(Side::PEER).end(9),
        world.device(Side::Host).end(1001),
    );
    packets.send(&packets::arp_request(peer_end, elsewhere)).unwrap();
    let to_elsewhere = packets::End {
        address: elsewhere,
        port: 1234,
        ..host_end
    };
    packets.send(&packets::udp(peer_end, to_elsewhere, b"5")).unwrap();
    packets
        .send(&packets::echo_request(peer_end, to_elsewhere, 1, b"5"))
        .unwrap();
    expect_arrived([10, 1005, 0, 200, 0, 3, 0, 300]);
    // To a port that nobody has: the peer's stack would answer an answer.
    let nobody = packets::End { port: 1, ..host_end };
    for queue in 0..8 {
        packets.steer(queue).unwrap();
        packets.send(&packets::udp(peer_end, nobody, b"by mark")).unwrap();
    }
    expect_arrived([11, 1006, 1, 201, 1, 4, 1, 301]);

    // A short frame, and one of no known kind, harm nothing.
    let unsteered = PacketSocket::open(&world, Side::PEER).unwrap();
    unsteered
        .send(&packets::ethernet(host_end.mac, peer_end.mac, 0x88b5, b""))
        .unwrap();
    unsteered
        .send(&packets::ethernet(
            host_end.mac,
            peer_end.mac,
            packets::ETHERTYPE_IPV4,
            b"E",
        ))
        .unwrap();
    expect_arrived([13, 1006, 1, 201, 1, 4, 1, 301]);

    // New rules replace the old ones.
    world.steer(0, &[Steer::udp_to(1001, 2)]).unwrap();
    run(&any, 1001, 10);
    expect_arrived([13, 1006, 11, 201, 1, 4, 1, 301]);
    drop((server, seventh, plain));
}

#[test]
fn generic_xdp_on_a_veth_counts_queues_one_too_low() {
    // veth_xmit leaves the sender's queue in `queue_mapping`, and netif_get_rxqueue (net/core/dev.c) takes that for
    // a recorded receive queue, which is written as queue + 1. Native XDP is told the queue by the driver.
    let world = World::new().unwrap();
    let program = QueueProgram::attach(&world, Side::Host, XdpAttach::Generic).unwrap();
    let packets = PacketSocket::open(&world, Side::PEER).unwrap();
    let host = packets::End {
        port: 1,
        ..world.device(Side::Host).end(1)
    };
    for queue in 0..8 {
        packets.steer(queue).unwrap();
        for _ in 0..=queue {
            packets
                .send(&packets::udp(world.device(Side::PEER).end(9), host, b""))
                .unwrap();
        }
    }
    // It runs in a softirq, which has not always run when the sender is back.
    let arrived = || -> Vec<u64> { (0..8).map(|queue| program.arrived(queue).unwrap()).collect() };
    let deadline = Instant::now() + PATIENCE;
    while arrived().iter().sum::<u64>() < 36 && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(5));
    }
    assert_eq!(arrived(), [1 + 2, 3, 4, 5, 6, 7, 8, 0]);
}

#[test]
fn frames_arrive_whole_with_their_checksums() {
    let world = World::new().unwrap();
    let wire = PacketSocket::open(&world, Side::Host).unwrap();
    let (host, peer) = (world.device(Side::Host), world.device(Side::PEER));
    let client = udp(&world, Side::PEER, 4000);
    let sent = vec![b'x'; 1400];
    client.send_to(&sent, (host.address, 4001)).unwrap();
    let seen = wire
        .expect(PATIENCE, |frame| match packets::parse(frame)? {
            Parsed::Udp {
                from,
                to,
                checksums,
                payload,
            } => Some((from, to, checksums, payload.to_vec())),
            _ => None,
        })
        .unwrap()
        .expect("the datagram on the wire");
    assert_eq!(
        seen,
        (peer.end(4000), host.end(4001), packets::Checksums::Right, sent)
    );
}

#[test]
fn devices_change_as_told() {
    let world = World::new().unwrap();
    let (netlink, ethtool) = (world.netlink(Side::Host), world.ethtool(Side::Host));
    let index = world.device(Side::Host).index;
    assert_eq!(ethtool.channels("eth0").unwrap(), Channels { rx: 8, tx: 8 });
    world.set_queues(0, 3).unwrap();
    assert_eq!(ethtool.channels("eth0").unwrap(), Channels { rx: 3, tx: 3 });
    world.set_queues(0, 6).unwrap();
    assert_eq!(
        world.ethtool(Side::PEER).channels("peer0").unwrap(),
        Channels { rx: 6, tx: 6 }
    );

    netlink.set_link(index, LinkState::Down).unwrap();
    assert!(!netlink.link("eth0").unwrap().up);
    netlink.set_link(index, LinkState::Up).unwrap();
    netlink.rename(index, "uplink").unwrap();
    assert!(netlink.link("uplink").unwrap().up);
    netlink.set_mtu(index, 3000).unwrap();
    netlink.delete(index).unwrap();
    let gone = netlink.link("uplink").unwrap_err();
    assert_eq!(gone.to_string(), "there is no device uplink");
    assert!(
        world.netlink(Side::PEER).link("peer0").is_err(),
        "a veth goes with its other end"
    );
}

#[test]
fn files_and_programs_are_seen_inside_only() {
    let world = World::new().unwrap();
    let inside = world.write("hello.toml", "hello", 0o644).unwrap();
    assert_eq!(inside, Path::new("/run/hello.toml"));
    assert!(!inside.exists(), "the world's /run is not ours");
    let read = world
        .run_in(Side::PEER, || std::fs::read_to_string(&inside))
        .unwrap()
        .unwrap();
    assert_eq!(read, "hello");

    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    assert!(
        !mounts.lines().any(|line| line.contains("/run/bpf")),
        "a mount leaked: {mounts}"
    );
    let inside = world.run_in(Side::Host, || {
        std::fs::read_to_string("/proc/thread-self/mountinfo")
    });
    assert!(inside.unwrap().unwrap().contains(" /run/bpf "));
}

#[test]
fn a_world_vanishes_even_with_processes_in_it() {
    let world = World::new().unwrap();
    let namespaces = leaks::namespaces(&world).unwrap();
    let program = world
        .install("e2e", &e2e::binaries::this_program().unwrap())
        .unwrap();
    let mut command = Command::new(program);
    command.args(["--exact", e2e::holder::ENTRY, "--quiet", "--nocapture"]);
    command
        .env(e2e::holder::BODY, "sleep_long")
        .env(e2e::holder::ARGUMENTS, "[]");
    let process = Process::spawn(world.namespace(Side::PEER), None, command).unwrap();
    process
        .wait_stdout(PATIENCE, |line| (line == "asleep").then_some(()))
        .unwrap();

    drop(world);
    let still = leaks::wait_namespaces_gone(&namespaces, Duration::ZERO)
        .unwrap_err()
        .to_string();
    assert!(
        still.contains(&format!("/proc/{}/", process.pid())),
        "the detector sees the process: {still}"
    );
    drop(process);
    leaks::wait_namespaces_gone(&namespaces, PATIENCE).unwrap();
}

/// A body: makes a world with a holder in it, and waits to be killed.
pub(crate) fn world_with_a_holder(_: &[String]) {
    let world = World::new().unwrap();
    let uid = Uid::take().unwrap();
    let holder = Holder::body(&world, Side::PEER, &uid.user(), "sleep_long", &[]).unwrap();
    holder.wait_line("asleep", PATIENCE).unwrap();
    let namespaces = leaks::namespaces(&world).unwrap();
    println!("{}", serde_json::to_string(&(holder.pid(), namespaces)).unwrap());
    std::thread::sleep(Duration::from_secs(600));
}

#[test]
fn nothing_outlives_a_test_that_is_killed() {
    let outer = World::new().unwrap();
    let program = outer
        .install("e2e", &e2e::binaries::this_program().unwrap())
        .unwrap();
    let mut command = Command::new(program);
    command.args(["--exact", e2e::holder::ENTRY, "--quiet", "--nocapture"]);
    command
        .env(e2e::holder::BODY, "world_with_a_holder")
        .env(e2e::holder::ARGUMENTS, "[]");
    let mut test = Process::spawn(outer.namespace(Side::Host), None, command).unwrap();
    let (pid, namespaces): (u32, BTreeSet<u64>) = test
        .wait_stdout(PATIENCE, |line| serde_json::from_str(line).ok())
        .unwrap();
    let pid = Pid::from_raw(pid.cast_signed()).unwrap();
    let holder = pidfd_open(pid, PidfdFlags::empty()).expect("the holder lives");
    assert!(leaks::wait_namespaces_gone(&namespaces, Duration::ZERO).is_err());

    test.kill().unwrap();
    let patience = Timespec::try_from(PATIENCE).unwrap();
    let ended = poll(&mut [PollFd::new(&holder, PollFlags::IN)], Some(&patience)).unwrap();
    assert_eq!(ended, 1, "the holder lives on");
    leaks::wait_namespaces_gone(&namespaces, PATIENCE).unwrap();
}
