//! Two tenants on one device, at full rate: neither sees a frame of the other's, under each lock and with each kind that is
//! handed over unbound, also while one of them is killed and its queue granted anew. (Kind `bound`: `bound_holder`.)

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use e2e::packet_socket::PacketSocket;
use e2e::packets;
use e2e::uids::Uid;
use e2e::world::Side;
use xsk_client::wire::SocketKind;

use crate::lease_scene::{payload, port};
use crate::puppet::{Puppet, Seen};
use crate::rogue_scene::{ROGUES, Scene, VICTIMS, for_each};

const FRAMES: u64 = 5000;
const IDLE: Duration = Duration::from_secs(5);

/// Somebody who holds a queue.
struct Tenant {
    puppet: Puppet,
    lease: u64,
    queue: u32,
}

impl Tenant {
    fn new(scene: &Scene<'_>, uid: &Uid, queue: u32, kind: SocketKind) -> Self {
        let mut puppet = Puppet::start(scene.world, Side::Host, &uid.user());
        let lease = puppet.hold_kind_when_free(&format!("eth0:{queue}"), kind);
        Self { puppet, lease, queue }
    }

    fn sees_its_own_only(&mut self) {
        let seen = self.puppet.receive(self.lease, self.queue, FRAMES, IDLE);
        let Seen {
            frames,
            doubled,
            strange,
        } = &seen;
        assert_eq!((*doubled, *strange), (0, 0), "{seen:?}");
        assert_eq!(Vec::from_iter(frames.keys().copied()), [self.queue], "{seen:?}");
        assert!(frames[&self.queue] >= FRAMES, "{seen:?}");
    }
}

/// Ends the senders, whatever becomes of the test.
struct Over<'a>(&'a AtomicBool);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn neither_sees_the_others_frames_whoever_dies() {
    for_each(|scene| {
        let mut victim = Tenant::new(scene, &scene.victim, VICTIMS, SocketKind::Prepared);
        let mut rogue = Tenant::new(scene, &scene.rogue, ROGUES, scene.kind);
        let senders = [ROGUES, VICTIMS].map(|queue| {
            let sender = PacketSocket::open(scene.world, Side::PEER).unwrap();
            (queue, sender)
        });
        let (from, to) = (
            scene.world.device(Side::PEER).end(999),
            scene.world.device(Side::Host),
        );
        let over = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let _over = Over(&over);
            for (queue, sender) in &senders {
                let over = &over;
                scope.spawn(move || {
                    let mut number = 0;
                    while !over.load(Ordering::Relaxed) {
                        let frame = packets::udp(from, to.end(port(*queue)), &payload(*queue, number, 64));
                        match sender.send(&frame) {
                            // At full rate the wire overflows; what is lost there was never sent.
                            Err(error) if error.raw_os_error() != Some(libc::ENOBUFS) => panic!("{error}"),
                            _ => number += 1,
                        }
                    }
                });
            }
            std::thread::scope(|both| {
                both.spawn(|| victim.sees_its_own_only());
                both.spawn(|| rogue.sees_its_own_only());
            });
            rogue.puppet.kill();
            let mut next = Tenant::new(scene, &scene.rogue, ROGUES, scene.kind);
            std::thread::scope(|both| {
                both.spawn(|| victim.sees_its_own_only());
                both.spawn(|| next.sees_its_own_only());
            });
        });
    });
}
