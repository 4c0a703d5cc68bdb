//! A socket that its holder hands to a third process: what a revoke stops there, and what it does not.

use std::time::Duration;

use e2e::packet_socket::PacketSocket;
use e2e::packets;
use e2e::raw_xsk::{RawXsk, RingEntries};
use e2e::uids::Uid;
use e2e::world::Side;
use rustix::io::Errno;
use xsk_client::Broker;
use xsk_client::wire::{LeaseState, SocketKind};

use crate::lease_scene::{PATIENCE, SILENCE, read_frame, state_of, wait_event, wait_until};
use crate::rogue_scene::{ROGUES, for_each};

#[test]
fn a_third_process_has_what_its_giver_had_and_loses_what_its_giver_loses() {
    for_each(|scene| {
        // Another user altogether, to whom no rule gives anything.
        let third = Uid::take().unwrap();
        let peer = PacketSocket::open(scene.world, Side::PEER).unwrap();
        let mut granted = scene.acquire();
        let socket = granted.socket.try_clone().unwrap();
        let (lease, control) = (granted.lease, scene.broker.control_socket());
        let outgoing = |payload: &[u8]| {
            packets::udp(
                scene.world.device(Side::Host).end(1),
                scene.world.device(Side::PEER).end(2),
                payload,
            )
        };
        let as_third = scene.world.run_as(Side::PEER, &third.user(), || {
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
        let mut xsk = as_third.unwrap();
        // ...but its lease is its holder's, who alone can say what is to become of it.
        granted.broker.activate(lease).unwrap();
        scene.traffic.send(ROGUES, 1);
        let frame = xsk.receive(PATIENCE).unwrap().expect("a frame");
        assert_eq!(read_frame(&frame), Some((ROGUES, 1)));

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
        drop(granted);
        std::thread::sleep(Duration::from_millis(50));
        assert_eq!(state_of(&scene.broker, lease), Some(LeaseState::Lingering));
        let target = format!("eth0:{ROGUES}").parse().unwrap();
        let busy = scene
            .broker
            .client_of(&scene.rogue)
            .unwrap()
            .acquire(&xsk_client::wire::Acquire::new(target, scene.kind))
            .unwrap_err()
            .to_string();
        assert!(busy.contains("whose socket is still bound to it"), "{busy}");
        // All of it ends with the last process that has the socket.
        drop(xsk);
        wait_event(&scene.broker, "freed", lease);
        wait_until("the queue is granted anew", || {
            scene.as_rogue(|| {
                let mut granted = scene.acquire();
                granted.prepare();
                granted.bind(scene.index, ROGUES) != Err(Errno::BUSY)
            })
        });
    });
}
