//! The leak detector sees leaks that were planted, and nothing where there are none.

use std::time::Duration;

use e2e::bpf::{self, MapType, XdpAttach};
use e2e::leaks::{Fds, Leaks, objects_of};
use e2e::netlink::VethEnd;
use e2e::packets::Mac;
use e2e::queue_program::QueueProgram;
use e2e::raw_xsk;
use e2e::world::{Side, World};

const PATIENCE: Duration = Duration::from_secs(10);

#[test]
fn planted_leaks_are_seen() {
    let world = World::new().unwrap();
    let mut leaks = Leaks::snapshot(&world).unwrap();
    assert_eq!(leaks.differences(&world).unwrap(), [""; 0]);

    let net = world.namespace(Side::Host).net();
    let end = |name, last| VethEnd {
        name,
        mac: Mac([2, 0, 0, 0, 9, last]),
        queues: 1,
        net,
    };
    world
        .netlink(Side::Host)
        .add_veth(&end("stray0", 1), &end("stray1", 2))
        .unwrap();
    let socket = world.run_in(Side::Host, raw_xsk::bare_socket).unwrap().unwrap();
    let map = bpf::create_map(MapType::Array, "stray", 8, 1).unwrap();
    world
        .run_in(Side::Host, || bpf::pin(&map, "/run/bpf/stray".as_ref()))
        .unwrap()
        .unwrap();
    world.write("stray.sock", "", 0o600).unwrap();
    let program = QueueProgram::attach(&world, Side::Host, XdpAttach::Native).unwrap();
    leaks.expect_objects_gone(&world, std::process::id()).unwrap();

    let mut seen = leaks.differences(&world).unwrap();
    // Of other tests in this process, which is not named in earnest.
    seen.retain(|line| !line.contains("BPF"));
    seen.sort();
    assert_eq!(
        seen,
        [
            "gone: Host: device eth0",
            "left behind: /run/bpf/stray",
            "left behind: /run/stray.sock",
            "left behind: Host: AF_XDP socket 1",
            "left behind: Host: device eth0 with XDP",
            "left behind: Host: device stray0",
            "left behind: Host: device stray1",
        ]
    );

    drop((socket, map, program));
    std::fs::remove_file(world.path("stray.sock")).unwrap();
    world
        .run_in(Side::Host, || std::fs::remove_file("/run/bpf/stray"))
        .unwrap()
        .unwrap();
    world
        .netlink(Side::Host)
        .delete(world.netlink(Side::Host).link("stray0").unwrap().index)
        .unwrap();
    Leaks::wait_none(&Leaks::snapshot(&world).unwrap(), &world, PATIENCE).unwrap();
    let fresh = leaks.differences(&world).unwrap();
    assert_eq!(
        fresh.iter().filter(|line| !line.contains("BPF")).count(),
        0,
        "{fresh:?}"
    );
}

#[test]
fn bpf_objects_are_followed_to_their_end() {
    let world = World::new().unwrap();
    let before = objects_of(std::process::id()).unwrap();
    let program = QueueProgram::attach(&world, Side::Host, XdpAttach::Native).unwrap();
    let attached = world
        .netlink(Side::Host)
        .link("eth0")
        .unwrap()
        .xdp
        .expect("an XDP program");
    assert!(bpf::exists(bpf::Kind::Program, attached).unwrap());
    let during = objects_of(std::process::id()).unwrap();
    assert!(
        during
            .difference(&before)
            .any(|(kind, _)| *kind == bpf::Kind::Link),
        "{during:?}"
    );
    drop(program);
    let gone = || !bpf::exists(bpf::Kind::Program, attached).unwrap();
    let deadline = std::time::Instant::now() + PATIENCE;
    while !gone() {
        assert!(std::time::Instant::now() < deadline, "program {attached} stays");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn fds_are_told_by_kind() {
    // Of a process of its own: this one's fds come and go with the other tests.
    let world = World::new().unwrap();
    let uid = e2e::uids::Uid::take().unwrap();
    let holder = e2e::holder::Holder::body(&world, Side::Host, &uid.user(), "sleep_long", &[]).unwrap();
    holder.wait_line("asleep", PATIENCE).unwrap();
    let fds = Fds::of(holder.pid()).unwrap();
    assert_eq!(fds.differences(&fds).count(), 0);
    assert!(fds.count() >= 3);
    // More pipes here than the holder has, whatever else this process is doing.
    let _pipes: Vec<_> = (0..8).map(|_| std::io::pipe().unwrap()).collect();
    let ours = Fds::of(std::process::id()).unwrap();
    assert!(
        fds.differences(&ours).any(|line| line.contains("fds of pipe")),
        "{fds:?}"
    );
}
