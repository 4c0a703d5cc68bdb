//! The main job: an ordinary user acquires a queue, binds it, and answers real packets over AF_XDP.

use std::net::UdpSocket;
use std::time::Duration;

use e2e::broker::BrokerProcess;
use e2e::echo_loop::EchoLoop;
use e2e::holder::Holder;
use e2e::leaks::Leaks;
use e2e::status::{Capabilities, Status};
use e2e::steering::Steer;
use e2e::uids::Uid;
use e2e::world::{Side, World};

const PORT: u16 = 7003;

#[test]
fn an_ordinary_user_answers_packets_over_its_queue() {
    let world = World::new().unwrap();
    world.steer(0, &[Steer::udp_to(PORT, 3)]).unwrap();
    let uid = Uid::take().unwrap();
    let mut leaks = Leaks::snapshot(&world).unwrap();
    let policy = format!(
        "[interface.eth0]\nqueue-lock = \"none\"\nreserved = \"0\"\n\
         [[allow]]\nname = \"tenant\"\nuser = {}\ninterface = \"eth0\"\nqueues = \"1-3\"\nsockets = [\"prepared\"]\n",
        uid.number()
    );
    let mut broker = BrokerProcess::start(&world, &policy).unwrap();

    let mut holder = Holder::example(&world, Side::Host, &uid.user(), "echo", &["eth0:3"]).unwrap();
    let active = holder.wait_active().unwrap();
    assert!(active.starts_with("active lease 1 eth0:3 mode copy"), "{active}");
    let status = Status::of(holder.pid()).unwrap();
    assert_eq!(status.capabilities, Capabilities::NONE);

    let host = world.device(Side::Host).address;
    let socket = world
        .run_in(Side::PEER, || UdpSocket::bind("0.0.0.0:0"))
        .unwrap()
        .unwrap();
    let count = EchoLoop::new((host, PORT).into(), 10_000).run(&socket).unwrap();
    assert!(count.is_perfect(), "{count:?}");

    holder.kill().unwrap();
    broker
        .wait_audit(Duration::from_secs(2), |line| line["event"] == "freed")
        .unwrap();
    broker.stop().unwrap();
    leaks.expect_objects_gone(&world, broker.process().pid()).ok();
    leaks.wait_none(&world, Duration::from_secs(5)).unwrap();
}
