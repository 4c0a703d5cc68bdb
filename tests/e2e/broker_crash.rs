//! A broker that dies, or is stopped, takes nobody's packets along; one that is stopped leaves nothing but what is held.

use std::net::UdpSocket;
use std::time::Duration;

use e2e::broker::BrokerProcess;
use e2e::echo_loop::EchoLoop;
use e2e::holder::Holder;
use e2e::leaks::Leaks;
use e2e::process::was_killed;
use e2e::uids::Uid;
use e2e::world::{Side, World};
use xsk_client::wire::Lease;

use crate::lease_scene::{Traffic, leases, policy, port, wait_until};
use crate::puppet::{Order, Puppet, Seen};

const IDLE: Duration = Duration::from_secs(5);

#[test]
fn a_killed_broker_leaves_packets_flowing() {
    let world = World::new().unwrap();
    let alice = Uid::take().unwrap();
    let mut broker = BrokerProcess::start(&world, &policy(&[(alice.number(), "1-7")])).unwrap();
    let traffic = Traffic::new(&world);
    let mut holder = Puppet::start(&world, Side::Host, &alice.user());
    let lease = holder.hold("eth0:3");
    let program = world.netlink(Side::Host).link("eth0").unwrap().xdp;
    assert!(was_killed(broker.kill().unwrap()));
    for _ in 0..3 {
        traffic.send_all(3, 0..100);
        assert_eq!(holder.receive(lease, 3, 100, IDLE), Seen::only(3, 100));
    }
    traffic.expect_at_stack(4, 0..10);
    assert_eq!(world.netlink(Side::Host).link("eth0").unwrap().xdp, program);
}

#[test]
fn an_orderly_stop_leaves_nothing_where_nothing_is_held() {
    let world = World::new().unwrap();
    let alice = Uid::take().unwrap();
    let mut broker = BrokerProcess::start(&world, &policy(&[(alice.number(), "1-7")])).unwrap();
    let traffic = Traffic::new(&world);
    let mut holder = Puppet::start(&world, Side::Host, &alice.user());
    let lease = holder.hold("eth0:3");
    let handed_over = holder.acquire("eth0:4").unwrap();
    let mut leaks = Leaks::snapshot(&world).unwrap();
    leaks.expect_objects_gone(&world, broker.process().pid()).unwrap();
    holder.kill();
    assert!(broker.stop().unwrap().success());
    let differences = leaks.differences(&world).unwrap();
    let gone: Vec<&str> = differences
        .iter()
        .filter_map(|line| line.strip_prefix("gone: "))
        .collect();
    assert!(
        gone.iter().any(|line| line.ends_with("device eth0 with XDP")),
        "{differences:?}"
    );
    for file in [
        "xsk-broker/broker.sock",
        "xsk-broker/control.sock",
        "xsk-broker/lease-",
        "bpf/xsk-broker/link-",
        "bpf/xsk-broker/xsks-",
    ] {
        assert!(
            gone.iter().any(|line| line.contains(file)),
            "{file}: {differences:?}"
        );
    }
    wait_until("its BPF objects are gone", || {
        let differences = leaks.differences(&world).unwrap();
        !differences.iter().any(|line| line.contains("BPF"))
    });
    traffic.expect_at_stack(3, 0..10);
    let audit = broker.audit().unwrap();
    for lease in [lease, handed_over] {
        let ended = |line: &&serde_json::Value| line["event"] == "ended" && line["lease"] == lease;
        let ended = audit.iter().find(ended).unwrap();
        assert_eq!(ended["reason"], "holder-exited");
    }
    assert_eq!(audit.last().unwrap()["event"], "stopped");
}

#[test]
fn the_list_counts_what_was_redirected_and_what_was_dropped() {
    const RING: u64 = 64;
    let world = World::new().unwrap();
    let alice = Uid::take().unwrap();
    let broker = BrokerProcess::start(&world, &policy(&[(alice.number(), "1-7")])).unwrap();
    let traffic = Traffic::new(&world);
    let mut holder = Puppet::start(&world, Side::Host, &alice.user());
    let acquire = Order::Acquire {
        kind: xsk_client::wire::SocketKind::Prepared,
        target: "eth0:3".to_owned(),
        ring_entries: u32::try_from(RING).unwrap(),
    };
    let lease = holder.ask(&acquire).unwrap()["lease"].as_u64().unwrap();
    holder.bind(lease).unwrap();
    traffic.expect_at_stack(3, 0..10);
    holder.activate(lease).unwrap();

    // The holder reads nothing: its ring holds the first ones.
    traffic.send_all(3, 0..200);
    let counters = |leases: &[Lease]| leases[0].queues[0].counters;
    wait_until("all of them are counted", || {
        counters(&leases(&broker)).redirected == 200
    });
    let full = counters(&leases(&broker));
    assert_eq!(full.dropped(), 200 - RING, "{full:?}");
    let list = broker.cli(&["list"]).unwrap().stdout;
    let row: Vec<&str> = list.lines().nth(1).unwrap().split_whitespace().collect();
    assert_eq!(row[row.len() - 2..], ["200", "136"], "{list}");

    assert_eq!(holder.receive(lease, 3, RING, IDLE), Seen::only(3, RING));
    for numbers in [200..260, 260..320] {
        traffic.send_all(3, numbers);
        assert_eq!(holder.receive(lease, 3, 60, IDLE), Seen::only(3, 60));
    }
    let after = counters(&leases(&broker));
    assert_eq!(
        (after.redirected, after.dropped()),
        (320, 200 - RING),
        "{after:?}"
    );
    // A user sees its own, and nobody else's.
    let own = broker.cli_as(&alice.user(), &["list", "--json"]).unwrap();
    assert!(own.stdout.contains("\"redirected\":320"), "{own:?}");
    let stranger = Uid::take().unwrap();
    let none = broker.cli_as(&stranger.user(), &["list"]).unwrap();
    assert_eq!(none.stdout, "no leases\n");
}

#[test]
fn a_holder_echoes_on_while_the_broker_dies() {
    let world = World::new().unwrap();
    let alice = Uid::take().unwrap();
    let mut broker = BrokerProcess::start(&world, &policy(&[(alice.number(), "1-7")])).unwrap();
    Traffic::new(&world);
    let holder = Holder::example(&world, Side::Host, &alice.user(), "echo", &["eth0:3"]).unwrap();
    holder.wait_active().unwrap();
    let socket = world
        .run_in(Side::PEER, || UdpSocket::bind("0.0.0.0:0"))
        .unwrap()
        .unwrap();
    let target = (world.device(Side::Host).address, port(3)).into();
    let count = std::thread::scope(|scope| {
        let echo = scope.spawn(|| EchoLoop::new(target, 20_000).run(&socket).unwrap());
        broker.kill().unwrap();
        echo.join().unwrap()
    });
    assert!(count.is_perfect(), "{count:?}");
}
