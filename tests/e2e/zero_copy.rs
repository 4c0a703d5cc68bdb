//! Zero-copy: real where the device has it, refused in words where it has not, and told as it is.

use std::net::UdpSocket;
use std::time::Duration;

use e2e::echo_loop::EchoLoop;
use e2e::holder::Holder;
use e2e::nics::{NICS, Nics};
use e2e::raw_xsk::RawXsk;
use e2e::skip;
use e2e::skip::Skip;
use e2e::tracing::CallCounts;
use e2e::world::{Side, World};
use rustix::net::xdp::SocketAddrXdpFlags;
use xsk_client::Broker;
use xsk_client::wire::BindMode;

use crate::scene::{EVERY_INTERFACE, Scene, allow, tenant_rule};

const PORT: u16 = 7000;
const PATIENCE: Duration = Duration::from_secs(20);

/// What runs in zero-copy only: a driver's own functions that take a socket's pool for a queue, and receive and transmit
/// from there (drivers/net/virtio_net.c, drivers/net/ethernet/intel/igb/igb_xsk.c), and those by which it takes chunks
/// from the pool to receive into (`xp_alloc_batch`), takes descriptors to transmit, and gives them back (net/xdp). Copy
/// mode takes single chunks and never asks the driver.
fn zero_copy_calls(driver: &str) -> Vec<&'static str> {
    let own: &[&str] = match driver {
        "virtio_net" => &["virtnet_rq_bind_xsk_pool", "virtnet_sq_bind_xsk_pool"],
        "igb" => &["igb_xsk_pool_setup", "igb_clean_rx_irq_zc", "igb_xmit_zc"],
        other => panic!("{other}: which functions are its zero-copy?"),
    };
    let of_the_pool = [
        "xp_alloc_batch",
        "xsk_tx_peek_release_desc_batch",
        "xsk_tx_completed",
    ];
    own.iter().copied().chain(of_the_pool).collect()
}

/// Whether the driver takes a zero-copy socket of root's: the answer of the kernel alone, without anything of ours.
pub(crate) fn probe(world: &World, device: u32) -> Result<(), rustix::io::Errno> {
    let socket = world.run_in(Side::Host, || RawXsk::new(64)).unwrap().unwrap();
    socket.bind(device, 0, SocketAddrXdpFlags::XDP_ZEROCOPY)
}

fn scene<'w>(world: &'w World, device: &str) -> Scene<'w> {
    Scene::with_policy(world, |uid| {
        tenant_rule(uid) + &allow("zero-copy", uid, device, "0") + EVERY_INTERFACE
    })
}

/// What `list` says of the only lease's only queue.
fn listed_mode(scene: &Scene<'_>) -> Option<BindMode> {
    let mut operator = Broker::connect_to(scene.broker.control_socket()).unwrap();
    let leases = operator.list_leases().unwrap().leases;
    assert_eq!(leases.len(), 1, "{leases:?}");
    leases[0].queues[0].mode
}

/// Echoes between the peer's stack and the holder, every one compared.
fn echo(world: &World, nics: &Nics, count: u32) {
    nics.wait_carriers(world).unwrap();
    let socket = world
        .run_in(Side::PEER, || UdpSocket::bind("0.0.0.0:0"))
        .unwrap()
        .unwrap();
    let mut round = EchoLoop::new((nics.host.address, PORT).into(), count);
    // Fewer than the receiver's ring has: a virtual wire drops what does not fit.
    round.window = 16;
    let echoed = round.run(&socket).unwrap();
    assert!(echoed.is_perfect(), "{echoed:?}");
}

#[test]
fn the_driver_itself_moves_the_holders_packets() {
    if !Nics::are_there() {
        skip!(Skip::PlaceLacks(format!(
            "network devices with zero-copy ({NICS}): `cargo xtask vm` has"
        )));
    }
    let world = World::new().unwrap();
    let nics = Nics::take(&world).unwrap();
    if let Err(errno) = probe(&world, nics.host.index) {
        skip!(Skip::KernelLacks {
            probe: format!("bind(XDP_ZEROCOPY) of root's on {}: {errno}", nics.driver)
        });
    }
    let functions = zero_copy_calls(&nics.driver);
    let calls = CallCounts::of(&functions).unwrap();
    let scene = scene(&world, &nics.host.name);

    let user = scene.uid.user();
    let target = format!("{}:0", nics.host.name);
    let mut holder = Holder::example(&world, Side::Host, &user, "echo", &[&target, "--zero-copy"]).unwrap();
    // By XDP_OPTIONS after the bind.
    let active = holder.wait_active().unwrap();
    assert_eq!(active, format!("active lease 1 {target} mode zerocopy"));
    assert_eq!(listed_mode(&scene), Some(BindMode::ZeroCopy));
    let activated = scene
        .broker
        .wait_audit(PATIENCE, |line| line["event"] == "activated")
        .unwrap();
    println!("{activated}");

    echo(&world, &nics, 2000);
    // By the driver's deeds: it took the socket's pool for both directions, and filled and drained it itself.
    let calls = calls.now().unwrap();
    println!("{calls:?}");
    for function in functions {
        assert!(
            calls.get(function).is_some_and(|count| *count > 0),
            "{function}: {calls:?}"
        );
    }

    holder.kill().unwrap();
    scene
        .broker
        .wait_audit(PATIENCE, |line| line["event"] == "freed")
        .unwrap();
    scene.finish();
}

#[test]
fn copy_mode_is_had_on_the_same_device_and_told_as_that() {
    if !Nics::are_there() {
        skip!(Skip::PlaceLacks(format!(
            "network devices of a driver's ({NICS}): `cargo xtask vm` has"
        )));
    }
    let world = World::new().unwrap();
    let nics = Nics::take(&world).unwrap();
    let calls = CallCounts::of(&zero_copy_calls(&nics.driver)).unwrap();
    let scene = scene(&world, &nics.host.name);
    let user = scene.uid.user();
    let target = format!("{}:0", nics.host.name);
    let mut holder = Holder::example(&world, Side::Host, &user, "echo", &[&target]).unwrap();
    let active = holder.wait_active().unwrap();
    assert_eq!(active, format!("active lease 1 {target} mode copy"));
    assert_eq!(listed_mode(&scene), Some(BindMode::Copy));
    echo(&world, &nics, 2000);
    // The other side of the proof: none of these runs for a socket that is copied to.
    let calls = calls.now().unwrap();
    assert!(calls.values().all(|count| *count == 0), "{calls:?}");
    holder.kill().unwrap();
    scene
        .broker
        .wait_audit(PATIENCE, |line| line["event"] == "freed")
        .unwrap();
    scene.finish();
}

#[test]
fn where_there_is_none_it_is_refused_with_the_reason() {
    // A veth never has it; a driver's device may not, on an older kernel.
    refused(&World::new().unwrap(), "eth0");
    if Nics::are_there() {
        let world = World::new().unwrap();
        let nics = Nics::take(&world).unwrap();
        if probe(&world, nics.host.index).is_err() {
            refused(&world, &nics.host.name);
        }
    }
}

fn refused(world: &World, device: &str) {
    let scene = scene(world, device);
    let target = format!("{device}:0");
    let user = scene.uid.user();
    let mut holder = Holder::example(world, Side::Host, &user, "echo", &[&target, "--zero-copy"]).unwrap();
    let status = holder.wait(PATIENCE).unwrap();
    let words = holder.process().stderr().join("\n");
    assert_eq!(status.code(), Some(1), "{words}");
    assert!(words.contains(&target) && words.contains("zero-copy"), "{words}");
    // Its lease went with it, and was never said to be active.
    let ended = scene
        .broker
        .wait_audit(PATIENCE, |line| line["event"] == "ended")
        .unwrap();
    assert_eq!(ended["reason"], "holder-exited", "{ended}");
    let audit = scene.broker.audit().unwrap();
    assert!(audit.iter().all(|line| line["event"] != "activated"), "{audit:?}");
    scene.finish();
}
