//! A socket that its holder hands to a third process: what a revoke stops there, and what it does not.

use std::time::Duration;

use e2e::packet_socket::PacketSocket;
use e2e::packets;
use e2e::raw_xsk::{RawXsk, RingEntries};
use e2e::uids::Uid;
use e2e::world::{Side, World};
use rustix::io::Errno;
use xsk_client::Broker;
use xsk_client::wire::{Acquire, Direction, LeaseState, SocketKind};

use crate::bound_scene::{Acquisition, CHUNKS, needs_bound, wish};
use crate::lease_scene::{PATIENCE, SILENCE, read_frame, state_of, wait_event, wait_until};
use crate::rogue_scene::{ROGUES, Scene, for_each};

#[test]
fn a_third_process_has_what_its_giver_had_and_loses_what_its_giver_loses() {
    for_each(|scene| {
        let mut granted = scene.acquire();
        let socket = granted.socket.try_clone().unwrap();
        let lease = granted.lease;
        let third = Third::take(scene, || {
            // An unbound socket works for whoever has it, from any network namespace...
            let xsk = match scene.kind {
                SocketKind::Bare => RawXsk::with_socket(socket, 64).unwrap(),
                SocketKind::Prepared | SocketKind::Bound => {
                    RawXsk::with_rings(socket, 64, RingEntries::all(2048)).unwrap()
                }
            };
            xsk.bind_copy(scene.index, ROGUES).unwrap();
            xsk
        });
        // ...but its lease is its holder's, who alone can say what is to become of it.
        granted.broker.activate(lease).unwrap();
        let target = format!("eth0:{ROGUES}").parse().unwrap();
        third.loses(lease, granted, &Acquire::new(target, scene.kind));
        wait_until("the queue is granted anew", || {
            scene.as_rogue(|| {
                let mut granted = scene.acquire();
                granted.prepare();
                granted.bind(scene.index, ROGUES) != Err(Errno::BUSY)
            })
        });
    });
}

/// The same of one that the broker has bound.
#[test]
fn so_has_one_to_whom_a_bound_socket_and_its_memory_were_handed() {
    needs_bound!();
    let world = World::builder().peers(2).build().unwrap();
    let scene = Scene::new(&world, "none", SocketKind::Bound);
    let (path, request) = (
        scene.broker.paths().socket(),
        wish(&format!("eth0:{ROGUES}"), Direction::RxTx),
    );
    let (giver, mut sockets) = scene.as_rogue(|| {
        let mut giver = Acquisition::new(&path, &request).unwrap();
        drop(giver.populate());
        let (_, sockets) = giver.bind().unwrap();
        giver.broker.activate(giver.acquired.lease).unwrap();
        (giver, sockets)
    });
    let (lease, memory) = (giver.acquired.lease, giver.memfd.try_clone().unwrap());
    let third = Third::take(&scene, || {
        RawXsk::over_bound(sockets.remove(0), memory, 0..CHUNKS, RingEntries::all(CHUNKS)).unwrap()
    });
    third.loses(lease, giver, &request);
    let anew = || scene.broker.client_of(&scene.rogue).unwrap().acquire(&request);
    wait_until("the queue is granted anew", || anew().is_ok());
}

/// Another user altogether, to whom no rule gives anything, in another network namespace.
struct Third<'s, 'w> {
    scene: &'s Scene<'w>,
    xsk: RawXsk,
    _user: Uid,
}

impl<'s, 'w> Third<'s, 'w> {
    fn take(scene: &'s Scene<'w>, take: impl FnOnce() -> RawXsk + Send) -> Self {
        let user = Uid::take().unwrap();
        let xsk = scene.world.run_as(Side::PEER, &user.user(), take).unwrap();
        Self {
            scene,
            xsk,
            _user: user,
        }
    }

    /// Receives as its giver would, and no more once the lease is revoked; the queue is in use for as long as it has the
    /// socket.
    fn loses<G>(mut self, lease: u64, giver: G, request: &Acquire) {
        let (scene, xsk) = (self.scene, &mut self.xsk);
        let peer = PacketSocket::open(scene.world, Side::PEER).unwrap();
        let outgoing = |payload: &[u8]| {
            packets::udp(
                scene.world.device(Side::Host).end(1),
                scene.world.device(Side::PEER).end(2),
                payload,
            )
        };
        scene.traffic.send(ROGUES, 1);
        let frame = xsk.receive(PATIENCE).unwrap().expect("a frame");
        assert_eq!(read_frame(&frame), Some((ROGUES, 1)));

        let control = scene.broker.control_socket();
        Broker::connect_to(&control).unwrap().revoke(lease).unwrap();
        assert_eq!(wait_event(&scene.broker, "ended", lease)["reason"], "revoked");
        // What stops: receiving.
        scene.traffic.expect_at_stack(ROGUES, 2..50);
        assert_eq!(xsk.receive(SILENCE).unwrap(), None);
        // What does not, which SECURITY.md says: transmitting, and keeping the queue.
        for number in 0..20_u8 {
            let frame = outgoing(&[number; 64]);
            xsk.send(&frame).unwrap();
            let seen = peer.expect(PATIENCE, |seen| (seen == frame).then_some(()));
            assert_eq!(seen.unwrap(), Some(()), "frame {number}");
        }
        drop(giver);
        std::thread::sleep(Duration::from_millis(50));
        assert_eq!(state_of(&scene.broker, lease), Some(LeaseState::Lingering));
        let mut client = scene.broker.client_of(&scene.rogue).unwrap();
        let busy = client.acquire(request).unwrap_err().to_string();
        assert!(busy.contains("whose socket is still bound to it"), "{busy}");
        // All of it ends with the last process that has the socket.
        drop(self);
        wait_event(&scene.broker, "freed", lease);
    }
}
