//! Revoking, rung by rung: what each stops, what goes on all the same, and that the command line says which.

use std::net::UdpSocket;
use std::time::Duration;

use e2e::broker::{BrokerProcess, Output};
use e2e::packets;
use e2e::uids::Uid;
use e2e::world::{Side, World};
use serde_json::{Value, json};
use xsk_client::wire::LeaseState;

use crate::lease_scene::{
    PATIENCE, SILENCE, Traffic, leases, payload, policy, read_payload, state_of, wait_event, wait_until,
};
use crate::puppet::{Order, Puppet, Seen};

/// Where the peer listens for what a holder sends.
const PORT: u16 = 9000;
const IDLE: Duration = Duration::from_secs(5);

struct Scene {
    world: World,
    traffic: Traffic,
    alice: Uid,
    peer: UdpSocket,
}

impl Scene {
    fn new() -> Self {
        let world = World::new().unwrap();
        let address = (world.device(Side::PEER).address, PORT);
        let peer = world
            .run_in(Side::PEER, || UdpSocket::bind(address))
            .unwrap()
            .unwrap();
        Self {
            traffic: Traffic::new(&world),
            world,
            alice: Uid::take().unwrap(),
            peer,
        }
    }

    fn broker(&self) -> BrokerProcess<'_> {
        BrokerProcess::start(&self.world, &policy(&[(self.alice.number(), "1-7")])).unwrap()
    }

    fn holder(&self) -> Puppet {
        Puppet::start(&self.world, Side::Host, &self.alice.user())
    }

    /// Frames with these numbers, of a holder's own making.
    fn frames(&self, numbers: std::ops::Range<u64>) -> Vec<Vec<u8>> {
        let (from, to) = (
            self.world.device(Side::Host).end(PORT),
            self.world.device(Side::PEER).end(PORT),
        );
        numbers
            .map(|number| packets::udp(from, to, &payload(3, number, 64)))
            .collect()
    }

    /// The numbers that the peer has received, until none comes for that long.
    fn arrived(&self, silence: Duration) -> Vec<u64> {
        self.peer.set_read_timeout(Some(silence)).unwrap();
        let mut buffer = [0; 2048];
        let mut numbers = Vec::new();
        while let Ok(len) = self.peer.recv(&mut buffer) {
            numbers.push(read_payload(&buffer[..len]).unwrap().1);
        }
        numbers
    }
}

fn revoke(broker: &BrokerProcess<'_>, lease: u64, more: &[&str]) -> Output {
    broker
        .cli(&[&["revoke", &lease.to_string()], more].concat())
        .unwrap()
}

fn json_of(output: &Output) -> Value {
    serde_json::from_str(&output.stdout).unwrap_or_else(|error| panic!("{error}: {output:?}"))
}

#[test]
fn a_revoke_stops_receiving_and_says_that_sending_goes_on() {
    let scene = Scene::new();
    let broker = scene.broker();
    let mut holder = scene.holder();
    let lease = holder.hold("eth0:3");
    scene.traffic.send_all(3, 0..50);
    assert_eq!(holder.receive(lease, 3, 50, IDLE), Seen::only(3, 50));
    holder.transmit(lease, 3, scene.frames(0..10)).unwrap();
    assert_eq!(scene.arrived(SILENCE), (0..10).collect::<Vec<_>>());

    let output = revoke(&broker, lease, &["--json"]);
    assert_eq!(output.code, Some(75), "{output:?}");
    let told = json_of(&output);
    assert_eq!(
        (&told["rxStopped"], &told["txMayContinue"]),
        (&json!(true), &json!(true)),
        "{told}"
    );
    assert_eq!((&told["killed"], &told["cut"]), (&json!(false), &json!(false)));
    let keepers = told["keepers"].as_array().unwrap();
    assert_eq!(keepers.len(), 1, "{told}");
    assert_eq!(keepers[0]["pid"], holder.pid());
    assert_eq!(
        (&keepers[0]["open"], &keepers[0]["mapped"]),
        (&json!(true), &json!(true))
    );

    // Not one packet more for the holder, and each number that it sends from here on was sent after the revoke.
    scene.traffic.expect_at_stack(3, 100..120);
    assert_eq!(holder.receive(lease, 3, 1, SILENCE), Seen::default());
    holder.transmit(lease, 3, scene.frames(1000..1020)).unwrap();
    assert_eq!(
        scene.arrived(SILENCE),
        (1000..1020).collect::<Vec<_>>(),
        "what was sent after the revoke"
    );
    // What to do next is a member, where it is asked for.
    let how = revoke(&broker, lease, &["--cut-device", "--json"]);
    assert_eq!(how.code, Some(75), "{how:?}");
    let how = json_of(&how)["howToCut"].as_str().unwrap().to_owned();
    assert!(how.contains("ip link set dev eth0 netns"), "{how}");
    // In words, for people.
    let again = revoke(&broker, lease, &[]);
    assert_eq!(again.code, Some(75), "{again:?}");
    for words in [
        "RX stopped: its packets go to the host's stack now",
        "TX goes on: whoever has a socket of it can go on transmitting on eth0:3",
        &format!("pid {} (", holder.pid()),
        "--kill` ends its holder",
        "--cut-device` says how to cut eth0 for good",
    ] {
        assert!(again.stdout.contains(words), "{words}: {}", again.stdout);
    }
}

#[test]
fn a_socket_that_is_not_bound_is_told_of_too() {
    let scene = Scene::new();
    let broker = scene.broker();
    let mut holder = scene.holder();
    let lease = holder.acquire("eth0:3").unwrap();
    let output = revoke(&broker, lease, &[]);
    assert_eq!(output.code, Some(75), "{output:?}");
    assert!(
        output.stdout.contains("whoever has them can still bind them"),
        "{}",
        output.stdout
    );
    assert_eq!(state_of(&broker, lease), None);
    holder.close(lease);
    let other = holder.acquire("eth0:4").unwrap();
    let output = revoke(&broker, other, &["--kill"]);
    assert_eq!(output.code, Some(0), "{output:?}");
    assert!(output.stdout.contains("TX never began"), "{}", output.stdout);
}

#[test]
fn a_kill_ends_the_holder_and_names_who_has_its_socket_too() {
    let scene = Scene::new();
    let broker = scene.broker();
    let mut holder = scene.holder();
    let lease = holder.hold("eth0:3");
    let output = revoke(&broker, lease, &["--kill"]);
    assert_eq!(output.code, Some(0), "{output:?}");
    for words in ["was ended", "RX stopped", "TX stopped: no socket of it is left"] {
        assert!(output.stdout.contains(words), "{words}: {}", output.stdout);
    }
    assert_eq!(state_of(&broker, lease), None);
    assert!(scene.arrived(SILENCE).is_empty());

    // A child that was given the socket is another process, and goes on.
    let mut holder = scene.holder();
    let lease = holder.hold("eth0:3");
    let mut child = holder.beget(&scene.world, lease);
    let pid = child.introduce().pid;
    let output = revoke(&broker, lease, &["--kill", "--json"]);
    assert_eq!(output.code, Some(75), "{output:?}");
    let told = json_of(&output);
    assert_eq!(told["killed"], true);
    let keepers: Vec<_> = told["keepers"]
        .as_array()
        .unwrap()
        .iter()
        .map(|keeper| &keeper["pid"])
        .collect();
    assert_eq!(keepers, [&json!(pid)], "{told}");
    let listed = leases(&broker).remove(0);
    assert_eq!(listed.state, LeaseState::Lingering);
    assert!(listed.rx_stopped && listed.tx_may_continue);
    wait_until("the broker knows that it is another's", || {
        leases(&broker).remove(0).ended.unwrap().still_held.as_str() == "others"
    });
    drop(child);
    wait_event(&broker, "freed", lease);
}

/// The last file descriptor is closed, and still the socket lives: a ring of it is mapped.
#[test]
fn a_mapping_alone_keeps_the_queue_and_is_named() {
    let scene = Scene::new();
    let broker = scene.broker();
    let mut holder = scene.holder();
    let lease = holder.acquire("eth0:3").unwrap();
    // Before it is bound, since Linux 6.1 maps no ring afterwards.
    holder.ask(&Order::KeepMapping { lease }).unwrap();
    holder.bind(lease).unwrap();
    holder.activate(lease).unwrap();
    holder.close(lease);
    let output = revoke(&broker, lease, &["--json"]);
    assert_eq!(output.code, Some(75), "{output:?}");
    let keepers = json_of(&output)["keepers"].clone();
    assert_eq!(keepers[0]["pid"], holder.pid(), "{keepers}");
    assert_eq!(
        (&keepers[0]["open"], &keepers[0]["mapped"]),
        (&json!(false), &json!(true))
    );
    assert_eq!(state_of(&broker, lease), Some(LeaseState::Lingering));
    holder.kill();
    wait_event(&broker, "freed", lease);
}

#[test]
fn a_device_that_is_cut_is_rid_of_every_socket() {
    let scene = Scene::new();
    let broker = scene.broker();
    let (mut holder, mut other) = (scene.holder(), scene.holder());
    let (lease, beside) = (holder.hold("eth0:3"), other.hold("eth0:4"));
    let index = scene.world.device(Side::Host).index;

    // Said, and not done.
    let output = revoke(&broker, lease, &["--cut-device"]);
    assert_eq!(output.code, Some(75), "{output:?}");
    for words in [
        "ip link set dev eth0 netns",
        "It costs: every AF_XDP socket of eth0 ends",
        "--lose-all-leases-addresses-and-routes",
    ] {
        assert!(output.stdout.contains(words), "{words}: {}", output.stdout);
    }
    holder.transmit(lease, 3, scene.frames(0..5)).unwrap();
    assert_eq!(scene.arrived(SILENCE), (0..5).collect::<Vec<_>>());
    assert_eq!(state_of(&broker, beside), Some(LeaseState::Active));
    let alone = revoke(&broker, lease, &["--lose-all-leases-addresses-and-routes"]);
    assert_eq!(alone.code, Some(2), "{alone:?}");

    let output = revoke(
        &broker,
        lease,
        &["--cut-device", "--lose-all-leases-addresses-and-routes"],
    );
    assert_eq!(output.code, Some(0), "{output:?}");
    assert!(
        output.stdout.contains("was cut off from every AF_XDP socket"),
        "{}",
        output.stdout
    );
    for (puppet, lease, queue) in [(&mut holder, lease, 3), (&mut other, beside, 4)] {
        let failure = puppet.transmit(lease, queue, scene.frames(100..101)).unwrap_err();
        assert_eq!(failure.kind, "Error::DeviceGone", "{failure:?}");
    }
    assert_eq!(wait_event(&broker, "ended", beside)["reason"], "device-gone");
    assert!(scene.arrived(SILENCE).is_empty());
    assert!(leases(&broker).is_empty());

    // It is back, up, and is served anew.
    let link = scene.world.netlink(Side::Host).link("eth0").unwrap();
    assert!(link.up, "{link:?}");
    println!("index {index} is {} now", link.index);
    let mut anew = scene.holder();
    let lease = anew.hold("eth0:3");
    anew.transmit(lease, 3, scene.frames(200..201)).unwrap();
    assert_eq!(scene.arrived(PATIENCE.min(IDLE)), [200]);
}
