//! Pinned memory is counted for each uid: who has used up its own limit takes nothing from others.

use e2e::world::Side;
use xsk_client::wire::SocketKind;

use crate::lease_scene::PATIENCE;
use crate::puppet::{Order, Puppet, Seen};
use crate::rogue_scene::{ROGUES, SPARE, VICTIMS, for_each};

/// Chunks of 4096 bytes that are the whole of the default RLIMIT_MEMLOCK.
const ALL: u32 = 2048;

#[test]
fn one_uids_memlock_is_not_anothers() {
    for_each(|scene| {
        let hold = |puppet: &mut Puppet, queue: u32, kind, chunks| {
            let lease = puppet.acquire_kind_when_free(&format!("eth0:{queue}"), kind);
            let bound = puppet.ask(&Order::Bind {
                lease,
                chunk_bytes: 4096,
                chunks,
            });
            bound.map(|_| puppet.activate(lease).unwrap()).map(|_| lease)
        };
        let mut rogue = Puppet::start(scene.world, Side::Host, &scene.rogue.user());
        hold(&mut rogue, ROGUES, scene.kind, ALL).unwrap();
        // To the last page: another process of the same uid gets nothing more.
        let mut again = Puppet::start(scene.world, Side::Host, &scene.rogue.user());
        let failure = hold(&mut again, SPARE, scene.kind, 2).unwrap_err();
        assert_eq!(failure.kind, "Error::MemlockTooLow");
        // Under placeholders others wait for who leaves a socket unbound, which is another matter.
        again.kill();

        // The victim has its whole limit all the same, and the broker what it needs for its own looks.
        let mut victim = Puppet::start(scene.world, Side::Host, &scene.victim.user());
        let lease = hold(&mut victim, VICTIMS, SocketKind::Prepared, ALL).unwrap();
        scene.traffic.send_all(VICTIMS, 0..100);
        assert_eq!(
            victim.receive(lease, VICTIMS, 100, PATIENCE),
            Seen::only(VICTIMS, 100)
        );
    });
}
