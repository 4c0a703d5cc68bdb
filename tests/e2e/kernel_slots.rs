//! The kernel's black hole, on which our order "bind, then fill the slot" rests (F2).

use std::net::UdpSocket;
use std::time::Duration;

use e2e::bpf::XdpAttach;
use e2e::packets::{self, Parsed};
use e2e::queue_program::QueueProgram;
use e2e::raw_xsk::RawXsk;
use e2e::steering::Steer;
use e2e::world::{Side, World};

const QUEUE: u32 = 3;
const PORT: u16 = 5003;
const PATIENCE: Duration = Duration::from_secs(5);
const SILENCE: Duration = Duration::from_millis(150);

struct Scene {
    world: World,
    program: QueueProgram,
    sender: UdpSocket,
    stack: UdpSocket,
}

impl Scene {
    fn new(mode: XdpAttach) -> Self {
        let world = World::new().unwrap();
        let program = QueueProgram::attach(&world, Side::Host, mode).unwrap();
        // In generic mode queues count one too low on a veth, which a fixture's test shows.
        let steered = if mode == XdpAttach::Generic {
            QUEUE + 1
        } else {
            QUEUE
        };
        world.steer(0, &[Steer::udp_to(PORT, steered)]).unwrap();
        let host = world.device(Side::Host).address;
        let stack = world
            .run_in(Side::Host, || UdpSocket::bind((host, PORT)))
            .unwrap()
            .unwrap();
        let sender = world
            .run_in(Side::PEER, || UdpSocket::bind("0.0.0.0:0"))
            .unwrap()
            .unwrap();
        Self {
            world,
            program,
            sender,
            stack,
        }
    }

    fn send(&self, text: &str) {
        let host = self.world.device(Side::Host).address;
        self.sender.send_to(text.as_bytes(), (host, PORT)).unwrap();
    }

    fn stack_gets(&self, timeout: Duration) -> Option<String> {
        self.stack.set_read_timeout(Some(timeout)).unwrap();
        let mut buffer = [0; 2048];
        let (len, _) = self.stack.recv_from(&mut buffer).ok()?;
        Some(String::from_utf8(buffer[..len].to_vec()).unwrap())
    }

    fn socket_gets(socket: &mut RawXsk, timeout: Duration) -> Option<String> {
        let frame = socket.receive(timeout).unwrap()?;
        let Some(Parsed::Udp {
            payload,
            checksums: packets::Checksums::Right,
            ..
        }) = packets::parse(&frame)
        else {
            panic!("{frame:?}")
        };
        Some(String::from_utf8(payload.to_vec()).unwrap())
    }
}

#[test]
fn an_unbound_socket_in_the_slot_swallows_its_queue() {
    let scene = Scene::new(XdpAttach::Native);
    scene.send("empty slot");
    assert_eq!(scene.stack_gets(PATIENCE).as_deref(), Some("empty slot"));

    // With rings: from 7.3 (or earlier) the kernel refuses one that has no RX ring, with ENOBUFS.
    let unbound = scene
        .world
        .run_in(Side::Host, || RawXsk::new(64))
        .unwrap()
        .unwrap();
    scene.program.insert(QUEUE, &unbound).unwrap();
    for _ in 0..10 {
        scene.send("into the hole");
    }
    assert_eq!(scene.stack_gets(SILENCE), None, "the stack gets nothing");
    assert_eq!(
        scene.program.arrived(QUEUE).unwrap(),
        11,
        "though all of it arrived"
    );
    let statistics = rustix::net::sockopt::xdp_statistics(&unbound).unwrap();
    assert_eq!(statistics.rx_dropped, 0, "and nobody counts it");

    scene.program.delete(QUEUE).unwrap();
    scene.send("slot emptied");
    assert_eq!(scene.stack_gets(PATIENCE).as_deref(), Some("slot emptied"));
}

#[test]
fn bound_before_the_slot_is_filled_nothing_is_lost() {
    for mode in [XdpAttach::Native, XdpAttach::Generic] {
        let scene = Scene::new(mode);
        let mut socket = scene
            .world
            .run_in(Side::Host, || RawXsk::new(64))
            .unwrap()
            .unwrap();
        scene.send("before the bind");
        assert_eq!(scene.stack_gets(PATIENCE).as_deref(), Some("before the bind"));
        socket
            .bind_copy(scene.world.device(Side::Host).index, QUEUE)
            .unwrap();
        scene.send("bound, no slot");
        assert_eq!(scene.stack_gets(PATIENCE).as_deref(), Some("bound, no slot"));
        scene.program.insert(QUEUE, &socket).unwrap();
        for number in 0..200 {
            let text = format!("to the socket {number}");
            scene.send(&text);
            assert_eq!(Scene::socket_gets(&mut socket, PATIENCE), Some(text), "{mode:?}");
        }
        assert_eq!(scene.stack_gets(SILENCE), None);

        // And it transmits: the peer's stack gets what the socket sends.
        let (host, peer) = (scene.world.device(Side::Host), scene.world.device(Side::PEER));
        let port = scene.sender.local_addr().unwrap().port();
        socket
            .send(&packets::udp(host.end(PORT), peer.end(port), b"from the socket"))
            .unwrap();
        scene.sender.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut buffer = [0; 64];
        let (len, from) = scene.sender.recv_from(&mut buffer).unwrap();
        assert_eq!(
            (&buffer[..len], from),
            (b"from the socket".as_slice(), (host.address, PORT).into())
        );

        // The slot empties itself with the socket, and the stack has the queue back.
        drop(socket);
        scene.send("socket gone");
        assert_eq!(
            scene.stack_gets(PATIENCE).as_deref(),
            Some("socket gone"),
            "{mode:?}"
        );
    }
}
