//! Zero-copy with sockets of kind `bound`, where a driver really has it: the mode is the rule's, whatever the holder would
//! rather have, and who only sends sees nothing of what arrives.

use std::net::UdpSocket;

use e2e::broker::BrokerProcess;
use e2e::nics::Nics;
use e2e::packets;
use e2e::skip;
use e2e::uids::Uid;
use e2e::world::{Side, World};
use xsk_client::wire::{Acquire, BindMode, Direction, ModeWish};

use crate::bound_scene::{Acquisition, allow, digest, wish};
use crate::lease_scene::{PATIENCE, interface, wait_event};
use crate::zero_copy_rule::zero_copy_nics;

const PORT: u16 = 7000;

/// A broker on a device with zero-copy, and somebody who may have its first queue by a rule with these keys.
fn with_rule(
    more: &str,
    test: impl FnOnce(&World, &Nics, &BrokerProcess<'_>, &Uid),
) -> Result<(), skip::Skip> {
    let world = World::new().unwrap();
    let nics = zero_copy_nics(&world)?;
    let alice = Uid::take().unwrap();
    let section = interface(&nics.host.name, "").replace("reserved = \"0\"\n", "");
    let text = section + &allow(alice.number(), "0", more);
    let broker = BrokerProcess::start(&world, &text).unwrap();
    test(&world, &nics, &broker, &alice);
    Ok(())
}

fn first_queue(nics: &Nics, direction: Direction, mode: Option<ModeWish>) -> Acquire {
    Acquire {
        mode,
        ..wish(&format!("{}:0", nics.host.name), direction)
    }
}

/// The mode in which the broker binds for that wish.
fn mode_of(world: &World, broker: &BrokerProcess<'_>, alice: &Uid, wish: &Acquire) -> BindMode {
    let socket = broker.paths().socket();
    let mut acquisition = world
        .run_as(Side::Host, &alice.user(), || {
            Acquisition::new(&socket, wish).unwrap()
        })
        .unwrap();
    drop(acquisition.populate());
    let (reply, sockets) = acquisition.bind().unwrap();
    let lease = acquisition.acquired.lease;
    let activated = acquisition.broker.activate(lease).unwrap();
    assert_eq!(activated.sockets[0].mode, reply.sockets[0].mode);
    drop(sockets);
    acquisition.broker.release(lease).unwrap();
    wait_event(broker, "freed", lease);
    reply.sockets[0].mode
}

#[test]
fn the_mode_is_the_rules() {
    use ModeWish::{Copy, ZeroCopy, ZeroCopyElseCopy};
    for (rule, mode, expected) in [
        ("allowed", None, BindMode::Copy),
        ("allowed", Some(Copy), BindMode::Copy),
        ("allowed", Some(ZeroCopy), BindMode::ZeroCopy),
        ("allowed", Some(ZeroCopyElseCopy), BindMode::ZeroCopy),
        ("required", None, BindMode::ZeroCopy),
        ("forbidden", None, BindMode::Copy),
        ("forbidden", Some(ZeroCopyElseCopy), BindMode::Copy),
    ] {
        let run = with_rule(
            &format!("zero-copy = \"{rule}\""),
            |world, nics, broker, alice| {
                let wish = first_queue(nics, Direction::RxTx, mode);
                assert_eq!(mode_of(world, broker, alice, &wish), expected, "{rule} {mode:?}");
            },
        );
        if let Err(skip) = run {
            skip!(skip);
        }
    }
}

#[test]
fn the_memory_of_who_only_sends_sees_nothing() {
    const DATAGRAMS: u32 = 500;
    let run = with_rule("", |world, nics, broker, alice| {
        let wish = first_queue(nics, Direction::Tx, Some(ModeWish::ZeroCopyElseCopy));
        let socket = broker.paths().socket();
        let acquisition = world
            .run_as(Side::Host, &alice.user(), || {
                Acquisition::new(&socket, &wish).unwrap()
            })
            .unwrap();
        let mut held = acquisition.hold();
        let activated = held.broker.activate(held.lease).unwrap();
        assert_eq!(activated.sockets[0].mode, BindMode::Copy);
        let bind = |side, address| {
            world
                .run_in(side, || UdpSocket::bind((address, PORT)))
                .unwrap()
                .unwrap()
        };
        let (host, peer) = (
            bind(Side::Host, nics.host.address),
            bind(Side::PEER, nics.peer.address),
        );
        host.set_read_timeout(Some(PATIENCE)).unwrap();
        peer.set_read_timeout(Some(PATIENCE)).unwrap();
        let before = digest(&held.memfd);
        let mut buffer = [0; 64];
        for number in 0..DATAGRAMS {
            peer.send_to(&number.to_be_bytes(), (nics.host.address, PORT))
                .unwrap();
            let length = host.recv(&mut buffer).unwrap();
            assert_eq!(buffer[..length], number.to_be_bytes());
        }
        assert_eq!(digest(&held.memfd), before, "its memory has changed");
        // It does send.
        let frame = packets::udp(nics.host.end(PORT), nics.peer.end(PORT), b"outward");
        held.socket(0).send(&frame).unwrap();
        let length = peer.recv(&mut buffer).unwrap();
        assert_eq!(&buffer[..length], b"outward");
    });
    if let Err(skip) = run {
        skip!(skip);
    }
}
