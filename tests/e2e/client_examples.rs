//! The client library's examples, each run as its users would: acquired by itself, and packets go round. `echo` and
//! `manager` have tests of their own.

use e2e::broker::BrokerProcess;
use e2e::holder::Holder;
use e2e::packet_socket::PacketSocket;
use e2e::uids::Uid;
use e2e::world::{Side, World};

use crate::datapath_options::{exchange, lengths};
use crate::lease_scene::policy;

/// Each sends back what arrives, as it is.
fn reflects(example: &str) {
    let world = World::new().unwrap();
    let alice = Uid::take().unwrap();
    let _broker = BrokerProcess::start(&world, &policy(&[(alice.number(), "1-7")])).unwrap();
    let peer = PacketSocket::open(&world, Side::PEER).unwrap();
    peer.steer(3).unwrap();
    let holder = Holder::example(&world, Side::Host, &alice.user(), example, &["eth0:3"]).unwrap();
    holder
        .wait_active()
        .unwrap_or_else(|error| panic!("{error}: {}", holder.process().last_words()));
    exchange(&world, &holder, &peer, lengths(), |came, sent| came == sent);
}

#[test]
fn a_busy_loop_reflects() {
    reflects("busy");
}

#[test]
fn a_task_reflects() {
    reflects("async");
}

#[test]
fn the_raw_layer_reflects() {
    reflects("raw");
}
