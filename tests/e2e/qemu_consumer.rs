//! QEMU's way in: sockets of kind `bare`, and `xsk-broker grant --kind bare … -- qemu-system-x86_64 … {qemu}`.
//!
//! The consumer (`e2e::qemu_netdev`) does with the fds what QEMU 11.1.1 does: none of Debian's QEMUs is built with
//! libxdp, from bookworm's to sid's.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use e2e::binaries;
use e2e::bpf::XdpAttach;
use e2e::broker::BrokerProcess;
use e2e::holder::{self, Holder};
use e2e::packet_socket::PacketSocket;
use e2e::packets;
use e2e::qemu_netdev::{Netdev, UMEM_BYTES};
use e2e::queue_program::QueueProgram;
use e2e::raw_xsk::bare_socket;
use e2e::skip;
use e2e::skip::Skip;
use e2e::uids::Uid;
use e2e::world::{Side, World};
use serde_json::Value;
use xsk_client::wire::{LeaseState, SocketKind};

use crate::lease_scene::{
    PATIENCE, SILENCE, Traffic, allow_kinds, interface, leases, payload, port, read_frame, wait_event,
    wait_until,
};
use crate::puppet::{Puppet, Seen};

/// The guest answers every whole frame that was meant for its queue, with its Ethernet addresses swapped.
///
/// A body: its netdevs' options are at the end of the command line, as QEMU's are.
pub(crate) fn qemu(_arguments: &[String]) {
    let options: Vec<String> = std::env::args()
        .filter(|argument| argument.starts_with("af-xdp,"))
        .collect();
    println!("options {}", options.join(" "));
    println!("sockets {}", sockets().join(" "));
    let mut netdevs: Vec<Netdev> = options
        .iter()
        .map(|option| Netdev::open(option).unwrap())
        .collect();
    println!("bound");
    // As long as it is not killed.
    loop {
        Netdev::run(&mut netdevs, Duration::from_secs(1), |queue, frame| {
            let (meant_for, number) = read_frame(frame)?;
            assert_eq!(meant_for, queue, "a frame for another queue");
            println!("frame {queue} {number}");
            Some(swapped(frame))
        })
        .unwrap();
    }
}

/// The numbers of the sockets that this process has inherited.
fn sockets() -> Vec<String> {
    let files = std::fs::read_dir("/proc/self/fd").unwrap();
    let mut sockets: Vec<i32> = files
        .filter_map(|file| {
            let file = file.unwrap();
            // The directory that is being read here is none afterwards.
            let what = std::fs::read_link(file.path()).ok()?;
            let number = file.file_name().to_str()?.parse().ok()?;
            what.to_str()?.starts_with("socket:").then_some(number)
        })
        .collect();
    sockets.sort_unstable();
    sockets.iter().map(ToString::to_string).collect()
}

fn swapped(frame: &[u8]) -> Vec<u8> {
    [&frame[6..12], &frame[..6], &frame[12..]].concat()
}

/// A broker whose tenant may have bare sockets of queues 1 to 7, and no others.
struct Scene<'w> {
    world: &'w World,
    broker: BrokerProcess<'w>,
    tenant: Uid,
    peer: PacketSocket,
}

impl<'w> Scene<'w> {
    fn new(world: &'w World, more: &str) -> Self {
        let tenant = Uid::take().unwrap();
        let policy = interface("eth0", "") + &allow_kinds(tenant.number(), "1-7", &["bare"], more);
        Self {
            broker: BrokerProcess::start(world, &policy).unwrap(),
            peer: PacketSocket::open(world, Side::PEER).unwrap(),
            world,
            tenant,
        }
    }

    /// `grant` in front of the consumer, as a user who may pin what so many queues take.
    fn start(&self, queues: u64, target: &str, netdevs: &[&str]) -> Holder {
        let user = self.tenant.user().may_pin(queues * UMEM_BYTES);
        let grant = [target, "--kind", "bare"];
        Holder::granted_with(self.world, Some(&user), &grant, ("qemu", &[]), netdevs).unwrap()
    }

    fn frame(&self, queue: u32, number: u64) -> Vec<u8> {
        let (from, to) = (
            self.world.device(Side::PEER).end(999),
            self.world.device(Side::Host),
        );
        packets::udp(
            from,
            to.end(port(queue)),
            &payload(queue, number, 64 + usize::try_from(number % 1300).unwrap()),
        )
    }

    /// Sends frames to a queue one after the other, and sees each come back whole.
    fn expect_answers(&self, holder: &Holder, queue: u32, count: u64) {
        self.peer.steer(queue).unwrap();
        for number in 0..count {
            let frame = self.frame(queue, number);
            self.peer.send(&frame).unwrap();
            let expected = swapped(&frame);
            let back = self
                .peer
                .expect(PATIENCE, |frame| (frame == expected).then_some(()));
            assert_eq!(
                back.unwrap(),
                Some(()),
                "queue {queue}, frame {number}: {}",
                holder.process().last_words()
            );
        }
    }
}

/// What the guest saw, by queue: these frames, as soon as its output has come through its pipe.
fn expect_seen(holder: &Holder, expected: &BTreeMap<u32, u64>) {
    wait_until("the guest has seen its frames", || {
        let mut seen = BTreeMap::new();
        for line in holder.process().stdout() {
            if let Some(frame) = line.strip_prefix("frame ") {
                let (queue, _) = frame.split_once(' ').unwrap();
                *seen.entry(queue.parse().unwrap()).or_default() += 1;
            }
        }
        seen == *expected
    });
}

#[test]
fn one_queue_goes_both_ways_and_nobody_says_activate() {
    let world = World::new().unwrap();
    let scene = Scene::new(&world, "");
    let mut holder = scene.start(1, "eth0:3", &["{qemu},id=n0"]);
    holder.wait_line("bound", PATIENCE).unwrap();
    let option = "options af-xdp,ifname=eth0,queues=1,start-queue=3,inhibit=on,sock-fds=3,id=n0";
    assert_eq!(holder.wait_line("options", PATIENCE).unwrap(), option);
    let activated = wait_event(&scene.broker, "activated", 1);
    assert_eq!(
        (&activated["sockets"], &activated["uid"]),
        (&"bare".into(), &scene.tenant.number().into())
    );
    scene.expect_answers(&holder, 3, 300);
    expect_seen(&holder, &BTreeMap::from([(3, 300)]));

    let lease = &leases(&scene.broker)[0];
    assert_eq!(
        (lease.sockets, lease.state),
        (SocketKind::Bare, LeaseState::Active)
    );
    assert_eq!(lease.queues[0].counters.redirected, 300);
    holder.kill().unwrap();
    assert_eq!(wait_event(&scene.broker, "ended", 1)["reason"], "holder-exited");
    wait_until("the queue is free", || leases(&scene.broker).is_empty());
    let again = scene.start(1, "eth0:3", &["{qemu}"]);
    again.wait_line("bound", PATIENCE).unwrap();
    wait_event(&scene.broker, "activated", 2);
    scene.expect_answers(&again, 3, 10);
}

/// As a user would, in a shell; and without a standard input, whose number, 0, a socket must not have.
#[test]
fn sockets_are_all_that_is_inherited_and_none_is_number_0() {
    let shell = Path::new("/bin/sh");
    if !shell.exists() {
        skip!(Skip::without("sh"));
    }
    let world = World::new().unwrap();
    let scene = Scene::new(&world, "");
    let broker = world.install("xsk-broker", &binaries::broker().unwrap()).unwrap();
    let body = binaries::this_program().unwrap();
    let name = body.file_name().and_then(|name| name.to_str()).unwrap();
    let body = world.install(name, &body).unwrap();
    let script = format!(
        "exec {} grant eth0:3-4 --kind bare -- {} {} {{qemu:3}},id=n3 {{qemu:4}},id=n4 <&-",
        broker.display(),
        body.display(),
        holder::BODY_OPTIONS.join(" ")
    );
    let user = scene.tenant.user().may_pin(2 * UMEM_BYTES);
    let holder = Holder::program(&world, Side::Host, &user, shell, |command| {
        command.arg("-c").arg(script).env(holder::BODY, "qemu");
    });
    let holder = holder.unwrap();
    // Not the connection to the broker, for one.
    assert_eq!(holder.wait_line("sockets", PATIENCE).unwrap(), "sockets 3 4");
    holder.wait_line("bound", PATIENCE).unwrap();
    wait_event(&scene.broker, "activated", 1);
    for queue in [3, 4] {
        scene.expect_answers(&holder, queue, 20);
    }
}

#[test]
fn four_queues_with_a_netdev_each() {
    let world = World::new().unwrap();
    // Four umems of 32 MiB, which take their time on an emulated machine.
    let scene = Scene::new(&world, "activate-within-ms = 60000");
    let netdevs = ["{qemu:2},id=n2", "{qemu:5}", "{qemu:3}", "{qemu:4}"];
    let holder = scene.start(4, "eth0:2-5", &netdevs);
    holder.wait_line("bound", PATIENCE).unwrap();
    wait_event(&scene.broker, "activated", 1);
    for queue in [4, 2, 5, 3] {
        scene.expect_answers(&holder, queue, 100);
    }
    expect_seen(&holder, &BTreeMap::from([2, 3, 4, 5].map(|queue| (queue, 100))));
    // Not a word about queues that would not be received on.
    assert_eq!(holder.process().stderr(), Vec::<String>::new());
}

#[test]
fn one_netdev_with_several_queues_comes_with_a_warning() {
    let world = World::new().unwrap();
    let scene = Scene::new(&world, "");
    let holder = scene.start(2, "eth0:2-3", &["{qemu}"]);
    holder.wait_line("bound", PATIENCE).unwrap();
    wait_event(&scene.broker, "activated", 1);
    scene.expect_answers(&holder, 2, 20);
    let warning = holder.process().stderr().join("\n");
    assert!(
        warning.contains("receives on the first queue of a netdev only"),
        "{warning}"
    );
    // And so it is.
    scene.peer.steer(3).unwrap();
    scene.peer.send(&scene.frame(3, 0)).unwrap();
    assert_eq!(scene.peer.receive(SILENCE).unwrap(), None);
}

#[test]
fn too_little_memlock_is_told_before_anything_is_asked_for() {
    let world = World::new().unwrap();
    let scene = Scene::new(&world, "");
    for (target, bytes, mib) in [
        ("eth0:3", UMEM_BYTES, "32 MiB"),
        ("eth0:2-5", 4 * UMEM_BYTES, "128 MiB"),
    ] {
        let arguments = [
            "grant",
            target,
            "--kind",
            "bare",
            "--",
            "/run/bin/xsk-broker",
            "{qemu}",
        ];
        let output = scene.broker.cli_as(&scene.tenant.user(), &arguments).unwrap();
        assert_eq!(output.code, Some(78), "{}", output.stderr);
        for words in [
            format!("umem of {mib} is above RLIMIT_MEMLOCK 8 MiB"),
            format!("LimitMEMLOCK={bytes}"),
            format!("prlimit --memlock={bytes}"),
            format!("{} - memlock {}", scene.tenant.number(), bytes / 1024),
        ] {
            assert!(output.stderr.contains(&words), "{words}: {}", output.stderr);
        }
    }
    let granted = |line: &Value| line["event"] == "granted" || line["event"] == "refused";
    assert!(
        !scene.broker.audit().unwrap().iter().any(granted),
        "nothing was asked for"
    );
}

#[test]
fn bare_sockets_are_for_who_asks_and_is_allowed_by_name() {
    let world = World::new().unwrap();
    let [alice, bob] = [(); 2].map(|()| Uid::take().unwrap());
    let policy = interface("eth0", "")
        + &allow_kinds(alice.number(), "1-7", &["prepared"], "")
        + &allow_kinds(bob.number(), "1-7", &["bare"], "");
    let broker = BrokerProcess::start(&world, &policy).unwrap();
    for (uid, kind, words) in [
        (&alice, "bare", "gives sockets prepared, not bare"),
        (&bob, "prepared", "gives sockets bare, not prepared"),
    ] {
        let arguments = ["grant", "eth0:3", "--kind", kind, "--", "/run/bin/xsk-broker"];
        let output = broker.cli_as(&uid.user(), &arguments).unwrap();
        assert_eq!(output.code, Some(77), "{}", output.stderr);
        assert!(output.stderr.contains(words), "{}", output.stderr);
    }
    // What QEMU cannot use is not asked for.
    for (arguments, words) in [
        (&["eth0:3", "--", "{qemu}"][..], "add --kind bare"),
        (&["eth0:1,3", "--kind", "bare", "--", "{qemu}"], "in a row"),
        (
            &["eth0:3", "--kind", "naked", "--", "{qemu}"],
            "prepared, bound, bare",
        ),
    ] {
        let output = broker
            .cli_as(&bob.user(), &[&["grant"], arguments].concat())
            .unwrap();
        assert_eq!(output.code, Some(2), "{}", output.stderr);
        assert!(output.stderr.contains(words), "{}", output.stderr);
    }
}

#[test]
fn who_never_binds_loses_the_lease_at_its_deadline() {
    let world = World::new().unwrap();
    let scene = Scene::new(&world, "activate-within-ms = 400");
    let traffic = Traffic::new(&world);
    let mut holder = Puppet::start(&world, Side::Host, &scene.tenant.user());
    let lease = holder.acquire_kind("eth0:3", SocketKind::Bare).unwrap();
    // Meanwhile the host has the packets.
    traffic.expect_at_stack(3, 0..50);
    assert_eq!(
        wait_event(&scene.broker, "ended", lease)["reason"],
        "not-activated"
    );
    wait_until("the queue is free", || leases(&scene.broker).is_empty());
}

#[test]
fn the_library_binds_bare_sockets_as_well() {
    let world = World::new().unwrap();
    let scene = Scene::new(&world, "");
    let traffic = Traffic::new(&world);
    let mut holder = Puppet::start(&world, Side::Host, &scene.tenant.user());
    let lease = holder.acquire_kind("eth0:3-4", SocketKind::Bare).unwrap();
    holder.bind(lease).unwrap();
    // Whichever comes first: this or the broker's own look.
    holder.activate(lease).unwrap();
    for queue in [3, 4] {
        traffic.send_all(queue, 0..100);
        assert_eq!(
            holder.receive(lease, queue, 100, PATIENCE),
            Seen::only(queue, 100)
        );
    }
}

/// "Already in the map": the order that QEMU's documentation describes, where the kernel takes it.
#[test]
fn at_grant_it_is_in_the_map_already_or_the_kernel_is_named() {
    let world = World::new().unwrap();
    let scene = Scene::new(&world, "insert = \"at-grant\"");
    let taken = takes_bare_sockets();
    let mut puppet = Puppet::start(&world, Side::Host, &scene.tenant.user());
    let acquired = puppet.acquire_kind("eth0:4", SocketKind::Bare);
    if !taken {
        let failure = acquired.unwrap_err();
        assert_eq!(failure.kind, "SocketKindUnsupported");
        assert!(failure.text.contains("ENOBUFS"), "{}", failure.text);
        assert!(leases(&scene.broker).is_empty(), "and nothing is held");
        return;
    }
    let lease = acquired.unwrap();
    // What that order costs: until the bind the packets are nobody's.
    let traffic = Traffic::new(&world);
    for number in 0..10 {
        traffic.send(4, number);
    }
    assert_eq!(traffic.stack_gets(4, SILENCE), None);
    puppet.release(lease);
    traffic.expect_at_stack(4, 10..20);

    let holder = scene.start(1, "eth0:3", &["{qemu}"]);
    holder.wait_line("bound", PATIENCE).unwrap();
    scene.expect_answers(&holder, 3, 50);
    wait_event(&scene.broker, "activated", lease + 1);
}

/// Whether this kernel takes a socket without an RX ring into an XSKMAP (7.3 does not).
fn takes_bare_sockets() -> bool {
    let world = World::new().unwrap();
    let program = QueueProgram::attach(&world, Side::Host, XdpAttach::Native).unwrap();
    let bare = world.run_in(Side::Host, bare_socket).unwrap().unwrap();
    match program.insert(0, &bare) {
        Ok(()) => true,
        Err(error) if format!("{error:?}").contains("105") => false,
        Err(error) => panic!("{error:?}"),
    }
}
