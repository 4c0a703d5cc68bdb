//! `Monitor` tells whoever may know what becomes of a lease, as it happens; who reads too slowly is told so, and costs
//! nobody anything.

use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use e2e::broker::BrokerProcess;
use e2e::raw_client::RawClient;
use e2e::uids::Uid;
use e2e::world::{Side, World};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use serde_json::{Value, json};
use xsk_client::wire::{Change, EndReason, LeaseEvent, LeaseState};
use xsk_client::{Broker, CallError, Monitor, News};

use crate::lease_scene::{PATIENCE, SILENCE, leases, operator, policy, wait_until};
use crate::puppet::{Order, Puppet};

const MONITOR: &[u8] = b"{\"method\":\"org.xskbroker.Broker.Monitor\",\"more\":true}\0";

/// A user's monitor, after its first news, which is how many leases it sees.
pub(crate) fn monitor(broker: &BrokerProcess<'_>, uid: &Uid) -> (Monitor, usize) {
    begun(broker.client_of(uid).unwrap())
}

/// An operator's.
pub(crate) fn operators(broker: &BrokerProcess<'_>) -> (Monitor, usize) {
    begun(operator(broker))
}

fn begun(broker: Broker) -> (Monitor, usize) {
    let mut monitor = broker.monitor().unwrap();
    match monitor.next(Some(PATIENCE)).unwrap() {
        Some(News::Leases { leases, lost: None }) => (monitor, leases.len()),
        other => panic!("{other:?}"),
    }
}

/// The next event.
pub(crate) fn event(monitor: &mut Monitor) -> LeaseEvent {
    match monitor.next(Some(PATIENCE)).unwrap() {
        Some(News::Event(event)) => *event,
        other => panic!("{other:?}"),
    }
}

/// State, reason, whether RX is stopped, whether TX may go on.
fn told(event: &LeaseEvent) -> (LeaseState, Option<EndReason>, bool, bool) {
    (event.state, event.reason, event.rx_stopped, event.tx_may_continue)
}

fn is_readable(monitor: &Monitor, patience: Duration) -> bool {
    let patience = Timespec::try_from(patience).unwrap();
    let fd = monitor.as_fd();
    poll(&mut [PollFd::new(&fd, PollFlags::IN)], Some(&patience)).unwrap() > 0
}

#[test]
fn a_lease_is_followed_from_its_grant_to_its_freed_queue() {
    let world = World::new().unwrap();
    let [alice, bob] = [(); 2].map(|()| Uid::take().unwrap());
    let rules = [(alice.number(), "1-7"), (bob.number(), "1-7")];
    let broker = BrokerProcess::start(&world, &policy(&rules)).unwrap();
    let mut holder = Puppet::start(&world, Side::Host, &alice.user());
    let before = holder.hold("eth0:2");

    let (mut own, seen) = monitor(&broker, &alice);
    assert_eq!(seen, 1);
    let (mut strange, seen) = monitor(&broker, &bob);
    assert_eq!(seen, 0);
    let (mut all, seen) = operators(&broker);
    assert_eq!(seen, 1);
    assert_eq!(own.next(Some(SILENCE)).unwrap(), None);
    assert!(!is_readable(&own, Duration::ZERO));

    let lease = holder.hold("eth0:3");
    assert!(is_readable(&own, PATIENCE));
    for monitor in [&mut own, &mut all] {
        let granted = event(monitor);
        assert_eq!((granted.lease, granted.change), (lease, Change::State));
        assert_eq!(told(&granted), (LeaseState::HandedOver, None, true, true));
        assert_eq!(granted.holder.pid, holder.pid());
        assert_eq!(told(&event(monitor)), (LeaseState::Active, None, false, true));
    }
    holder.release(lease);
    let released = Some(EndReason::Released);
    for monitor in [&mut own, &mut all] {
        // The holder has the socket still.
        assert_eq!(
            told(&event(monitor)),
            (LeaseState::Lingering, released, true, true)
        );
    }
    assert_eq!(own.next(Some(SILENCE)).unwrap(), None);
    holder.close(lease);
    for monitor in [&mut own, &mut all] {
        assert_eq!(told(&event(monitor)), (LeaseState::Freed, released, true, false));
    }
    // A lease that was never bound ends at once; its socket is still out there.
    let unbound = holder.acquire("eth0:4").unwrap();
    holder.release(unbound);
    assert_eq!(told(&event(&mut own)).0, LeaseState::HandedOver);
    assert_eq!(told(&event(&mut own)), (LeaseState::Freed, released, true, true));

    holder.kill();
    let ends = [event(&mut own), event(&mut own)];
    let exited = Some(EndReason::HolderExited);
    assert_eq!(told(&ends[0]), (LeaseState::Lingering, exited, true, true));
    assert_eq!(told(&ends[1]), (LeaseState::Freed, exited, true, false));
    assert_eq!(ends[1].lease, before);
    assert_eq!(strange.next(Some(Duration::ZERO)).unwrap(), None);
}

#[test]
fn the_command_line_follows_too() {
    let world = World::new().unwrap();
    let alice = Uid::take().unwrap();
    let broker = BrokerProcess::start(&world, &policy(&[(alice.number(), "1-7")])).unwrap();
    let [people, programs] = [&["monitor"][..], &["monitor", "--json"]]
        .map(|arguments| e2e::broker::start_cli(&world, None, arguments).unwrap());
    let begins = |line: &str| line.contains("leases").then_some(());
    people.wait_stdout(PATIENCE, begins).unwrap();
    programs.wait_stdout(PATIENCE, begins).unwrap();
    let mut holder = Puppet::start(&world, Side::Host, &alice.user());
    let lease = holder.hold("eth0:3");
    holder.kill();
    let freed = format!("lease {lease} eth0:3 freed (holder-exited), RX stopped, TX over");
    people
        .wait_stdout(PATIENCE, |line| (line == freed).then_some(()))
        .unwrap();
    let event = programs.wait_stdout(PATIENCE, |line| {
        let value: Value = serde_json::from_str(line).unwrap();
        (value["event"]["state"] == "freed").then(|| value["event"].clone())
    });
    let event = event.unwrap();
    assert_eq!(
        (&event["lease"], &event["reason"]),
        (&json!(lease), &json!("holder_exited"))
    );
    drop(broker);
}

#[test]
fn who_reads_too_slowly_loses_events_and_gets_the_leases_anew() {
    const ROUNDS: usize = 240;
    let world = World::new().unwrap();
    let uids = [(); 4].map(|()| Uid::take().unwrap());
    let rules: Vec<(u32, &str)> = uids.iter().map(|uid| (uid.number(), "1-7")).collect();
    let broker = BrokerProcess::start(&world, &policy(&rules)).unwrap();
    let connect =
        || RawClient::over(std::os::unix::net::UnixStream::connect(broker.control_socket()).unwrap());
    let mut slow = connect().unwrap();
    slow.send(MONITOR).unwrap();
    let (mut quick, _) = operators(&broker);
    let mut first = Vec::new();
    for uid in &uids {
        let connector = broker.connector(uid).unwrap();
        let mut client = RawClient::connect(&connector, &broker.paths().socket()).unwrap();
        for _ in 0..ROUNDS {
            let asked = json!({ "interface": "eth0", "queues": [3], "sockets": "prepared" });
            let lease = client.call("Acquire", &asked).unwrap()["parameters"]["lease"].clone();
            assert!(lease.is_u64(), "{lease}");
            client.call("Release", &json!({ "lease": lease })).unwrap();
            // Whoever reads gets all of them, in order, while the other one sleeps.
            assert_eq!(event(&mut quick).state, LeaseState::HandedOver);
            let freed = event(&mut quick);
            assert_eq!((freed.state, json!(freed.lease)), (LeaseState::Freed, lease));
            first.push(freed.lease);
        }
    }
    let mut holder = Puppet::start(&world, Side::Host, &uids[0].user());
    // Of the same uid, which has used up what it may leave unbound; a socket that is bound is another matter.
    let kept = match holder.acquire("eth0:5") {
        Ok(lease) => lease,
        Err(failure) => panic!("{failure:?}"),
    };
    let (mut events, mut lost) = (0, 0);
    loop {
        let reply = slow.receive().unwrap().unwrap();
        assert_eq!(reply["continues"], true, "{reply}");
        let parameters = &reply["parameters"];
        if parameters["event"].is_object() {
            events += 1;
            continue;
        }
        let listed = parameters["leases"].as_array().unwrap();
        match parameters["lost"].as_u64() {
            None => assert_eq!((events, listed.len()), (0, 0)),
            Some(count) => {
                lost += count;
                let known: Vec<&Value> = listed.iter().map(|lease| &lease["lease"]).collect();
                assert_eq!(known, [&json!(kept)]);
                break;
            }
        }
    }
    // Of the last one it heard in the list.
    let all = u64::try_from(uids.len() * ROUNDS * 2).unwrap() + 1;
    assert_eq!(events + lost, all, "{events} came, {lost} were lost");
    assert!(lost > 0 && events > 0);
    println!("{events} events came, {lost} were lost");
    // And from now on it hears everything again.
    holder.release(kept);
    let reply = slow.receive().unwrap().unwrap();
    assert_eq!(reply["parameters"]["event"]["lease"], kept);
}

#[test]
fn what_is_no_call_of_monitor() {
    let world = World::new().unwrap();
    let alice = Uid::take().unwrap();
    let broker = BrokerProcess::start(&world, &policy(&[(alice.number(), "1-7")])).unwrap();
    let connector = broker.connector(&alice).unwrap();
    let connect = || RawClient::connect(&connector, &broker.paths().socket()).unwrap();
    let mut client = connect();
    let reply = client.call("Monitor", &json!({})).unwrap();
    assert_eq!(reply["error"], "org.varlink.service.ExpectedMore");
    // The connection lives on, until it is one that monitors.
    client.send(MONITOR).unwrap();
    assert_eq!(
        client.receive().unwrap().unwrap()["parameters"]["leases"],
        json!([])
    );
    client.send(MONITOR).unwrap();
    assert_eq!(client.receive().unwrap(), None, "closed");
    // One that hangs up is forgotten.
    for _ in 0..10 {
        connect().send(MONITOR).unwrap();
    }
    wait_until("they are gone", || {
        operator(&broker).get_status().unwrap().connections == 0
    });
}

#[test]
fn a_broker_that_was_restarted_is_found_again() {
    let world = World::new().unwrap();
    let alice = Uid::take().unwrap();
    let mut broker = BrokerProcess::start(&world, &policy(&[(alice.number(), "1-7")])).unwrap();
    let (mut monitor, _) = operators(&broker);
    let mut plain = operator(&broker);
    plain.list_leases().unwrap();
    let mut holder = Puppet::start(&world, Side::Host, &alice.user());
    holder.hold("eth0:3");
    broker.stop().unwrap();
    // The last it hears is how that lease ended, or nothing.
    let lost = loop {
        match monitor.next(Some(PATIENCE)) {
            Ok(news) => assert!(matches!(news, Some(News::Event(_))), "{news:?}"),
            Err(error) => break error,
        }
    };
    assert!(
        matches!(lost, CallError::Protocol { .. } | CallError::Connection { .. }),
        "{lost:?}"
    );
    broker.restart().unwrap();
    let (news, asked) = (monitor.next(Some(PATIENCE)).unwrap(), Instant::now());
    assert!(matches!(news, Some(News::Leases { lost: None, .. })), "{news:?}");
    assert!(asked.elapsed() < PATIENCE);
    // A connection that was idle meanwhile notices before it sends, so that even this is sound.
    plain.list_leases().unwrap();
    holder
        .ask(&Order::Acquire {
            target: "eth0:4".into(),
            kind: xsk_client::wire::SocketKind::Prepared,
            ring_entries: 64,
        })
        .unwrap();
    assert!(
        leases(&broker)
            .iter()
            .any(|lease| lease.interface.as_str() == "eth0")
    );
}
