//! Under placeholders one lease's sockets are out unbound at a time. Whoever has the broker bind has turns between those of
//! others, who let sockets out again and again.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use e2e::broker::BrokerProcess;
use e2e::uids::Uid;
use e2e::world::{Side, World};
use xsk_client::wire::{Acquire, BrokerError, Direction, SocketKind};
use xsk_client::{Broker, CallError};

use crate::bound_scene::{Acquisition, allow, needs_bound, wish};
use crate::lease_scene::{PATIENCE, allow_kinds, wait_until};

/// How many connections want sockets of kind `prepared` without pause.
const OTHERS: u32 = 3;
/// How long each keeps them unbound.
const UNBOUND_FOR: Duration = Duration::from_millis(150);
/// How often the broker is to bind.
const ROUNDS: u32 = 8;

fn is_busy(error: &CallError) -> bool {
    matches!(error, CallError::Refused { cause, .. } if matches!(**cause, BrokerError::QueueBusy { .. }))
}

#[test]
fn who_has_the_broker_bind_has_the_next_turn() {
    needs_bound!();
    let world = World::new().unwrap();
    let [alice, others] = [(); 2].map(|()| Uid::take().unwrap());
    let text = "[interface.eth0]\nqueue-lock = \"placeholders\"\nreserved = \"0\"\n".to_owned()
        + &allow_kinds(others.number(), "1-4", &["prepared"], "")
        + &allow(alice.number(), "5", "");
    let mut broker = BrokerProcess::start(&world, &text).unwrap();
    let socket = broker.paths().socket();
    let (enough, granted) = (AtomicBool::new(false), AtomicU32::new(0));
    let let_out = |queue: u32| {
        let mut broker = Broker::connect_to(&socket).unwrap();
        let target = format!("eth0:{queue}").parse().unwrap();
        let acquire = Acquire::new(target, SocketKind::Prepared);
        let begun = Instant::now();
        while !enough.load(Ordering::Relaxed) && begun.elapsed() < 2 * PATIENCE {
            match broker.acquire(&acquire) {
                Ok((acquired, sockets)) => {
                    granted.fetch_add(1, Ordering::Relaxed);
                    thread::sleep(UNBOUND_FOR);
                    broker.release(acquired.lease).unwrap();
                    drop(sockets);
                }
                Err(error) => assert!(is_busy(&error), "{error}"),
            }
        }
    };
    // How many others were granted something while the broker was to bind.
    let bind_between = || {
        let mut waited = 0;
        for round in 1..=ROUNDS {
            // Among them again.
            let before = granted.load(Ordering::Relaxed);
            wait_until("others have had their turns", || {
                granted.load(Ordering::Relaxed) > before
            });
            let begun = Instant::now();
            let mut acquisition = loop {
                match Acquisition::new(&socket, &wish("eth0:5", Direction::RxTx)) {
                    Ok(acquisition) => break acquisition,
                    // The kernel has not let go of its queue since the last round.
                    Err(error) => assert!(is_busy(&error) && begun.elapsed() < PATIENCE, "{error}"),
                }
            };
            drop(acquisition.populate());
            let before = granted.load(Ordering::Relaxed);
            while let Err(error) = acquisition.bind() {
                assert!(is_busy(&error), "round {round}: {error}");
                assert!(begun.elapsed() < PATIENCE, "round {round}: never bound");
            }
            waited += granted.load(Ordering::Relaxed) - before;
            let lease = acquisition.acquired.lease;
            acquisition.broker.release(lease).unwrap();
        }
        enough.store(true, Ordering::Relaxed);
        waited
    };
    let waited = thread::scope(|scope| {
        let (world, others, let_out) = (&world, &others, &let_out);
        let threads: Vec<_> = (1..=OTHERS)
            .map(|queue| {
                scope.spawn(move || {
                    world
                        .run_as(Side::Host, &others.user(), || let_out(queue))
                        .unwrap();
                })
            })
            .collect();
        let waited = world.run_as(Side::Host, &alice.user(), bind_between);
        enough.store(true, Ordering::Relaxed);
        threads.into_iter().for_each(|thread| thread.join().unwrap());
        waited.unwrap()
    });
    println!("others were granted sockets {waited} times meanwhile");
    // One may have had its turn just before the first try; without turns it is two or three in each round.
    assert!(waited <= ROUNDS + ROUNDS / 4, "{waited}");
    assert!(broker.stop().unwrap().success());
}
