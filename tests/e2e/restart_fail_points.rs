//! The broker is killed at every step of a grant, an activate, a transfer and an end, and at moments that chance chose, and
//! started again, all under a steady stream to four holders: nothing is lost by it, and what was promised is kept.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use e2e::broker::BrokerProcess;
use e2e::process::was_killed;
use e2e::uids::Uid;
use e2e::world::{Side, World};
use xsk_client::wire::{Direction, LeaseState, SocketKind};

use crate::lease_scene::{Traffic, allow_kinds, interface, leases, wait_until};
use crate::puppet::{Failure, Puppet};
use crate::restart_scene::{Held, check, four_holders, under_a_stream};

const VARIABLE: &str = "XSK_BROKER_FAIL_POINT";

/// Those of the first grant on a device, in the order in which they leave more and more behind.
const ATTACH: [&str; 4] = [
    "acquire: nothing attached",
    "attach: maps and program pinned",
    "attach: attached",
    "attach: link pinned",
];
/// Those of a holder's life that binds by itself.
pub(crate) const LIFE: [&str; 15] = [
    "acquire: reserved",
    "acquire: written down",
    "acquire: sockets made",
    "acquire: granted",
    "activate: seen bound",
    "activate: slot filled",
    "activate: written down",
    "activate: active",
    "transfer: written down",
    "end: begun",
    "end: written down",
    "end: slots emptied",
    "end: retired",
    "end: unconfined",
    "end: free",
];
/// Those of one for whom the broker binds.
const BOUND: [&str; 2] = ["bind: bound", "bind: written down"];

/// What a client was told before the broker died, and after.
#[derive(Debug, Default)]
struct Told {
    acquired: Option<u64>,
    activated: bool,
    moved: bool,
    /// It has said so, whatever it was answered.
    released: bool,
}

impl Told {
    /// A lease that it must have, and by whom.
    fn must_be_there(&self) -> Option<u64> {
        self.acquired.filter(|_| self.activated && !self.released)
    }
}

/// Everything that a client does in a lease's life, as far as it comes.
fn live(puppet: &mut Puppet, other_pid: u32, target: &str, kind: SocketKind, stop: &AtomicBool) -> Told {
    let mut told = Told::default();
    let mut steps = || -> Result<(), Failure> {
        let lease = match kind {
            SocketKind::Bound => {
                let order = crate::puppet::Order::AcquireBound {
                    target: target.to_owned(),
                    direction: Direction::RxTx,
                    chunks: 512,
                };
                puppet.ask(&order)?["lease"].as_u64().unwrap()
            }
            _ => puppet.acquire_kind(target, kind)?,
        };
        told.acquired = Some(lease);
        puppet.bind(lease)?;
        puppet.activate(lease)?;
        told.activated = true;
        if stop.load(Ordering::Relaxed) {
            return Ok(());
        }
        if kind == SocketKind::Prepared {
            puppet.transfer(lease, other_pid)?;
            told.moved = true;
            // It is the other one's now, which dies with the test; the operator takes it.
            return Ok(());
        }
        told.released = true;
        puppet.ask(&crate::puppet::Order::Release { lease })?;
        puppet.close(lease);
        Ok(())
    };
    if let Err(failure) = steps() {
        println!("  the client: {} ({})", failure.kind, failure.text);
    }
    told
}

struct Scene<'w> {
    world: &'w World,
    uids: [Uid; 4],
    clients: [Uid; 2],
    broker: BrokerProcess<'w>,
}

impl<'w> Scene<'w> {
    fn new(world: &'w World) -> Self {
        let uids = [(); 4].map(|()| Uid::take().unwrap());
        let clients = [(); 2].map(|()| Uid::take().unwrap());
        let more = format!("transfer-to = [{}]\n", clients[1].number());
        let rules: String = uids
            .iter()
            .chain(&clients)
            .map(|uid| allow_kinds(uid.number(), "1-7", &["prepared", "bound"], &more))
            .collect();
        let rules = interface("eth0", "") + &interface("eth1", "") + &rules;
        let broker = BrokerProcess::start(world, &rules).unwrap();
        Self {
            world,
            uids,
            clients,
            broker,
        }
    }

    fn client(&self, number: usize) -> Puppet {
        Puppet::start(self.world, Side::Host, &self.clients[number].user())
    }

    /// Dies at that place while a client comes by, and is started again. Gives how long nobody served.
    fn die_at(&mut self, place: &str, target: &str, kind: SocketKind) -> Option<Duration> {
        self.broker.kill().unwrap();
        self.broker.relaunch_with(VARIABLE, place).unwrap();
        self.broker.wait_until_it_answers().unwrap();
        let (mut client, mut other) = (self.client(0), self.client(1));
        let other_pid = other.pid();
        let stop = AtomicBool::new(false);
        let (told, away) = std::thread::scope(|scope| {
            let life = scope.spawn(|| {
                let told = live(&mut client, other_pid, target, kind, &stop);
                // It keeps no socket of what the other one has now.
                if told.moved && place.starts_with("end: ") {
                    client.kill();
                }
                told
            });
            if place.starts_with("end: ") {
                // The client has moved its lease, and whoever has it dies.
                let told = life.join().unwrap();
                assert!(told.moved, "{place}: {told:?}");
                other.kill();
                assert!(was_killed(self.broker.wait().unwrap()), "{place}");
                let killed = Instant::now();
                self.broker.restart().unwrap();
                return (told, killed.elapsed());
            }
            let ended = self.broker.wait();
            let ended = match ended {
                Ok(ended) => ended,
                Err(error) => panic!("{place}: {error:#}: {:?}", life.join()),
            };
            assert!(was_killed(ended), "{place}: {ended}");
            let killed = Instant::now();
            self.broker.restart().unwrap();
            let away = killed.elapsed();
            (life.join().unwrap(), away)
        });
        println!("{place}: {told:?}");
        let now = leases(&self.broker);
        match told.must_be_there() {
            Some(lease) if !place.starts_with("end: ") => {
                let found = now.iter().find(|it| it.lease == lease);
                assert_eq!(
                    found.map(|it| it.state),
                    Some(LeaseState::Active),
                    "{place}: {now:?}"
                );
            }
            Some(lease) => {
                let is_live =
                    |it: &&xsk_client::wire::Lease| it.lease == lease && it.state == LeaseState::Active;
                assert!(!now.iter().any(|it| is_live(&it)), "{place}: {now:?}");
            }
            None => {}
        }
        Some(away)
    }

    /// Everybody but the four has gone, and the queue can be had again.
    fn settle(&self, holders: &[Held], target: &str) {
        wait_until("four are left", || leases(&self.broker).len() == holders.len());
        let mut client = self.client(0);
        let lease = client.hold(target);
        check(self.world, &self.broker, holders);
        client.release(lease);
        drop(client);
        wait_until("four are left again", || {
            leases(&self.broker).len() == holders.len()
        });
        check(self.world, &self.broker, holders);
    }
}

fn median(times: &mut [Duration]) -> u128 {
    times.sort_unstable();
    times[times.len() / 2].as_millis()
}

#[test]
fn a_kill_at_any_step_loses_nothing() {
    let world = World::builder().peers(2).build().unwrap();
    let mut scene = Scene::new(&world);
    let traffic = Traffic::new(&world);
    let mut holders = four_holders(&world, &scene.uids);
    let known: Vec<(u32, u64, u32)> = holders
        .iter()
        .map(|held| (held.queue, held.lease, held.puppet.pid()))
        .collect();
    let (packets, mut times) = under_a_stream(&traffic, &mut holders, || {
        let mut times = Vec::new();
        let bound = BOUND
            .map(|place| (place, "eth0:6", SocketKind::Bound))
            .into_iter();
        // Linux before 6.4 has no such kind.
        let bound = bound.filter(|_| e2e::kernel::lacks_for_bound().is_none());
        let places = ATTACH
            .map(|place| (place, "eth1:5", SocketKind::Prepared))
            .into_iter()
            .chain(LIFE.map(|place| (place, "eth0:5", SocketKind::Prepared)))
            .chain(bound);
        for (place, target, kind) in places {
            times.extend(scene.die_at(place, target, kind));
            wait_until("four are left", || leases(&scene.broker).len() == known.len());
            let now = leases(&scene.broker);
            let now: Vec<(u32, u64, u32)> = now
                .iter()
                .map(|lease| (lease.queues[0].queue, lease.lease, lease.holder.pid))
                .collect();
            assert_eq!(now, known, "{place}");
            // Where nothing was attached, nothing is to be for the next one.
            if !ATTACH.contains(&place) {
                let mut client = scene.client(0);
                let lease = client.hold(target);
                client.release(lease);
            }
            wait_until("four are left again", || {
                leases(&scene.broker).len() == known.len()
            });
        }
        times
    });
    println!(
        "{packets} packets through {} kills at the steps of grants and ends, none lost; SIGKILL to serving: median {} ms",
        times.len(),
        median(&mut times),
    );
    scene.settle(&holders, "eth0:5");
    scene.settle(&holders, "eth1:5");
}

#[test]
fn a_panic_loses_nothing() {
    let world = World::builder().peers(2).build().unwrap();
    let mut scene = Scene::new(&world);
    let traffic = Traffic::new(&world);
    let mut holders = four_holders(&world, &scene.uids);
    let (packets, ()) = under_a_stream(&traffic, &mut holders, || {
        for place in ["acquire: sockets made", "acquire: granted"] {
            scene.broker.kill().unwrap();
            scene
                .broker
                .relaunch_with(VARIABLE, &format!("panic at {place}"))
                .unwrap();
            scene.broker.wait_until_it_answers().unwrap();
            let refused = scene.client(0).acquire("eth0:5").unwrap_err();
            println!("{place}: {refused:?}");
            let ended = scene.broker.wait().unwrap();
            assert_eq!(ended.code(), Some(1), "{place}: {ended}");
            std::thread::sleep(Duration::from_millis(50));
            scene.broker.restart().unwrap();
        }
    });
    println!("{packets} packets through two panics of the broker, none lost");
    scene.settle(&holders, "eth0:5");
}

#[test]
fn a_kill_at_twenty_moments_of_chance_loses_nothing() {
    const KILLS: u64 = 20;
    let world = World::builder().peers(2).build().unwrap();
    let mut scene = Scene::new(&world);
    let traffic = Traffic::new(&world);
    let mut holders = four_holders(&world, &scene.uids);
    let known: Vec<u64> = holders.iter().map(|held| held.lease).collect();
    let mut state = u64::from(std::process::id());
    println!("seed {state}");
    let (packets, mut times) = under_a_stream(&traffic, &mut holders, || {
        let mut times = Vec::new();
        for _ in 0..KILLS {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            let moment = Duration::from_micros((state >> 33) % 60_000);
            let (mut client, other) = (scene.client(0), scene.client(1));
            let stop = AtomicBool::new(false);
            let told = std::thread::scope(|scope| {
                let lives = scope.spawn(|| {
                    // Of kind bound: released by its holder, over and over.
                    loop {
                        let told = live(&mut client, other.pid(), "eth0:5", SocketKind::Bound, &stop);
                        if stop.load(Ordering::Relaxed) {
                            return told;
                        }
                    }
                });
                std::thread::sleep(moment);
                scene.broker.kill().unwrap();
                let killed = Instant::now();
                stop.store(true, Ordering::Relaxed);
                scene.broker.restart().unwrap();
                times.push(killed.elapsed());
                lives.join().unwrap()
            });
            println!("after {moment:?}: {told:?}");
            let now = leases(&scene.broker);
            if let Some(lease) = told.must_be_there() {
                let found = now.iter().find(|it| it.lease == lease);
                assert_eq!(found.map(|it| it.state), Some(LeaseState::Active), "{now:?}");
            }
            drop((client, other));
            wait_until("four are left", || leases(&scene.broker).len() == known.len());
            let now: Vec<u64> = leases(&scene.broker).iter().map(|lease| lease.lease).collect();
            assert_eq!(now, known);
        }
        times
    });
    println!(
        "{packets} packets through {KILLS} kills at moments of chance, none lost; SIGKILL to serving: median {} ms",
        median(&mut times),
    );
    scene.settle(&holders, "eth0:5");
}
