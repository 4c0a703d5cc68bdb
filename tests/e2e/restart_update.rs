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

use xsk_client::sys::{self, BindFlags};
use xsk_client::wire::{Acquire, LeaseState, SocketKind};

use crate::lease_scene::{PATIENCE, Traffic, leases, policy, state_of, wait_until};
use crate::puppet::{Puppet, Seen};
use crate::restart_scene::{Held, check, four_holders, pin, under_a_stream};
use crate::rogue::give_memory;

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

/// The maximum of queues was raised while no broker was there: the map of the program that runs is for as many as there
/// could be before.
#[test]
fn queues_beyond_the_map_that_is_there_are_had_once_it_can_be_made_anew() {
    const BEFORE: u32 = 4;
    let world = World::new().unwrap();
    let [alice, bob] = [(); 2].map(|()| Uid::take().unwrap());
    let rules = policy(&[(alice.number(), "1-7"), (bob.number(), "1-7")]);
    let mut broker = BrokerProcess::start(&world, &rules).unwrap();
    let mut client = broker.client_of(&alice).unwrap();
    let request = Acquire::new("eth0:1".parse().unwrap(), SocketKind::Prepared);
    let (acquired, sockets) = client.acquire(&request).unwrap();
    let _memory = give_memory(&sockets[0]);
    sys::bind(&sockets[0], acquired.interface_index, 1, BindFlags::XDP_COPY).unwrap();
    client.activate(acquired.lease).unwrap();
    broker.kill().unwrap();

    // As a broker would have attached it then.
    let few = bpf::create_map(MapType::XskMap, "xsks", 4, BEFORE).unwrap();
    bpf::insert_socket(&few, 1, &sockets[0]).unwrap();
    let counters = bpf::open_pinned(&pinned(&world, &broker, "counters")).unwrap();
    let program = other_program(&few, &counters);
    let link = bpf::open_pinned(&pinned(&world, &broker, "link")).unwrap();
    bpf::update_link(&link, &program).unwrap();
    for (what, object) in [("program", &program), ("xsks", &few)] {
        let path = pinned(&world, &broker, what);
        fs::remove_file(&path).unwrap();
        bpf::pin(object, &path).unwrap();
    }
    drop((few, program, link, counters));

    broker.restart().unwrap();
    let told = |line: &str| {
        let words = "has room for 4 queues, and the device can have 8";
        line.contains(words).then_some(())
    };
    broker.process().wait_stderr(PATIENCE, told).unwrap();
    assert_eq!(state_of(&broker, acquired.lease), Some(LeaseState::Active));
    let mut holder = Puppet::start(&world, Side::Host, &bob.user());
    let refused = holder.acquire("eth0:5").unwrap_err();
    assert_eq!(refused.kind, "DeviceUnavailable", "{refused:?}");
    assert!(
        refused.text.contains("queue 5 of eth0 is beyond the map"),
        "{refused:?}"
    );
    let within = holder.hold("eth0:3");
    // What the refusal says: the leases have ended, a stop, a start.
    holder.release(within);
    holder.close(within);
    broker.client_of(&alice).unwrap().release(acquired.lease).unwrap();
    drop((sockets, client));
    wait_until("both are free", || leases(&broker).is_empty());
    assert!(broker.stop().unwrap().success());
    broker.restart().unwrap();
    let beyond = holder.hold("eth0:5");
    let traffic = Traffic::new(&world);
    traffic.send_all(5, 0..50);
    let seen = holder.receive(beyond, 5, 50, Duration::from_secs(5));
    assert_eq!(seen, Seen::only(5, 50));
}
