//! A device's queues are counted after XDP was attached, which may make more: virtio-net gives its XDP transmissions queues
//! of their own, and these receive too (`virtnet_xdp_set`, drivers/net/virtio_net.c).

use e2e::broker::BrokerProcess;
use e2e::nics::{ManyQueues, QUEUES_NIC};
use e2e::skip;
use e2e::skip::Skip;
use e2e::uids::Uid;
use e2e::world::{Side, World};
use xsk_client::wire::Interface;

use crate::lease_scene::{allow, leases, operator};
use crate::puppet::Puppet;

fn section(device: &str) -> String {
    format!("[interface.{device}]\nqueue-lock = \"none\"\n")
}

fn listed(broker: &BrokerProcess<'_>) -> Interface {
    operator(broker).list_interfaces().unwrap().interfaces.remove(0)
}

#[test]
fn queues_that_attaching_makes_are_granted() {
    if !ManyQueues::are_there() {
        skip!(Skip::PlaceLacks(format!(
            "network device with more queues than are in use ({QUEUES_NIC}): `cargo xtask vm` has, where a tap may be made"
        )));
    }
    let world = World::new().unwrap();
    let nic = ManyQueues::take(&world).unwrap();
    let (device, before) = (&nic.device.name, nic.device.queues);
    let alice = Uid::take().unwrap();
    let policy = section(device) + &allow(alice.number(), "*");
    let mut broker = BrokerProcess::start(&world, &policy).unwrap();
    assert_eq!(listed(&broker).queues, before, "nothing is attached yet");
    let most = listed(&broker).queues_max;
    assert!(most > before, "{most}");

    // A queue that there is not yet: the grant's own attaching makes it.
    let mut holder = Puppet::start(&world, Side::Host, &alice.user());
    let lease = holder.hold(&format!("{device}:{before}"));
    let now = world.ethtool(Side::Host).channels(device).unwrap().rx;
    assert!(now > before, "{now}");
    let interface = listed(&broker);
    assert_eq!((interface.queues, interface.held), (now, vec![before]));
    // And none beyond.
    let refused = holder.acquire(&format!("{device}:{now}")).unwrap_err();
    assert_eq!(refused.kind, "NoSuchQueue");
    assert_eq!(refused.details["queues"], now);
    assert_eq!(leases(&broker).len(), 1);

    holder.release(lease);
    drop(holder);
    assert!(broker.stop().unwrap().success());
    // The device is as it was.
    assert_eq!(world.ethtool(Side::Host).channels(device).unwrap().rx, before);
}
