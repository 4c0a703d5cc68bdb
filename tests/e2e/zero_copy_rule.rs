//! `zero-copy` of a rule: what cannot be kept is refused before a socket leaves the broker, and what shows only at the
//! bind ends the lease there.

use e2e::broker::BrokerProcess;
use e2e::lsm;
use e2e::nics::{NICS, Nics};
use e2e::skip;
use e2e::skip::Skip;
use e2e::uids::Uid;
use e2e::world::{Side, World};
use rustix::io::Errno;
use serde_json::json;
use xsk_client::sys::{self, BindFlags};
use xsk_client::wire::{Acquire, BindMode, LeaseState, SocketKind};

use crate::lease_scene::{allow_with, leases, state_of, wait_event};
use crate::puppet::{Order, Puppet};
use crate::rogue_scene::{errno, memory};
use crate::zero_copy::probe;

/// One rule for every queue of that device, with that word.
fn policy(uid: u32, device: &str, word: &str) -> String {
    let section = format!("[interface.{device}]\nqueue-lock = \"none\"\n");
    section + &allow_with(uid, "*", &format!("zero-copy = \"{word}\""))
}

/// A refusal of the device, with these words in it and nothing left behind.
fn expect_refused(broker: &BrokerProcess<'_>, holder: &mut Puppet, target: &str, words: &str) {
    let failure = holder.acquire(target).unwrap_err();
    assert_eq!(failure.kind, "DeviceUnavailable", "{failure:?}");
    assert!(failure.text.contains(words), "{failure:?}");
    assert_eq!(leases(broker), []);
}

#[test]
fn required_is_refused_where_the_driver_has_none() {
    let world = World::new().unwrap();
    let alice = Uid::take().unwrap();
    let broker = BrokerProcess::start(&world, &policy(alice.number(), "eth0", "required")).unwrap();
    let mut holder = Puppet::start(&world, Side::Host, &alice.user());
    // By the kernel's word, or before Linux 6.3 by a try that leaves the queue as it was: so it holds when repeated.
    for _ in 0..3 {
        expect_refused(
            &broker,
            &mut holder,
            "eth0:1",
            "requires zero-copy, and the driver of eth0 has none",
        );
    }
}

#[test]
fn required_is_refused_behind_a_generic_program() {
    let world = World::new().unwrap();
    let alice = Uid::take().unwrap();
    let generic =
        policy(alice.number(), "eth0", "required").replace("[[allow]]", "xdp = \"generic\"\n[[allow]]");
    let broker = BrokerProcess::start(&world, &generic).unwrap();
    let mut holder = Puppet::start(&world, Side::Host, &alice.user());
    expect_refused(&broker, &mut holder, "eth0:1", "runs the XDP program generic");
}

#[test]
fn forbidden_is_served_where_the_driver_has_none() {
    let world = World::new().unwrap();
    let alice = Uid::take().unwrap();
    let broker = BrokerProcess::start(&world, &policy(alice.number(), "eth0", "forbidden")).unwrap();
    let mut holder = Puppet::start(&world, Side::Host, &alice.user());
    let lease = holder.acquire("eth0:1").unwrap();
    holder.bind(lease).unwrap();
    let activated = holder.activate(lease).unwrap();
    assert_eq!(activated["sockets"][0]["mode"], "copy", "{activated}");
    assert_eq!(leases(&broker)[0].queues[0].mode, Some(BindMode::Copy));
}

/// Two devices of a driver that really has zero-copy, or why there are none.
pub(crate) fn zero_copy_nics(world: &World) -> Result<Nics, Skip> {
    if !Nics::are_there() {
        return Err(Skip::PlaceLacks(format!(
            "network devices with zero-copy ({NICS}): `cargo xtask vm` has"
        )));
    }
    let nics = Nics::take(world).unwrap();
    match probe(world, nics.host.index) {
        Ok(()) => Ok(nics),
        Err(errno) => Err(Skip::KernelLacks {
            probe: format!("bind(XDP_ZEROCOPY) of root's on {}: {errno}", nics.driver),
        }),
    }
}

#[test]
fn required_gives_zero_copy_to_who_does_not_ask_and_ends_what_is_bound_in_copy_mode() {
    let world = World::new().unwrap();
    let nics = match zero_copy_nics(&world) {
        Ok(nics) => nics,
        Err(skip) => skip!(skip),
    };
    let (device, target) = (&nics.host.name, format!("{}:0", nics.host.name));
    let alice = Uid::take().unwrap();
    let broker = BrokerProcess::start(&world, &policy(alice.number(), device, "required")).unwrap();

    let mut holder = Puppet::start(&world, Side::Host, &alice.user());
    let lease = holder.acquire(&target).unwrap();
    holder.bind(lease).unwrap();
    let activated = holder.activate(lease).unwrap();
    assert_eq!(activated["sockets"][0]["mode"], "zerocopy", "{activated}");
    assert_eq!(leases(&broker)[0].queues[0].mode, Some(BindMode::ZeroCopy));
    holder.kill();
    wait_event(&broker, "freed", lease);

    // By hand, past the library, which would not do it.
    let mut rogue = Puppet::start(&world, Side::Host, &alice.user());
    let lease = rogue.acquire(&target).unwrap();
    let index = nics.host.index;
    rogue
        .ask(&Order::BindTo {
            lease,
            index,
            queue: 0,
        })
        .unwrap();
    let failure = rogue.activate(lease).unwrap_err();
    assert_eq!(failure.kind, "ModeNotAllowed", "{failure:?}");
    assert_eq!(
        (&failure.details["queue"], &failure.details["mode"]),
        (&json!(0), &json!("copy"))
    );
    let line = wait_event(&broker, "mode-not-allowed", lease);
    assert_eq!(line["uid"], json!(alice.number()), "{line}");
    assert_eq!(wait_event(&broker, "ended", lease)["reason"], "mode-not-allowed");
    // Its socket is still bound: the queue is nobody's until that is gone.
    assert_eq!(state_of(&broker, lease), Some(LeaseState::Lingering));
    rogue.kill();
    wait_event(&broker, "freed", lease);
}

#[test]
fn forbidden_is_refused_where_the_holder_could_bind_in_zero_copy_mode() {
    let world = World::new().unwrap();
    let nics = match zero_copy_nics(&world) {
        Ok(nics) => nics,
        Err(skip) => skip!(skip),
    };
    let device = &nics.host.name;
    let alice = Uid::take().unwrap();
    let broker = BrokerProcess::start(&world, &policy(alice.number(), device, "forbidden")).unwrap();
    let mut holder = Puppet::start(&world, Side::Host, &alice.user());
    let words = format!("forbids zero-copy, which the driver of {device} has");
    expect_refused(&broker, &mut holder, &format!("{device}:0"), &words);
}

/// What was refused above is served where the kernel refuses each bind that could be one in zero-copy mode.
#[test]
fn forbidden_is_kept_by_the_lsm_where_the_driver_has_zero_copy() {
    if let Err(skip) = lsm::is_in_force() {
        skip!(skip);
    }
    let world = World::new().unwrap();
    let nics = match zero_copy_nics(&world) {
        Ok(nics) => nics,
        Err(skip) => skip!(skip),
    };
    let (device, index) = (&nics.host.name, nics.host.index);
    let alice = Uid::take().unwrap();
    let text = policy(alice.number(), device, "forbidden").replace("\"none\"", "\"lsm\"");
    let broker = BrokerProcess::start(&world, &text).unwrap();
    let mut client = broker.client_of(&alice).unwrap();
    let request = Acquire::new(format!("{device}:0").parse().unwrap(), SocketKind::Prepared);
    let (acquired, sockets) = client.acquire(&request).unwrap();
    let memory = memory(16);
    sys::register_umem(&sockets[0], &memory, 4096, 0).unwrap();
    let bind = |flags| errno(sys::bind(&sockets[0], index, 0, flags));
    // Without a flag the driver's zero-copy would be taken.
    for flags in [BindFlags::XDP_ZEROCOPY, BindFlags::empty()] {
        assert_eq!(bind(flags), Err(Errno::PERM), "{flags:?}");
    }
    bind(BindFlags::XDP_COPY).unwrap();
    let activated = client.activate(acquired.lease).unwrap();
    assert_eq!(activated.sockets[0].mode, BindMode::Copy);
}
