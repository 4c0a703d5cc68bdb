//! Placeholders take fds of the broker's: who would need more than there are is told so before any is made, and nobody's
//! grant fails half way.

use e2e::broker::BrokerProcess;
use e2e::uids::Uid;
use e2e::world::{Side, World};
use serde_json::{Value, json};
use xsk_client::wire::{Acquire, BrokerError, Lease, SocketKind};
use xsk_client::{Broker, CallError};

use crate::lease_scene::{allow, allow_kinds, interface, leases, operator};
use crate::puppet::Puppet;

/// The least that a broker starts with.
const LEAST: u64 = 128;
/// With 8 queues, a device takes 7.
const ON_EACH: u64 = 7;

fn policy(uids: &[&Uid]) -> String {
    let rule = |uid: &&Uid| {
        allow_kinds(
            uid.number(),
            "*",
            &["prepared", "bound"],
            "activate-within-ms = 60000",
        )
    };
    let rules: String = uids.iter().map(rule).collect();
    format!("[interface.\"eth*\"]\nqueue-lock = \"placeholders\"\n{rules}")
}

fn start<'w>(world: &'w World, uids: &[&Uid], open_files: u64) -> BrokerProcess<'w> {
    let builder = BrokerProcess::builder().open_files(open_files);
    builder.start(world, &policy(uids)).unwrap()
}

/// What `GetStatus` says of it.
fn probe(broker: &BrokerProcess<'_>) -> (bool, String) {
    let status: Value = operator(broker).call("GetStatus", &json!({})).unwrap();
    let probes = status["probes"].as_array().unwrap();
    let found = probes.iter().find(|probe| probe["name"] == "RLIMIT_NOFILE");
    let found = found.unwrap();
    (
        found["available"] == true,
        found["note"].as_str().unwrap().to_owned(),
    )
}

fn acquire(client: &mut Broker, target: &str, kind: SocketKind) -> Result<(), BrokerError> {
    let acquired = client.acquire(&Acquire::new(target.parse().unwrap(), kind));
    acquired.map(drop).map_err(|error| match error {
        CallError::Refused { cause, .. } => *cause,
        other => panic!("{other}"),
    })
}

#[test]
fn a_start_with_too_few_says_which_limit_and_how_much() {
    let alice = Uid::take().unwrap();
    for few in [12, 16, 24, LEAST - 1] {
        let world = World::new().unwrap();
        let mut broker = BrokerProcess::builder()
            .open_files(few)
            .launch(&world, &policy(&[&alice]))
            .unwrap();
        assert_refused(&mut broker, few);
    }
}

/// Wherever in its start a broker would be short of one: each lease that is taken over takes some.
#[test]
fn a_restart_takes_all_leases_over_or_changes_nothing_and_says_so() {
    const LEASES: u32 = 32;
    let world = World::builder().queues(LEASES + 1).build().unwrap();
    let alice = Uid::take().unwrap();
    let text = interface("eth0", "") + &allow(alice.number(), "*");
    let mut broker = BrokerProcess::start(&world, &text).unwrap();
    let user = alice.user().may_pin(64 << 20);
    let mut holder = Puppet::start(&world, Side::Host, &user);
    for queue in 1..=LEASES {
        holder.hold(&format!("eth0:{queue}"));
    }
    let held = |broker: &BrokerProcess<'_>| -> Vec<_> {
        let of = |lease: &Lease| (lease.lease, lease.state, lease.holder.pid, lease.queues[0].queue);
        leases(broker).iter().map(of).collect()
    };
    let before = held(&broker);
    assert_eq!(before.len(), usize::try_from(LEASES).unwrap());
    broker.kill().unwrap();
    let mut refused = 0;
    for limit in LEAST..LEAST + u64::from(3 * LEASES) {
        broker.relaunch_within(limit).unwrap();
        match broker.wait_until_it_answers() {
            Ok(()) => {
                assert_eq!(held(&broker), before, "{limit}");
                broker.kill().unwrap();
            }
            Err(_) => {
                assert_refused(&mut broker, limit);
                refused += 1;
            }
        }
    }
    println!(
        "{LEASES} leases are taken over with RLIMIT_NOFILE {}",
        LEAST + refused
    );
    assert!(refused > 0 && refused < u64::from(3 * LEASES), "{refused}");
}

fn assert_refused(broker: &mut BrokerProcess<'_>, limit: u64) {
    let status = broker.wait().unwrap();
    let stderr = broker.process().stderr().join("\n");
    assert!(matches!(status.code(), Some(1 | 78)), "{status}: {stderr}");
    let words = format!("RLIMIT_NOFILE is {limit} here. A broker wants {LEAST} at least");
    assert!(
        stderr.contains(&words) && stderr.contains("LimitNOFILE="),
        "{stderr}"
    );
}

#[test]
fn a_limit_that_can_never_be_enough_is_named_with_what_is() {
    // A quarter of it, less what the broker needs for itself.
    const TOO_FEW: u64 = 4 * (32 + ON_EACH - 1);
    const ENOUGH: u64 = 4 * (32 + 2 * ON_EACH);
    let world = World::new().unwrap();
    let alice = Uid::take().unwrap();
    let broker = start(&world, &[&alice], TOO_FEW);
    let mut client = broker.client_of(&alice).unwrap();
    for _ in 0..20 {
        let refused = acquire(&mut client, "eth0:1", SocketKind::Prepared).unwrap_err();
        let BrokerError::DeviceUnavailable { message, .. } = refused else {
            panic!("{refused}")
        };
        for words in [
            "placeholders on its other queues take 7 fds".to_owned(),
            format!("RLIMIT_NOFILE of the broker ({TOO_FEW}) leaves 6"),
            format!("LimitNOFILE={ENOUGH} or more"),
        ] {
            assert!(message.contains(&words), "{words}: {message}");
        }
    }
    assert!(leases(&broker).is_empty());
    let (enough, note) = probe(&broker);
    assert!(
        !enough && note.contains(&format!("LimitNOFILE={ENOUGH} is enough")),
        "{note}"
    );
    let status = broker.cli(&["status"]).unwrap().stdout;
    assert!(status.contains(&note), "{status}");
    // All at once, which takes fewer fds than one placeholder of each other queue.
    acquire(&mut client, "eth0:0-1", SocketKind::Prepared).unwrap();

    let world = World::new().unwrap();
    let broker = start(&world, &[&alice], ENOUGH);
    let (enough, note) = probe(&broker);
    assert!(enough, "{note}");
    let mut client = broker.client_of(&alice).unwrap();
    acquire(&mut client, "eth0:2", SocketKind::Prepared).unwrap();
}

#[test]
fn what_other_devices_placeholders_take_is_waited_for() {
    // Enough for one device at a time.
    const FOR_ONE: u64 = 4 * (32 + 2 * ON_EACH - 1);
    let world = World::builder().peers(2).build().unwrap();
    let [alice, bob] = [(); 2].map(|()| Uid::take().unwrap());
    let broker = start(&world, &[&alice, &bob], FOR_ONE);
    let mut slow = Puppet::start(&world, Side::Host, &alice.user());
    let lease = slow.acquire("eth0:1").unwrap();
    let mut client = broker.client_of(&bob).unwrap();
    let refused = acquire(&mut client, "eth1:1", SocketKind::Prepared).unwrap_err();
    let BrokerError::QueueBusy {
        retry_after_ms,
        message,
        ..
    } = refused
    else {
        panic!("{refused}")
    };
    assert!(retry_after_ms.is_some_and(|ms| ms > 0), "{message}");
    assert!(
        message.contains(&format!("RLIMIT_NOFILE of the broker ({FOR_ONE})")),
        "{message}"
    );
    // Who is bound when it leaves needs none.
    if e2e::kernel::lacks_for_bound().is_none() {
        acquire(&mut client, "eth1:2", SocketKind::Bound).unwrap();
    }
    slow.bind(lease).unwrap();
    slow.activate(lease).unwrap();
    let mut other = Puppet::start(&world, Side::Host, &bob.user());
    other.hold_when_free("eth1:3");
}
