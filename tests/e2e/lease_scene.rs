//! What the tests of leases share: policies in a line, traffic that says where it was meant to go, and what the broker
//! tells its operator.

use std::net::{Ipv4Addr, UdpSocket};
use std::ops::Range;
use std::time::{Duration, Instant};

use e2e::broker::BrokerProcess;
use e2e::packets::{self, Parsed};
use e2e::steering::Steer;
use e2e::world::{Side, World};
use serde_json::Value;
use xsk_client::Broker;
use xsk_client::wire::{Interface, Lease, LeaseState};

/// For what happens some time: a machine may be slow.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);
/// For what should not happen.
pub(crate) const SILENCE: Duration = Duration::from_millis(150);

/// The number of a datagram that says: this was the last one. It is not counted.
pub(crate) const END: u64 = u64::MAX;

/// UDP to this port and the seven above is for queues 0 to 7.
const FIRST_PORT: u16 = 7000;
const QUEUES: u32 = 8;
const HEADER_BYTES: usize = 16;
const PAYLOAD_BYTES: usize = 64;

/// A device's section; queue 0 is reserved.
pub(crate) fn interface(name: &str, more: &str) -> String {
    format!("[interface.{name}]\nqueue-lock = \"none\"\nreserved = \"0\"\n{more}\n")
}

/// A rule by the name of `uid-N` for queues of every device.
pub(crate) fn allow(uid: u32, queues: &str) -> String {
    allow_with(uid, queues, "")
}

/// The same with more keys.
pub(crate) fn allow_with(uid: u32, queues: &str, more: &str) -> String {
    allow_kinds(uid, queues, &["prepared"], more)
}

/// The same for sockets of these kinds.
pub(crate) fn allow_kinds(uid: u32, queues: &str, kinds: &[&str], more: &str) -> String {
    format!(
        "[[allow]]\nname = \"uid-{uid}\"\nuser = {uid}\ninterface = \"*\"\nqueues = \"{queues}\"\n\
         sockets = {kinds:?}\n{more}\n"
    )
}

/// eth0, and that rule for each of these.
pub(crate) fn policy(rules: &[(u32, &str)]) -> String {
    let rules: String = rules.iter().map(|(uid, queues)| allow(*uid, queues)).collect();
    interface("eth0", "") + &rules
}

/// The operator's connection.
pub(crate) fn operator(broker: &BrokerProcess<'_>) -> Broker {
    Broker::connect_to(broker.control_socket()).unwrap()
}

/// eth0 as the operator sees it.
pub(crate) fn eth0(broker: &BrokerProcess<'_>) -> Interface {
    let interfaces = operator(broker).list_interfaces().unwrap().interfaces;
    interfaces
        .into_iter()
        .find(|it| it.interface.as_str() == "eth0")
        .unwrap()
}

/// Everybody's leases.
pub(crate) fn leases(broker: &BrokerProcess<'_>) -> Vec<Lease> {
    operator(broker).list_leases().unwrap().leases
}

/// The state of one lease; `None` where there is none of that number.
pub(crate) fn state_of(broker: &BrokerProcess<'_>, id: u64) -> Option<LeaseState> {
    let leases = leases(broker);
    leases
        .into_iter()
        .find(|lease| lease.lease == id)
        .map(|lease| lease.state)
}

/// Waits for the audit line of that event of that lease.
pub(crate) fn wait_event(broker: &BrokerProcess<'_>, event: &str, id: u64) -> Value {
    let wanted = |line: &Value| line["event"] == event && line["lease"] == id;
    broker.wait_audit(PATIENCE, wanted).unwrap()
}

/// Waits until something is so.
pub(crate) fn wait_until(what: &str, mut so: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !so() {
        assert!(Instant::now() < deadline, "not so after {PATIENCE:?}: {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Tagged datagrams from the first peer to the host, each of which chooses its queue by its port.
#[derive(Debug)]
pub(crate) struct Traffic {
    sender: UdpSocket,
    host: Ipv4Addr,
    stack: Vec<UdpSocket>,
}

impl Traffic {
    /// Steers, and opens sockets on the host's stack that get what no holder takes.
    pub(crate) fn new(world: &World) -> Self {
        Self::with_offset(world, 0)
    }

    /// The same with each queue's number that much higher, as generic XDP on a veth wants it.
    pub(crate) fn with_offset(world: &World, offset: u32) -> Self {
        let rules: Vec<Steer> = (0..QUEUES)
            .map(|queue| Steer::udp_to(port(queue), queue + offset))
            .collect();
        world.steer(0, &rules).unwrap();
        let host = world.device(Side::Host).address;
        let bind = |address: (Ipv4Addr, u16), side| {
            world.run_in(side, || UdpSocket::bind(address)).unwrap().unwrap()
        };
        Self {
            sender: bind((Ipv4Addr::UNSPECIFIED, 0), Side::PEER),
            host,
            stack: (0..QUEUES)
                .map(|queue| bind((host, port(queue)), Side::Host))
                .collect(),
        }
    }

    /// Sends one datagram for a queue.
    pub(crate) fn send(&self, queue: u32, number: u64) {
        let datagram = payload(queue, number, PAYLOAD_BYTES);
        self.sender.send_to(&datagram, (self.host, port(queue))).unwrap();
    }

    /// Sends some. A veth takes up to 256 that were not looked at.
    pub(crate) fn send_all(&self, queue: u32, numbers: Range<u64>) {
        for number in numbers {
            self.send(queue, number);
        }
    }

    /// The next datagram of a queue that reached the host's stack.
    pub(crate) fn stack_gets(&self, queue: u32, timeout: Duration) -> Option<u64> {
        let socket = &self.stack[usize::try_from(queue).unwrap()];
        socket.set_read_timeout(Some(timeout)).unwrap();
        let mut buffer = [0; 2048];
        let (len, _) = socket.recv_from(&mut buffer).ok()?;
        let (meant_for, number) = read_payload(&buffer[..len]).expect("a whole datagram");
        assert_eq!(meant_for, queue, "its port and its contents differ");
        Some(number)
    }

    /// Sends some, one after the other, and sees each of them reach the host's stack.
    pub(crate) fn expect_at_stack(&self, queue: u32, numbers: Range<u64>) {
        for number in numbers {
            self.send(queue, number);
            assert_eq!(self.stack_gets(queue, PATIENCE), Some(number), "queue {queue}");
        }
    }
}

/// Queue, number, then bytes that follow from both.
pub(crate) fn payload(queue: u32, number: u64, bytes: usize) -> Vec<u8> {
    let mut payload = Vec::with_capacity(bytes);
    payload.extend(b"xsk:");
    payload.extend(queue.to_be_bytes());
    payload.extend(number.to_be_bytes());
    let mut state = number.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ u64::from(queue);
    while payload.len() < bytes.max(HEADER_BYTES) {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        payload.push(state.to_be_bytes()[0]);
    }
    payload
}

/// Queue and number of a payload that is whole.
pub(crate) fn read_payload(bytes: &[u8]) -> Option<(u32, u64)> {
    let queue = u32::from_be_bytes(bytes.get(4..8)?.try_into().ok()?);
    let number = u64::from_be_bytes(bytes.get(8..16)?.try_into().ok()?);
    (bytes == payload(queue, number, bytes.len())).then_some((queue, number))
}

/// The same of a frame. `None`: not of this kind, or not whole.
pub(crate) fn read_frame(frame: &[u8]) -> Option<(u32, u64)> {
    match packets::parse(frame)? {
        Parsed::Udp {
            to,
            payload,
            checksums: packets::Checksums::Right,
            ..
        } => read_payload(payload).filter(|(queue, _)| to.port == port(*queue)),
        _ => None,
    }
}

/// The port whose datagrams are for a queue.
pub(crate) fn port(queue: u32) -> u16 {
    FIRST_PORT + u16::try_from(queue).unwrap()
}
