//! What becomes of a task that awaits packets when these cannot come any more.

use std::time::Duration;

use e2e::broker::BrokerProcess;
use e2e::holder::Holder;
use e2e::packet_socket::PacketSocket;
use e2e::packets;
use e2e::uids::Uid;
use e2e::world::{Side, World};
use tokio::time::timeout;
use xsk_client::{AsyncXsk, BindOptions, Error, UmemOptions};

use crate::datapath_options::open;
use crate::lease_scene::{PATIENCE, leases, operator, payload, policy, port, wait_event, wait_until};

const QUEUE: u32 = 3;

/// A body: tells how each await ends. "patient" awaits without a limit, else it is a quarter of a second.
pub(crate) fn awaits_packets(arguments: &[String]) {
    let limit = match arguments[0].as_str() {
        "patient" => Duration::MAX,
        _ => Duration::from_millis(250),
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        let xsk = open(&UmemOptions::new().chunks(64), &BindOptions::new(), 64);
        let mut xsk = AsyncXsk::new(xsk).unwrap();
        loop {
            match timeout(limit, xsk.receive(8)).await {
                Err(_elapsed) => println!("quiet"),
                Ok(Ok(mut batch)) => {
                    while batch.next_frame().is_some() {
                        println!("received");
                    }
                }
                Ok(Err(error @ Error::DeviceGone { .. })) => {
                    println!("gone: {error}");
                    break;
                }
                Ok(Err(error)) => panic!("{error}"),
            }
        }
        // It stays so.
        let again = timeout(PATIENCE, xsk.readable()).await;
        assert!(matches!(again, Ok(Err(Error::DeviceGone { .. }))), "{again:?}");
        println!("still gone");
        std::future::pending::<()>().await;
    });
}

struct Scene<'w> {
    world: &'w World,
    broker: BrokerProcess<'w>,
    holder: Holder,
    peer: PacketSocket,
    _alice: Uid,
}

impl<'w> Scene<'w> {
    fn new(world: &'w World, patience: &str) -> Self {
        let alice = Uid::take().unwrap();
        let broker = BrokerProcess::start(world, &policy(&[(alice.number(), "1-7")])).unwrap();
        let peer = PacketSocket::open(world, Side::PEER).unwrap();
        peer.steer(QUEUE).unwrap();
        let user = alice.user();
        let holder = Holder::body(world, Side::Host, &user, "awaits_packets", &[patience]).unwrap();
        holder.wait_active().unwrap();
        Self {
            world,
            broker,
            holder,
            peer,
            _alice: alice,
        }
    }

    fn send(&self) {
        let (from, to) = (
            self.world.device(Side::PEER).end(9),
            self.world.device(Side::Host).end(port(QUEUE)),
        );
        self.peer
            .send(&packets::udp(from, to, &payload(QUEUE, 1, 64)))
            .unwrap();
    }

    fn lease(&self) -> u64 {
        leases(&self.broker)[0].lease
    }

    fn count(&self, line: &str) -> usize {
        let lines = self.holder.process().stdout();
        lines.iter().filter(|it| *it == line).count()
    }

    fn delete_device(&self) {
        let index = self.world.device(Side::Host).index;
        self.world.netlink(Side::Host).delete(index).unwrap();
    }
}

#[test]
fn a_task_without_a_limit_is_told_that_the_device_is_gone() {
    let world = World::new().unwrap();
    let scene = Scene::new(&world, "patient");
    scene.send();
    scene.holder.wait_line("received", PATIENCE).unwrap();
    scene.delete_device();
    let told = scene.holder.wait_line("gone: ", PATIENCE).unwrap();
    assert!(told.contains("eth0:3: the device is gone"), "{told}");
    scene.holder.wait_line("still gone", PATIENCE).unwrap();
    assert_eq!(scene.count("quiet"), 0);
}

#[test]
fn a_lease_that_ends_is_silence_to_a_task_with_a_limit() {
    let world = World::new().unwrap();
    let scene = Scene::new(&world, "limited");
    scene.send();
    scene.holder.wait_line("received", PATIENCE).unwrap();
    let lease = scene.lease();
    operator(&scene.broker).revoke(lease).unwrap();
    wait_event(&scene.broker, "ended", lease);
    // What the host's stack gets now; the socket stays bound, and awaiting it is no error.
    scene.send();
    let before = scene.count("quiet");
    wait_until("awaits end by their limit", || scene.count("quiet") > before + 2);
    assert_eq!(scene.count("received"), 1);
    scene.delete_device();
    scene.holder.wait_line("gone: ", PATIENCE).unwrap();
}
