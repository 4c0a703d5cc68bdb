//! The real `xskperf`, as an ordinary user: each mode, with a socket that it asked for and with one that it inherited.

use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use e2e::binaries;
use e2e::broker::BrokerProcess;
use e2e::kernel;
use e2e::packet_socket::PacketSocket;
use e2e::packets::{Mac, ethernet};
use e2e::process::Process;
use e2e::sink_program::{Fate, SinkProgram};
use e2e::skip;
use e2e::skip::Skip;
use e2e::uids::Uid;
use e2e::world::{Side, World};
use serde_json::Value;

use crate::lease_scene::{allow_kinds, interface, policy};

const PATIENCE: Duration = Duration::from_secs(30);
const QUEUE: u32 = 1;
const US: Mac = Mac([2, 0, 0, 0, 0, 1]);
const PEER: Mac = Mac([2, 0, 0, 0, 0, 2]);

/// How it comes to its socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    Acquired,
    Inherited,
}

/// Runs `body` once for each way, in a world of its own, with the started program and its peer's packet socket.
fn both_ways(words: &[&str], body: impl Fn(&World, &mut Process, &PacketSocket)) {
    for way in [Way::Acquired, Way::Inherited] {
        let world = World::new().unwrap();
        let uid = Uid::take().unwrap();
        let _broker = BrokerProcess::start(&world, &policy(&[(uid.number(), "1-3")])).unwrap();
        let wire = PacketSocket::open(&world, Side::PEER).unwrap();
        wire.steer(QUEUE).unwrap();
        let mut process = start(&world, &uid, way, words);
        let active = event(&process, "active");
        assert_eq!(active["test"], words[0]);
        assert_eq!(active["socket"]["queue"], format!("eth0:{QUEUE}"));
        assert_eq!(active["socket"]["mode"], "copy");
        assert_eq!(active["socket"]["inherited"], way == Way::Inherited);
        body(&world, &mut process, &wire);
        let status = process.wait(PATIENCE).unwrap();
        assert!(status.success(), "{status}: {}", process.last_words());
    }
}

fn installed(world: &World) -> PathBuf {
    world
        .install("xskperf", &binaries::program("xskperf").unwrap())
        .unwrap()
}

/// Runs it with these words, as this user.
fn run(world: &World, uid: &Uid, words: &[&str]) -> Process {
    let mut command = Command::new(installed(world));
    command.env_clear().args(words);
    Process::spawn(world.namespace(Side::Host), Some(&uid.user()), command).unwrap()
}

fn start(world: &World, uid: &Uid, way: Way, words: &[&str]) -> Process {
    let perf = installed(world);
    let target = format!("eth0:{QUEUE}");
    let mut command = match way {
        Way::Acquired => {
            let mut command = Command::new(perf);
            command.env_clear().args(words).arg(&target);
            command
        }
        Way::Inherited => {
            let broker = world.install("xsk-broker", &binaries::broker().unwrap()).unwrap();
            let mut command = Command::new(broker);
            command
                .env_clear()
                .args(["grant", &target, "--"])
                .arg(perf)
                .args(words);
            command
        }
    };
    command.args(["--json", "--interval", "0.1"]);
    Process::spawn(world.namespace(Side::Host), Some(&uid.user()), command).unwrap()
}

/// The first line of that event.
fn event(process: &Process, name: &str) -> Value {
    process
        .wait_stdout(PATIENCE, |line| {
            let line: Value = serde_json::from_str(line).ok()?;
            (line["event"] == name).then_some(line)
        })
        .unwrap()
}

fn frame(number: u8) -> Vec<u8> {
    ethernet(US, PEER, 0x88b5, &[number; 50])
}

#[test]
fn rxdrop_counts_every_packet() {
    both_ways(&["rxdrop", "--packets", "500"], |_, process, wire| {
        event(process, "interval");
        for number in 0..250 {
            wire.send(&frame(number)).unwrap();
            wire.send(&frame(number)).unwrap();
        }
        let sum = event(process, "sum");
        assert_eq!(
            (&sum["rxPackets"], &sum["rxBytes"]),
            (&500.into(), &(500 * 64).into())
        );
        assert_eq!(sum["txPackets"], 0);
        assert_eq!(sum["refusedByLibrary"], 0);
        assert_eq!(sum["kernel"]["rx_dropped"], 0);
    });
}

#[test]
fn txonly_sends_what_it_was_told_to() {
    let words = [
        "txonly",
        "--packets",
        "2000",
        "--frame-bytes",
        "100",
        "--destination",
        "02:00:00:00:00:02",
    ];
    both_ways(&words, |_, process, wire| {
        let sum = event(process, "sum");
        let sent = sum["txPackets"].as_u64().unwrap();
        assert!(sent >= 2000, "{sum}");
        let mut seen = 0;
        while seen < sent {
            let frame = wire.receive(PATIENCE).unwrap().expect("all that it says it sent");
            if frame[12..14] == [0x88, 0xb5] {
                assert_eq!((frame.len(), &frame[..6]), (100, &PEER.0[..]));
                seen += 1;
            }
        }
    });
}

#[test]
fn l2fwd_sends_each_packet_back() {
    both_ways(&["l2fwd", "--packets", "200"], |_, process, wire| {
        for number in 0..200 {
            wire.send(&frame(number)).unwrap();
            let expected = ethernet(PEER, US, 0x88b5, &[number; 50]);
            let back = wire
                .expect(PATIENCE, |it| (it == expected).then_some(()))
                .unwrap();
            assert!(back.is_some(), "packet {number} did not come back");
        }
        let sum = event(process, "sum");
        assert_eq!((&sum["rxPackets"], &sum["txPackets"]), (&200.into(), &200.into()));
    });
}

/// As an xdpsock user types it, with packets that take several chunks.
#[test]
fn jumbo_packets_are_sent_back_at_xdpsocks_words() {
    if !kernel::has_multi_buffer().unwrap() {
        let probe = "bind with XDP_USE_SG: EINVAL".to_owned();
        skip!(Skip::KernelLacks { probe });
    }
    let world = World::new().unwrap();
    for side in [Side::Host, Side::PEER] {
        let index = world.device(side).index;
        world.netlink(side).set_mtu(index, 9000).unwrap();
    }
    let uid = Uid::take().unwrap();
    let _broker = BrokerProcess::start(&world, &policy(&[(uid.number(), "1-3")])).unwrap();
    let wire = PacketSocket::open(&world, Side::PEER).unwrap();
    wire.steer(QUEUE).unwrap();
    let words = "-l -i eth0 -q 1 -p -F -c -b 3 -C 100 -n 0.1 --json";
    let mut process = run(&world, &uid, &words.split(' ').collect::<Vec<_>>());
    let active = event(&process, "active");
    assert_eq!(
        (&active["test"], &active["socket"]["queue"]),
        (&"l2fwd".into(), &"eth0:1".into())
    );
    let mut bytes = 0;
    for number in 0..100_u8 {
        let payload = vec![number; 50 + usize::from(number) * 89];
        bytes += payload.len() + 14;
        wire.send(&ethernet(US, PEER, 0x88b5, &payload)).unwrap();
        let expected = ethernet(PEER, US, 0x88b5, &payload);
        let back = wire
            .expect(PATIENCE, |it| (it == expected).then_some(()))
            .unwrap();
        assert!(
            back.is_some(),
            "packet {number} did not come back: {}",
            process.last_words()
        );
    }
    let sum = event(&process, "sum");
    assert_eq!((&sum["rxPackets"], &sum["rxBytes"]), (&100.into(), &bytes.into()));
    assert_eq!((&sum["txPackets"], &sum["txBytes"]), (&100.into(), &bytes.into()));
    assert!(process.wait(PATIENCE).unwrap().success());
}

#[test]
fn pingpong_measures_round_trips() {
    // A packet that is reflected keeps the queue that the veth's XDP_TX chooses: the CPU's, so the device has one.
    for busy in [&[][..], &["--busy"]] {
        let world = World::builder().queues(1).build().unwrap();
        let uid = Uid::take().unwrap();
        // The only queue, which the other tests' policy keeps for the host.
        let policy = policy(&[(uid.number(), "0")]).replace("reserved = \"0\"\n", "");
        let _broker = BrokerProcess::start(&world, &policy).unwrap();
        let _reflector = SinkProgram::attach(&world, Side::PEER, Fate::Reflect).unwrap();
        let words = ["pingpong", "eth0:0", "--packets", "300", "--json"];
        let mut process = run(&world, &uid, &[words.as_slice(), busy].concat());
        let sum = event(&process, "sum");
        assert_eq!(sum["rxPackets"], 300, "{sum}");
        let trip = &sum["roundTrip"];
        let at = |name: &str| trip[name].as_f64().unwrap();
        assert!(
            at("leastUs") > 0.0 && at("leastUs") <= at("medianUs") && at("medianUs") <= at("mostUs"),
            "{sum}"
        );
        assert!(process.wait(PATIENCE).unwrap().success());
    }
}

#[test]
fn without_a_queue_it_says_what_to_write() {
    let world = World::new().unwrap();
    let uid = Uid::take().unwrap();
    let _broker = BrokerProcess::start(&world, &policy(&[(uid.number(), "1-3")])).unwrap();
    let mut process = run(&world, &uid, &["rxdrop"]);
    assert_eq!(process.wait(PATIENCE).unwrap().code(), Some(1));
    let said = process.stderr().join("\n");
    assert!(
        said.contains("xsk-broker grant eth0:4 -- xskperf rxdrop"),
        "{said}"
    );
}

/// What cannot be is said at once, in this program's words.
#[test]
fn wrong_wishes_are_told() {
    let world = World::new().unwrap();
    let uid = Uid::take().unwrap();
    let _broker = BrokerProcess::start(&world, &policy(&[(uid.number(), "1-3")])).unwrap();
    for (words, code, expected) in [
        (
            "txonly eth0:1 -s 3000",
            1,
            "--frame-bytes 3000: at most 2048, which is a chunk: see --chunk-bytes, or --frags",
        ),
        (
            "-r -i eth0 -q 1 -S",
            2,
            "there is no -S here: how the XDP program is attached",
        ),
        (
            "rxdrop eth0:1 -z",
            1,
            "there may be no zero-copy: --mode auto takes copy then, and says so: bind to eth0:1",
        ),
    ] {
        let mut process = run(&world, &uid, &words.split(' ').collect::<Vec<_>>());
        assert_eq!(process.wait(PATIENCE).unwrap().code(), Some(code), "{words}");
        let said = process.stderr().join("\n");
        assert!(said.contains(expected), "{words}: {said}");
    }
}

/// Nothing arrives, and nothing comes back: the sums say so, when it was told to end.
#[test]
fn it_ends_in_time_with_the_sums_where_nothing_arrives() {
    let world = World::new().unwrap();
    let uid = Uid::take().unwrap();
    let _broker = BrokerProcess::start(&world, &policy(&[(uid.number(), "1-3")])).unwrap();
    for mode in ["rxdrop", "l2fwd", "pingpong"] {
        let mut process = start(&world, &uid, Way::Acquired, &[mode, "-d", "0.2"]);
        let sum = event(&process, "sum");
        assert_eq!(sum["rxPackets"], 0, "{sum}");
        // A ping is waited for half a second; to look at the clock after sixteen of them took 8 s.
        assert!(sum["seconds"].as_f64().unwrap() < 4.0, "{mode}: {sum}");
        assert!(process.wait(PATIENCE).unwrap().success());
    }
}

/// Whoever reads its lines may stop: it ends then, as other programs do, without a word.
#[test]
fn it_ends_where_nobody_reads() {
    let world = World::new().unwrap();
    let uid = Uid::take().unwrap();
    let _broker = BrokerProcess::start(&world, &policy(&[(uid.number(), "1-3")])).unwrap();
    let perf = installed(&world);
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let mut command = Command::new(perf);
    command.env_clear().args(["rxdrop", "eth0:1"]);
    command.stdout(writer).uid(uid.number()).gid(uid.number());
    let output = world.run_in(Side::Host, || command.output().unwrap()).unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!((output.status.code(), &*said), (Some(141), ""));
}

#[test]
fn a_signal_ends_it_with_the_sums() {
    let world = World::new().unwrap();
    let uid = Uid::take().unwrap();
    let _broker = BrokerProcess::start(&world, &policy(&[(uid.number(), "1-3")])).unwrap();
    let mut process = start(&world, &uid, Way::Acquired, &["rxdrop"]);
    event(&process, "active");
    process.signal(rustix::process::Signal::INT).unwrap();
    assert!(process.wait(PATIENCE).unwrap().success());
    event(&process, "sum");
}

/// Holders need no broker: a run that is over has succeeded, whoever is there to hear of it, and waits for nobody.
#[test]
fn a_signal_ends_it_where_the_broker_is_gone() {
    for way in [Way::Acquired, Way::Inherited] {
        let world = World::new().unwrap();
        let uid = Uid::take().unwrap();
        let mut broker = BrokerProcess::start(&world, &policy(&[(uid.number(), "1-3")])).unwrap();
        let mut process = start(&world, &uid, way, &["rxdrop"]);
        event(&process, "active");
        assert!(broker.stop().unwrap().success());
        let asked = Instant::now();
        process.signal(rustix::process::Signal::TERM).unwrap();
        let status = process.wait(PATIENCE).unwrap();
        assert!(status.success(), "{status}: {}", process.last_words());
        assert!(asked.elapsed() < Duration::from_secs(3), "{:?}", asked.elapsed());
        assert_eq!(process.stderr(), Vec::<String>::new());
        event(&process, "sum");
    }
}

#[test]
fn what_is_inherited_is_taken_as_it_is() {
    let world = World::new().unwrap();
    let uid = Uid::take().unwrap();
    let policy = interface("eth0", "") + &allow_kinds(uid.number(), "1-3", &["prepared", "bound"], "");
    let broker = BrokerProcess::start(&world, &policy).unwrap();
    let perf = installed(&world);
    let perf = perf.to_str().unwrap();
    // Another queue than the one that it is told of.
    let other = ["grant", "eth0:2", "--", perf, "rxdrop", "eth0:3"];
    let output = broker.cli_as(&uid.user(), &other).unwrap();
    assert_eq!(output.code, Some(1), "{output:?}");
    let words = "eth0:3 is not what was inherited, which is eth0:2";
    assert!(output.stderr.contains(words), "{output:?}");
    if let Some(skip) = kernel::lacks_for_bound() {
        return skip.report().unwrap();
    }
    // A socket that the broker binds.
    let sent = [
        "txonly",
        "--packets",
        "100",
        "--destination",
        "02:00:00:00:00:02",
        "--json",
    ];
    let bound = [&["grant", "eth0:2", "--kind", "bound", "--", perf], &sent[..]].concat();
    let output = broker.cli_as(&uid.user(), &bound).unwrap();
    assert_eq!(output.code, Some(0), "{output:?}");
    assert!(output.stdout.contains("\"inherited\":true"), "{output:?}");
    // It is bound already: what it is not is told, and not passed over.
    let other = ["grant", "eth0:2", "--kind", "bound", "--", perf, "rxdrop", "-z"];
    let output = broker.cli_as(&uid.user(), &other).unwrap();
    assert_eq!(output.code, Some(1), "{output:?}");
    assert!(output.stderr.contains("the socket is in copy mode"), "{output:?}");
}
