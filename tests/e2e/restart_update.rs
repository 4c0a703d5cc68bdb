//! A broker whose XDP program is another one than that which runs puts it in its place without a lost packet, if the maps
//! are what it wants; else the one that runs goes on.

use std::fs;
use std::os::fd::OwnedFd;
use std::time::Duration;

use e2e::bpf::{self, MapType};
use e2e::broker::BrokerProcess;
use e2e::instructions::{Assembler, R0, R1, R2, R3, call, exit, load_word, mov_value};
use e2e::process::was_killed;
use e2e::uids::Uid;
use e2e::world::{Side, World};

use crate::lease_scene::{PATIENCE, Traffic, leases, policy};
use crate::restart_scene::{Held, check, four_holders, pin, under_a_stream};

/// Another build's program: it sends packets where ours does, and counts nothing.
fn other_program(sockets: &OwnedFd, counters: &OwnedFd) -> OwnedFd {
    /// `bpf_redirect_map`
    const REDIRECT_MAP: i32 = 51;
    /// `rx_queue_index` of `struct xdp_md`.
    const QUEUE: i16 = 16;
    const XDP_PASS: i32 = 2;

    let mut code = Assembler::default();
    // Named, so that it is a map of the program's.
    code.load_map(R0, counters);
    code.push([load_word(R2, R1, QUEUE)]);
    code.load_map(R1, sockets);
    code.push([mov_value(R3, XDP_PASS), call(REDIRECT_MAP), exit()]);
    bpf::load_xdp_for_link("xsk_redirect", &code.finish().unwrap()).unwrap()
}

/// What is pinned for eth0, under one of its names.
fn pinned(world: &World, broker: &BrokerProcess<'_>, what: &str) -> std::path::PathBuf {
    pin(
        world,
        broker,
        &format!("{what}-{}", world.device(Side::Host).index),
    )
}

/// Has another build's program run in the place of this one's, as if that build had attached it.
fn as_of_another_build(world: &World, broker: &BrokerProcess<'_>, counters: Option<&OwnedFd>) {
    let open = |what| bpf::open_pinned(&pinned(world, broker, what)).unwrap();
    let own = open("counters");
    let program = other_program(&open("xsks"), counters.unwrap_or(&own));
    bpf::update_link(&open("link"), &program).unwrap();
    let put = |what, object: &OwnedFd| {
        let path = pinned(world, broker, what);
        fs::remove_file(&path).unwrap();
        bpf::pin(object, &path).unwrap();
    };
    put("program", &program);
    if let Some(counters) = counters {
        put("counters", counters);
    }
}

struct Scene<'w> {
    broker: BrokerProcess<'w>,
    traffic: Traffic,
    holders: Vec<Held>,
    _uids: [Uid; 4],
}

fn scene(world: &World) -> Scene<'_> {
    let uids = [(); 4].map(|()| Uid::take().unwrap());
    let rules: Vec<(u32, &str)> = uids.iter().map(|uid| (uid.number(), "1-7")).collect();
    Scene {
        broker: BrokerProcess::start(world, &policy(&rules)).unwrap(),
        traffic: Traffic::new(world),
        holders: four_holders(world, &uids),
        _uids: uids,
    }
}

impl Scene<'_> {
    /// Does something to the broker while packets go to its holders, and says how many came, of which none was lost.
    fn under_a_stream<T>(&mut self, act: impl FnOnce(&mut BrokerProcess<'_>) -> T) -> (u64, T) {
        let Self {
            broker,
            traffic,
            holders,
            ..
        } = self;
        under_a_stream(traffic, holders, || act(broker))
    }
}

fn program_of(world: &World) -> u32 {
    world.netlink(Side::Host).link("eth0").unwrap().xdp.unwrap()
}

#[test]
fn a_new_program_takes_the_old_ones_place_without_a_lost_packet() {
    let world = World::new().unwrap();
    let mut scene = scene(&world);
    let (packets, ()) = scene.under_a_stream(|broker| {
        for _ in 0..5 {
            broker.kill().unwrap();
            as_of_another_build(&world, broker, None);
            let old = program_of(&world);
            std::thread::sleep(Duration::from_millis(50));
            broker.restart().unwrap();
            let line = broker
                .wait_audit(PATIENCE, |line| line["event"] == "program-updated")
                .unwrap();
            assert_eq!(line["interface"], "eth0");
            assert_ne!(program_of(&world), old);
            std::thread::sleep(Duration::from_millis(50));
        }
        // The same program is left as it is.
        let ours = program_of(&world);
        broker.kill().unwrap();
        broker.restart().unwrap();
        assert_eq!(program_of(&world), ours);
    });
    println!("{packets} packets through 5 updates of the program, none lost");
    check(&world, &scene.broker, &scene.holders);
    // This broker's program counts.
    let Scene {
        broker,
        traffic,
        holders,
        ..
    } = &mut scene;
    let before = leases(broker)[0].queues[0].counters.redirected;
    traffic.send_all(1, 0..100);
    let first = &mut holders[0];
    first.puppet.receive(first.lease, 1, 100, Duration::from_secs(5));
    assert_eq!(leases(broker)[0].queues[0].counters.redirected, before + 100);
}

#[test]
fn a_kill_in_the_middle_of_an_update_is_no_harm() {
    let world = World::new().unwrap();
    let mut scene = scene(&world);
    let (packets, ()) = scene.under_a_stream(|broker| {
        for place in ["take over: new program pinned", "take over: link updated"] {
            broker.kill().unwrap();
            as_of_another_build(&world, broker, None);
            broker.relaunch_with("XSK_BROKER_FAIL_POINT", place).unwrap();
            assert!(was_killed(broker.wait().unwrap()), "{place}");
            broker.restart().unwrap();
            assert_eq!(leases(broker).len(), 4, "{place}");
            assert!(!pinned(&world, broker, "new-program").exists(), "{place}");
        }
    });
    println!("{packets} packets through two updates that were cut off, none lost");
    check(&world, &scene.broker, &scene.holders);
}

#[test]
fn where_the_map_would_have_to_change_the_old_program_goes_on() {
    let world = World::new().unwrap();
    let mut scene = scene(&world);
    let (packets, old) = scene.under_a_stream(|broker| {
        broker.kill().unwrap();
        // It counts three things.
        let counters = bpf::create_map(MapType::PerCpuArray, "queue_counters", 24, 8).unwrap();
        as_of_another_build(&world, broker, Some(&counters));
        let old = program_of(&world);
        for _ in 0..2 {
            broker.restart().unwrap();
            let told = |line: &str| {
                let told =
                    line.contains("takes another map") && line.contains("stop the broker and start it again");
                told.then_some(())
            };
            broker.process().wait_stderr(PATIENCE, told).unwrap();
            assert_eq!(program_of(&world), old);
            broker.kill().unwrap();
        }
        broker.restart().unwrap();
        old
    });
    println!("{packets} packets through three starts that kept the program, none lost");
    check(&world, &scene.broker, &scene.holders);
    // What the log said: no lease is left, a stop, a start.
    let Scene {
        mut broker, holders, ..
    } = scene;
    drop(holders);
    assert!(broker.stop().unwrap().success());
    broker.restart().unwrap();
    let link = world.netlink(Side::Host).link("eth0").unwrap();
    assert_ne!(link.xdp, Some(old));
}
