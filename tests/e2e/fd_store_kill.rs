//! The broker is killed at every step of a life that begins with an unbound socket, under a manager that keeps fds: what a
//! client was told holds, what was never told to anybody is soon gone, and nothing stays behind in the store.

use std::time::Duration;

use e2e::broker::BrokerProcess;
use e2e::patience::stretched;
use e2e::process::was_killed;
use e2e::service_manager::ServiceManager;
use e2e::uids::Uid;
use e2e::world::{Side, World};
use xsk_client::wire::LeaseState;

use crate::lease_scene::{PATIENCE, allow_with, eth0, leases, state_of, wait_until};
use crate::puppet::{Order, Puppet};
use crate::restart_fail_points::LIFE;

/// What the holder does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    /// Binds, activates, releases.
    Whole,
    /// Releases at once.
    Unbound,
}

/// What it was told before the broker died.
#[derive(Debug, Default)]
struct Told {
    acquired: Option<u64>,
    activated: bool,
    /// It has said so, whatever it was answered.
    released: bool,
}

fn live(holder: &mut Puppet, way: Way) -> Told {
    let mut told = Told::default();
    let Ok(lease) = holder.acquire("eth0:3") else {
        return told;
    };
    told.acquired = Some(lease);
    if way == Way::Whole {
        holder.bind(lease).unwrap();
        told.activated = holder.activate(lease).is_ok();
        if !told.activated {
            return told;
        }
    }
    told.released = true;
    drop(holder.ask(&Order::Release { lease }));
    told
}

#[test]
fn what_a_client_was_told_holds_and_nothing_is_tainted() {
    let world = World::new().unwrap();
    let alice = Uid::take().unwrap();
    let manager = ServiceManager::new(&world).unwrap();
    manager.set("FDSTORE", "64");
    let tending = manager.tend().unwrap();
    let text = "[interface.eth0]\nqueue-lock = \"placeholders\"\nreserved = \"0\"\n".to_owned()
        + &allow_with(alice.number(), "1-7", "activate-within-ms = 3000");
    let mut broker = BrokerProcess::builder()
        .service(manager.service())
        .start(&world, &text)
        .unwrap();
    let mut reached = 0;
    for (way, place) in [Way::Unbound, Way::Whole]
        .into_iter()
        .flat_map(|way| LIFE.map(|place| (way, place)))
    {
        broker.kill().unwrap();
        tending.catch_up().unwrap();
        broker.relaunch_with("XSK_BROKER_FAIL_POINT", place).unwrap();
        broker.wait_until_it_answers().unwrap();
        let mut holder = Puppet::start(&world, Side::Host, &alice.user());
        // That long it looks for a broker that is gone; enough for one that is there, on an emulated machine too.
        holder.patience(stretched(Duration::from_secs(2)).min(Duration::from_secs(5)));
        let told = live(&mut holder, way);
        // The end of a lease is in parts.
        std::thread::sleep(Duration::from_millis(300));
        let is_reached = !broker.is_running().unwrap();
        match is_reached {
            true => assert!(was_killed(broker.wait().unwrap()), "{way:?} {place}"),
            // Nothing of this life passes there.
            false => drop(broker.kill().unwrap()),
        }
        reached += u32::from(is_reached);
        tending.catch_up().unwrap();
        broker.restart().unwrap();
        if let Some(lease) = told.acquired {
            assert_eq!(eth0(&broker).tainted_by, None, "{way:?} {place}: {told:?}");
            let state = state_of(&broker, lease);
            match (told.activated, told.released) {
                (_, true) => {
                    // Nothing of what ended unbound can be bound any more.
                    if way == Way::Unbound && state != Some(LeaseState::HandedOver) {
                        wait_until("its end is over", || state_of(&broker, lease).is_none());
                        assert!(holder.bind(lease).is_err(), "{way:?} {place}");
                    }
                }
                (true, false) => assert_eq!(state, Some(LeaseState::Active), "{way:?} {place}"),
                (false, false) => drop(holder.activate(lease).unwrap()),
            }
        }
        drop(holder);
        wait_until("nothing is held", || leases(&broker).is_empty());
        tending.wait(PATIENCE, <[String]>::is_empty).unwrap();
        wait_until("its process has gone", || eth0(&broker).tainted_by.is_none());
    }
    println!("killed at {reached} places under a manager that keeps fds");
    assert!(reached >= 20, "{reached}");
}
