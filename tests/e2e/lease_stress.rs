//! Many users who come and go in any order disturb neither each other's leases nor a steady holder.

use std::net::UdpSocket;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use e2e::broker::BrokerProcess;
use e2e::echo_loop::EchoLoop;
use e2e::holder::Holder;
use e2e::leaks::{Fds, Leaks};
use e2e::uids::Uid;
use e2e::world::{Side, World};
use xsk_client::Broker;
use xsk_client::wire::Quota;

use crate::lease_scene::{PATIENCE, Traffic, operator, policy, port, wait_until};
use crate::puppet::Puppet;

const OPERATIONS: u32 = 300;
const USERS: usize = 4;
/// The steady holder's.
const STEADY: u32 = 7;

/// A sequence that is the same for the same seed.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % limit
    }
}

/// Somebody with at most one lease, and how far it has come.
struct Actor<'a> {
    world: &'a World,
    uid: Uid,
    puppet: Puppet,
    lease: Option<(u64, Step)>,
}

#[derive(Clone, Copy)]
enum Step {
    Acquired,
    Bound,
    Active,
}

impl<'a> Actor<'a> {
    fn new(world: &'a World, uid: Uid) -> Self {
        let puppet = Puppet::start(world, Side::Host, &uid.user());
        Self {
            world,
            uid,
            puppet,
            lease: None,
        }
    }

    /// Does the next thing, or something else. Says what.
    fn act(&mut self, random: &mut Random, revoke: &mut impl FnMut(u64)) -> &'static str {
        match (self.lease, random.below(10)) {
            (_, 0) => {
                self.puppet.kill();
                self.puppet = Puppet::start(self.world, Side::Host, &self.uid.user());
                self.lease = None;
                "kill"
            }
            (None, _) => {
                let first = 1 + random.below(5);
                let target = format!("eth0:{first}-{}", first + random.below(2));
                match self.puppet.acquire(&target) {
                    Ok(lease) => {
                        self.lease = Some((lease, Step::Acquired));
                        "acquire"
                    }
                    Err(failure) => {
                        assert_eq!(failure.kind, "QueueBusy", "{failure:?}");
                        "busy"
                    }
                }
            }
            (Some((lease, _)), 1) => {
                self.puppet.release(lease);
                self.puppet.close(lease);
                self.lease = None;
                "release"
            }
            (Some((lease, _)), 2) => {
                revoke(lease);
                assert_eq!(self.puppet.activate(lease).unwrap_err().kind, "NoSuchLease");
                self.puppet.close(lease);
                self.lease = None;
                "revoke"
            }
            (Some((lease, Step::Acquired)), 3..=4) => {
                assert_eq!(self.puppet.activate(lease).unwrap_err().kind, "NotBound");
                "too early"
            }
            (Some((lease, Step::Acquired)), _) => {
                self.puppet.bind(lease).unwrap();
                self.lease = Some((lease, Step::Bound));
                "bind"
            }
            (Some((lease, _)), _) => {
                self.puppet.activate(lease).unwrap();
                self.lease = Some((lease, Step::Active));
                "activate"
            }
        }
    }
}

#[test]
fn a_steady_holder_loses_nothing_in_the_crowd() {
    let seed = u64::from(std::process::id());
    println!("seed {seed}");
    let world = World::new().unwrap();
    let uids: Vec<Uid> = (0..=USERS).map(|_| Uid::take().unwrap()).collect();
    let rules: Vec<(u32, &str)> = uids.iter().map(|uid| (uid.number(), "1-7")).collect();
    // Nobody is too slow on a loaded machine.
    let rules = policy(&rules).replace("sockets =", "activate-within-ms = 60000\nsockets =");
    let mut leaks = Leaks::snapshot(&world).unwrap();
    let mut broker = BrokerProcess::start(&world, &rules).unwrap();
    let pid = broker.process().pid();
    let traffic = Traffic::new(&world);
    let mut operator = operator(&broker);
    let mut uids = uids.into_iter();
    let steady = uids.next().unwrap();
    let target = format!("eth0:{STEADY}");
    let mut holder = Holder::example(&world, Side::Host, &steady.user(), "echo", &[&target]).unwrap();
    holder.wait_active().unwrap();
    operator.list_leases().unwrap();
    let before = Fds::of(pid).unwrap();

    let socket = world
        .run_in(Side::PEER, || UdpSocket::bind("0.0.0.0:0"))
        .unwrap()
        .unwrap();
    let target = (world.device(Side::Host).address, port(STEADY)).into();
    let over = AtomicBool::new(false);
    let mut done = std::collections::BTreeMap::<&str, u32>::new();
    std::thread::scope(|scope| {
        let echo = scope.spawn(|| {
            let mut echoed = 0;
            while !over.load(Ordering::Relaxed) || echoed == 0 {
                let mut round = EchoLoop::new(target, 2000);
                round.window = 16;
                round.patience = Duration::from_secs(5);
                let count = round.run(&socket).unwrap();
                assert!(count.is_perfect(), "{count:?}");
                echoed += count.echoed;
            }
            echoed
        });
        let mut random = Random(seed);
        let mut actors: Vec<Actor<'_>> = uids.map(|uid| Actor::new(&world, uid)).collect();
        for _ in 0..OPERATIONS {
            let actor = usize::try_from(random.below(USERS as u64)).unwrap();
            let mut revoke = |lease| drop(operator.revoke(lease).unwrap());
            let what = actors[actor].act(&mut random, &mut revoke);
            *done.entry(what).or_default() += 1;
        }
        over.store(true, Ordering::Relaxed);
        println!("{done:?}, {} echoes", echo.join().unwrap());
    });

    wait_until("only the steady one is left", || {
        operator.list_leases().unwrap().leases.len() == 1
    });
    wait_until("all fds are closed", || {
        Fds::of(pid).unwrap().differences(&before).next().is_none()
    });
    for queue in 1..STEADY {
        traffic.expect_at_stack(queue, 0..5);
    }
    holder.kill().unwrap();
    wait_until("no lease is left", || {
        operator.list_leases().unwrap().leases.is_empty()
    });
    // What was taken was given back, to the last byte: by every way that a lease can end, by grants that failed, and by
    // processes that were killed in the middle of either.
    let left = |operator: &mut Broker| -> Vec<Quota> {
        let quotas = operator.get_status().unwrap().quotas;
        let counts = |quota: &Quota| quota.resource != "abandoned-sockets" && quota.in_use > 0;
        quotas.into_iter().filter(counts).collect()
    };
    wait_until("nothing is charged", || left(&mut operator).is_empty());
    leaks.expect_objects_gone(&world, pid).unwrap();
    assert!(broker.stop().unwrap().success());
    leaks.wait_none(&world, PATIENCE).unwrap();
}
