//! A service manager that does not read what it is told, or takes no fds: nobody waits for it, and it is told all of it when
//! it reads again.

use std::time::{Duration, Instant};

use e2e::broker::BrokerProcess;
use e2e::service_manager::ServiceManager;
use e2e::uids::Uid;
use e2e::world::{Side, World};
use rustix::process::Signal;

use crate::lease_scene::{PATIENCE, operator, policy, wait_event, wait_until};
use crate::puppet::Puppet;

#[test]
fn who_does_not_read_holds_up_nobody_and_hears_all_of_it_later() {
    let world = World::new().unwrap();
    let alice = Uid::take().unwrap();
    let manager = ServiceManager::new(&world).unwrap();
    // It wants to see five times a second that the broker lives.
    manager.set("WATCHDOG_USEC", "200000");
    manager.stall().unwrap();
    let mut broker = BrokerProcess::builder()
        .service(manager.service())
        .start(&world, &policy(&[(alice.number(), "1-7")]))
        .unwrap();
    let began = Instant::now();
    let mut holder = Puppet::start(&world, Side::Host, &alice.user());
    let lease = holder.hold("eth0:3");
    let reloaded = broker.cli(&["reload"]).unwrap();
    assert_eq!(reloaded.code, Some(0), "{reloaded:?}");
    holder.release(lease);
    holder.close(lease);
    wait_event(&broker, "freed", lease);
    std::thread::sleep(Duration::from_secs(1));
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());

    // In order, and of what is worth nothing by then one message.
    let mut heard = Vec::new();
    while heard.len() < 4 {
        let said = manager.hear(PATIENCE).unwrap();
        let word = ["READY", "RELOADING", "WATCHDOG"];
        heard.extend(word.into_iter().find(|word| said.value(word) == "1"));
    }
    heard.retain(|word| *word != "WATCHDOG");
    assert_eq!(heard, ["READY", "RELOADING", "READY"]);

    // Nor does its end wait for long.
    manager.stall().unwrap();
    let began = Instant::now();
    assert!(broker.stop().unwrap().success());
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
}

/// Each grant waits for its sockets to be kept, for some time; not each of them for ever.
#[test]
fn who_takes_no_fds_is_given_none_any_more() {
    let world = World::new().unwrap();
    let alice = Uid::take().unwrap();
    let manager = ServiceManager::new(&world).unwrap();
    manager.set("FDSTORE", "64");
    let mut broker = BrokerProcess::builder()
        .service(manager.service())
        .start(&world, &policy(&[(alice.number(), "1-7")]))
        .unwrap();
    assert_eq!(operator(&broker).get_status().unwrap().fd_store_trouble, None);
    manager.stall().unwrap();
    let mut holder = Puppet::start(&world, Side::Host, &alice.user());
    let mut waits = Vec::new();
    let leases: Vec<u64> = (1..=5)
        .map(|queue| {
            let began = Instant::now();
            let lease = holder.acquire(&format!("eth0:{queue}")).unwrap();
            waits.push(began.elapsed());
            lease
        })
        .collect();
    let second = Duration::from_secs(1);
    assert!(waits[..3].iter().all(|wait| *wait >= second), "{waits:?}");
    let words = "it is given none to keep";
    let told = |words: &str| {
        let stderr = broker.process().stderr();
        stderr.iter().filter(|line| line.contains(words)).count()
    };
    let three = "takes no fds to keep now";
    wait_until("three are told", || told(three) >= 3 && told(words) >= 1);
    assert_eq!((told(three), told(words)), (3, 1));
    let status = broker.cli(&["status"]).unwrap().stdout;
    assert!(
        status.contains("fd store: ") && status.contains(words),
        "{status}"
    );

    // What it was not given yet keeps no queue.
    let first = leases[0];
    holder.bind(first).unwrap();
    holder.activate(first).unwrap();
    holder.release(first);
    holder.close(first);
    wait_event(&broker, "freed", first);
    holder.hold("eth0:1");
    // Only by another start is it tried again.
    broker.process().signal(Signal::TERM).unwrap();
    assert!(broker.wait().unwrap().success());
    let tending = manager.tend().unwrap();
    broker.restart().unwrap();
    assert_eq!(operator(&broker).get_status().unwrap().fd_store_trouble, None);
    let next = holder.acquire("eth0:7").unwrap();
    let name = format!("xsk-{next}-7");
    tending.wait(PATIENCE, |names| names.contains(&name)).unwrap();
}
