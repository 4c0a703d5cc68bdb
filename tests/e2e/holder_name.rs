//! What a process is called is its own choice and need not be text: it is served and found like any other.

use e2e::broker::BrokerProcess;
use e2e::uids::Uid;
use e2e::world::{Side, World};
use serde_json::Value;
use xsk_client::wire::LeaseState;

use crate::lease_scene::{allow_with, leases, operator, state_of};
use crate::puppet::{Order, Puppet};

/// Neither is UTF-8 anywhere.
const NAMES: [&[u8]; 2] = [b"\xff\xfe", b"\xff) \xfe"];

fn policy(lock: &str, uid: &Uid) -> String {
    let more = format!("transfer-to = {}", uid.number());
    let rule = allow_with(uid.number(), "1-7", &more);
    format!("[interface.eth0]\nqueue-lock = \"{lock}\"\nreserved = \"0\"\n{rule}")
}

fn named(world: &World, uid: &Uid, name: &[u8]) -> Puppet {
    let mut puppet = Puppet::start(world, Side::Host, &uid.user());
    puppet.ask(&Order::CallItself { name: name.to_vec() }).unwrap();
    puppet
}

#[test]
fn it_is_served_taken_over_moved_to_and_ended() {
    let world = World::new().unwrap();
    let alice = Uid::take().unwrap();
    let mut broker = BrokerProcess::start(&world, &policy("none", &alice)).unwrap();
    let [mut first, mut second] = NAMES.map(|name| named(&world, &alice, name));
    let lease = first.hold("eth0:3");
    broker.kill().unwrap();
    broker.restart().unwrap();
    let taken_over = leases(&broker);
    assert_eq!(taken_over.len(), 1, "{taken_over:?}");
    assert_eq!(
        (taken_over[0].lease, taken_over[0].state, taken_over[0].holder.pid),
        (lease, LeaseState::Active, first.pid())
    );
    first.transfer(lease, second.pid()).unwrap();
    second.activate(lease).unwrap();

    // The new holder has no fd of it: who is named is the one who has.
    let keepers = |output: &str| -> Vec<u64> {
        let told: Value = serde_json::from_str(output).unwrap();
        let keepers = told["keepers"].as_array().unwrap();
        keepers
            .iter()
            .map(|keeper| keeper["pid"].as_u64().unwrap())
            .collect()
    };
    let output = broker
        .cli(&["revoke", &lease.to_string(), "--kill", "--json"])
        .unwrap();
    assert_eq!(keepers(&output.stdout), [u64::from(first.pid())], "{output:?}");
    assert!(output.stdout.contains("\"killed\":true"), "{output:?}");
    let own = first.hold("eth0:4");
    let output = broker
        .cli(&["revoke", &own.to_string(), "--kill", "--json"])
        .unwrap();
    assert_eq!(output.code, Some(0), "{output:?}");
    assert!(output.stdout.contains("\"killed\":true"), "{output:?}");
    assert_eq!(state_of(&broker, own), None);
}

#[test]
fn a_device_stays_tainted_by_it() {
    let world = World::new().unwrap();
    let mallory = Uid::take().unwrap();
    let mut broker = BrokerProcess::start(&world, &policy("placeholders", &mallory)).unwrap();
    let mut holder = named(&world, &mallory, NAMES[0]);
    holder.acquire("eth0:3").unwrap();
    broker.kill().unwrap();
    broker.restart().unwrap();
    let interfaces = operator(&broker).list_interfaces().unwrap().interfaces;
    let eth0 = interfaces.into_iter().find(|it| it.interface.as_str() == "eth0");
    assert_eq!(eth0.unwrap().tainted_by, Some(holder.pid()));
    let mut other = Puppet::start(&world, Side::Host, &mallory.user());
    let refused = other.acquire("eth0:4").unwrap_err();
    assert!(refused.text.contains("may still be unbound"), "{refused:?}");
}
