//! The kind `bound` with the client library, its example and the command line; and two tenants of it that see nothing of
//! each other, whatever becomes of one.

use std::net::UdpSocket;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use e2e::broker::BrokerProcess;
use e2e::echo_loop::EchoLoop;
use e2e::holder::Holder;
use e2e::huge_pages::HugePages;
use e2e::packet_socket::PacketSocket;
use e2e::packets;
use e2e::skip;
use e2e::skip::Skip;
use e2e::uids::Uid;
use e2e::world::{Side, World};
use xsk_client::wire::{Direction, LeaseState};
use xsk_client::{BindOptions, Broker, Error, Grant, Request, UmemOptions};

use crate::bound_scene::{EVERY_QUEUE, allow, needs_bound, policy};
use crate::lease_scene::{
    PATIENCE, SILENCE, Traffic, interface, leases, payload, port, read_frame, wait_event, wait_until,
};
use crate::puppet::{Order, Puppet, Seen};

const IDLE: Duration = Duration::from_secs(5);

#[test]
fn frames_go_round_over_several_queues() {
    needs_bound!();
    const FRAMES: u64 = 2000;
    let world = World::new().unwrap();
    let alice = Uid::take().unwrap();
    let _broker = BrokerProcess::start(&world, &policy(&[(alice.number(), EVERY_QUEUE)])).unwrap();
    let peer = PacketSocket::open(&world, Side::PEER).unwrap();
    let (from, to) = (world.device(Side::PEER).end(9), world.device(Side::Host));
    let mut holder = Puppet::start(&world, Side::Host, &alice.user());
    let lease = holder.hold_bound("eth0:3-5", Direction::RxTx).unwrap();
    for queue in 3..=5 {
        peer.steer(queue).unwrap();
        let frames =
            (0..FRAMES).map(|number| packets::udp(from, to.end(port(queue)), &payload(queue, number, 64)));
        for batch in frames.collect::<Vec<_>>().chunks(100) {
            for frame in batch {
                peer.send(frame).unwrap();
            }
            let reflect = Order::Reflect {
                lease,
                queue,
                wanted: 100,
                idle_ms: 5000,
            };
            let seen: Seen = serde_json::from_value(holder.ask(&reflect).unwrap()).unwrap();
            assert_eq!(seen, Seen::only(queue, 100));
            for frame in batch {
                let back = peer.expect(PATIENCE, |seen| {
                    (seen[12..] == frame[12..]).then(|| seen.to_vec())
                });
                let back = back.unwrap().expect("every frame comes back");
                assert_eq!(back[..6], frame[6..12]);
            }
        }
    }
}

#[test]
fn a_missing_direction_is_told_in_words() {
    needs_bound!();
    const FRAMES: u64 = 1000;
    let world = World::new().unwrap();
    let alice = Uid::take().unwrap();
    let _broker = BrokerProcess::start(&world, &policy(&[(alice.number(), EVERY_QUEUE)])).unwrap();
    let traffic = Traffic::new(&world);
    let peer = PacketSocket::open(&world, Side::PEER).unwrap();
    let frame = packets::udp(
        world.device(Side::Host).end(1),
        world.device(Side::PEER).end(port(3)),
        &payload(3, 1, 64),
    );
    let mut holder = Puppet::start(&world, Side::Host, &alice.user());
    let send = |lease, queue| Order::Send {
        lease,
        queue,
        frame: frame.clone(),
        frames: FRAMES,
    };

    let listening = holder.hold_bound("eth0:3", Direction::Rx).unwrap();
    let failure = holder.ask(&send(listening, 3)).unwrap_err();
    assert_eq!(failure.kind, "Error::NoRing");
    assert!(failure.text.contains("no tx ring"), "{}", failure.text);
    traffic.send_all(3, 0..100);
    assert_eq!(holder.receive(listening, 3, 100, IDLE), Seen::only(3, 100));
    assert_eq!(peer.receive(SILENCE).unwrap(), None);

    let sending = holder.hold_bound("eth0:4", Direction::Tx).unwrap();
    let receive = Order::Receive {
        lease: sending,
        queue: 4,
        wanted: 1,
        idle_ms: 1,
    };
    assert_eq!(holder.ask(&receive).unwrap_err().kind, "Error::NoRing");
    traffic.expect_at_stack(4, 0..100);
    std::thread::scope(|scope| {
        let received = scope.spawn(|| {
            for _ in 0..FRAMES {
                let seen = peer.expect(PATIENCE, read_frame).unwrap();
                assert_eq!(seen, Some((3, 1)));
            }
        });
        holder.ask(&send(sending, 4)).unwrap();
        received.join().unwrap();
    });
}

#[test]
fn each_kind_has_its_own_step() {
    needs_bound!();
    let world = World::new().unwrap();
    let alice = Uid::take().unwrap();
    let text =
        policy(&[]) + &allow(alice.number(), EVERY_QUEUE, "").replace("\"bound\"", "\"bound\", \"prepared\"");
    let broker = BrokerProcess::start(&world, &text).unwrap();
    let socket = broker.paths().socket();
    world
        .run_as(Side::Host, &alice.user(), || {
            let mut broker = Broker::connect_to(&socket).unwrap();
            let prepared = Grant::acquire(&mut broker, Request::new("eth0:3".parse().unwrap())).unwrap();
            let error = prepared.bind_by_broker(&mut broker).unwrap_err();
            assert!(matches!(error, Error::Kind { .. }), "{error}");
            let options = UmemOptions::new();
            let bound = Request::bound("eth0:4-5".parse().unwrap(), &options);
            let grant = Grant::acquire(&mut broker, bound.clone()).unwrap();
            assert_eq!(grant.sockets().len(), 0);
            let lease = grant.acquired().lease;
            let error = grant.bind(Vec::new(), &BindOptions::new()).unwrap_err();
            assert!(matches!(error, Error::Kind { .. }), "{error}");
            broker.release(lease).unwrap();
            // What it was granted may go round by its parts, and more sockets than one are not one.
            let (acquired, fds) = Grant::acquire(&mut broker, bound).unwrap().into_parts();
            let grant = Grant::from_parts(acquired, fds).unwrap();
            let error = grant.bind_by_broker(&mut broker).unwrap().one().unwrap_err();
            assert!(matches!(error, Error::Count { sockets: 2, .. }), "{error}");
        })
        .unwrap();
}

#[test]
fn the_example_serves_by_itself_and_by_inheritance() {
    needs_bound!();
    let world = World::new().unwrap();
    let alice = Uid::take().unwrap();
    let broker = BrokerProcess::start(&world, &policy(&[(alice.number(), EVERY_QUEUE)])).unwrap();
    let user = alice.user();
    Traffic::new(&world);
    let bind = || UdpSocket::bind("0.0.0.0:0");
    let peer = world.run_in(Side::PEER, bind).unwrap().unwrap();
    let target = (world.device(Side::Host).address, port(3)).into();
    let echo = world
        .install("echo", &e2e::binaries::client("echo").unwrap())
        .unwrap();
    let arguments = ["eth0:3", "--kind", "bound"];
    for inherited in [false, true] {
        let mut holder = if inherited {
            let grant = ["grant", "eth0:3", "--kind", "bound", "--", echo.to_str().unwrap()];
            let process = e2e::broker::start_cli(&world, Some(&user), &grant).unwrap();
            process
                .wait_stdout(PATIENCE, |line| line.starts_with("active").then_some(()))
                .unwrap_or_else(|error| panic!("{error}: {}", process.last_words()));
            Served::ByCli(process)
        } else {
            let holder = Holder::example(&world, Side::Host, &user, "echo", &arguments).unwrap();
            holder.wait_active().unwrap();
            Served::ByItself(holder)
        };
        let listed = broker.cli(&["list"]).unwrap().stdout;
        assert!(listed.contains("bound rx+tx"), "{listed}");
        let lease = leases(&broker)[0].clone();
        assert_eq!(
            (lease.state, lease.umem_bytes),
            (LeaseState::Active, Some(4 << 20))
        );
        let count = EchoLoop::new(target, 2000).run(&peer).unwrap();
        assert!(count.is_perfect(), "{count:?}");
        holder.kill();
        wait_event(&broker, "freed", lease.lease);
    }
}

/// The example, however it was started.
enum Served {
    ByItself(Holder),
    ByCli(e2e::process::Process),
}

impl Served {
    fn kill(&mut self) {
        match self {
            Self::ByItself(holder) => holder.kill().map(drop).unwrap(),
            Self::ByCli(process) => process.kill().map(drop).unwrap(),
        }
    }
}

/// Both queues are flooded all the time; one of the two is killed again and again, and its queue granted anew.
#[test]
fn tenants_see_nothing_of_each_other_whoever_dies() {
    needs_bound!();
    const FRAMES: u64 = 20_000;
    const DEATHS: usize = 3;
    let world = World::new().unwrap();
    let [alice, bob, carol] = [(); 3].map(|()| Uid::take().unwrap());
    let rules = [(alice.number(), "3"), (bob.number(), "4"), (carol.number(), "4")];
    let broker = BrokerProcess::start(&world, &policy(&rules)).unwrap();
    let traffic = Traffic::new(&world);
    let senders = [3, 4].map(|_| PacketSocket::open(&world, Side::PEER).unwrap());
    let (from, to) = (world.device(Side::PEER).end(999), world.device(Side::Host));
    let over = AtomicBool::new(false);
    let whole = |queue: u32, seen: &Seen| {
        assert_eq!((seen.doubled, seen.strange), (0, 0), "queue {queue}: {seen:?}");
        assert_eq!(Vec::from_iter(seen.frames.keys().copied()), [queue], "{seen:?}");
    };
    std::thread::scope(|scope| {
        // However this ends, the senders end.
        let _end = End(&over);
        for (queue, sender) in [3, 4].into_iter().zip(&senders) {
            let over = &over;
            scope.spawn(move || {
                let mut number = 0;
                while !over.load(Ordering::Relaxed) {
                    let frame = packets::udp(from, to.end(port(queue)), &payload(queue, number, 64));
                    match sender.send(&frame) {
                        // At full rate the wire overflows; what is lost there was never sent.
                        Err(error) if error.raw_os_error() != Some(libc::ENOBUFS) => panic!("{error}"),
                        _ => number += 1,
                    }
                }
            });
        }
        let mut living = Puppet::start(&world, Side::Host, &alice.user());
        let held = living.hold_bound("eth0:3", Direction::RxTx).unwrap();
        let watched = scope.spawn(move || {
            let mut all = Vec::new();
            for _ in 0..=DEATHS {
                all.push(living.receive(held, 3, FRAMES, IDLE));
            }
            all
        });
        for death in 0..DEATHS {
            let uid = if death % 2 == 0 { &bob } else { &carol };
            let mut mortal = Puppet::start(&world, Side::Host, &uid.user());
            let lease = mortal.hold_bound("eth0:4", Direction::Rx).unwrap();
            whole(4, &mortal.receive(lease, 4, FRAMES / 4, IDLE));
            mortal.kill();
            wait_event(&broker, "freed", lease);
            // Meanwhile the queue is the host's.
            assert!(traffic.stack_gets(4, PATIENCE).is_some());
        }
        for seen in watched.join().unwrap() {
            whole(3, &seen);
            assert!(seen.frames[&3] >= FRAMES);
        }
    });
}

/// Ends the senders of a scope.
struct End<'a>(&'a AtomicBool);

impl Drop for End<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn a_umem_may_be_on_huge_pages_where_a_rule_says_so() {
    needs_bound!();
    let pool = match HugePages::add(8) {
        Ok(pool) => pool,
        Err(why) => skip!(Skip::PlaceLacks(why)),
    };
    let world = World::new().unwrap();
    let [alice, bob] = [(); 2].map(|()| Uid::take().unwrap());
    let text = interface("eth0", "")
        + &allow(alice.number(), EVERY_QUEUE, "hugepages = true")
        + &allow(bob.number(), EVERY_QUEUE, "");
    let broker = BrokerProcess::start(&world, &text).unwrap();
    let traffic = Traffic::new(&world);
    let socket = broker.paths().socket();
    let acquire = |broker: &mut Broker, options: UmemOptions| {
        Grant::acquire(
            broker,
            Request::bound("eth0:3".parse().unwrap(), &options.on_hugepages()),
        )
    };
    world
        .run_as(Side::Host, &bob.user(), || {
            let mut broker = Broker::connect_to(&socket).unwrap();
            let denied = acquire(&mut broker, UmemOptions::new()).unwrap_err().to_string();
            assert!(denied.contains("no umem on huge pages"), "{denied}");
        })
        .unwrap();
    world
        .run_as(Side::Host, &alice.user(), || {
            let mut broker = Broker::connect_to(&socket).unwrap();
            let uneven = acquire(&mut broker, UmemOptions::new().chunks(512))
                .unwrap_err()
                .to_string();
            assert!(
                uneven.contains("does not fill its pages of 2097152 bytes"),
                "{uneven}"
            );
            let grant = acquire(&mut broker, UmemOptions::new()).unwrap();
            let bound = grant.bind_by_broker(&mut broker).unwrap().one().unwrap();
            let lease = bound.lease();
            let mut xsk = bound.activate(&mut broker).unwrap();
            assert_eq!(pool.free(), 6, "4 MiB are two pages");
            traffic.send_all(3, 0..100);
            let mut seen = 0;
            while seen < 100 && xsk.wait(Some(IDLE)).unwrap() {
                let mut batch = xsk.receive(64).unwrap();
                while let Some(frame) = batch.next_frame() {
                    assert_eq!(read_frame(&frame), Some((3, seen)));
                    seen += 1;
                }
            }
            assert_eq!(seen, 100);
            broker.release(lease).unwrap();
        })
        .unwrap();
    wait_until("the pages are back", || pool.free() == 8);
}
