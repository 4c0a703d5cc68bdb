//! The demo: the main job on real packets, in network namespaces of its own. `cargo xtask demo` builds and starts it.
//!
//! Everything that it says was measured in this very run, by the kernel or by both ends. It ends with an error as soon
//! as something that it promised did not happen. All that it makes is tied to this process: Ctrl-C cleans up.

#![allow(clippy::print_stdout, reason = "it is what a demo is for")]

mod show;

use std::net::{Ipv4Addr, UdpSocket};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use e2e::broker::{BrokerProcess, start_cli};
use e2e::echo_loop::{EchoCount, EchoLoop};
use e2e::holder::Holder;
use e2e::leaks::{self, Leaks};
use e2e::packet_socket::PacketSocket;
use e2e::packets::{Checksums, End, Mac, Parsed, arp_request, echo_request, parse};
use e2e::process::Process;
use e2e::status::{Capabilities, Status};
use e2e::steering::Steer;
use e2e::uids::Uid;
use e2e::world::{Side, World};
use e2e::{binaries, world::Device};
use serde_json::Value;

/// Where the first holder answers: on queue 2.
const FIRST: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 50);
/// Where the second one does: on queue 3.
const SECOND: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 51);
const PORT: u16 = 7000;
const ECHOES: u32 = 100_000;
const PATIENCE: Duration = Duration::from_secs(10);

fn main() -> ExitCode {
    let started = Instant::now();
    match demo() {
        Ok(()) => {
            show::done(started.elapsed());
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("\nThe demo FAILED: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn demo() -> Result<()> {
    let world = World::builder().queues(4).build()?;
    let everything = leaks::namespaces(&world)?;
    world.steer(0, &[Steer::address(FIRST, 2), Steer::address(SECOND, 3)])?;
    let users = [Uid::take()?, Uid::take()?];
    let [alice, bob] = &users;

    show::step("A world of its own");
    show::picture(FIRST, SECOND);

    show::step("A root broker with a policy");
    let mut leaks = Leaks::snapshot(&world)?;
    let policy = policy(alice, bob);
    show::quoted(&policy);
    let mut broker = BrokerProcess::start(&world, &policy)?;

    show::step("An ordinary user acquires queue 2, binds it, and answers");
    let mut first = Holder::example(
        &world,
        Side::Host,
        &alice.user(),
        "echo",
        &["eth0:2", "--ip", &FIRST.to_string(), "--stats"],
    )?;
    show::says("uid", alice.number(), &first.wait_active()?);
    leaks.expect_objects_gone(&world, broker.process().pid())?;
    println!("  who got what, by which rule, under which queue lock (xsk-broker list):");
    show::quoted(&broker.cli(&["list"])?.stdout);
    println!("  both processes, as the kernel reports them:");
    show::privileges(&who(&broker, &first)?);
    println!("  the holder's RLIMIT_MEMLOCK: {}", memlock(first.pid())?);

    show::step("Packets: ARP, ICMP echo, then UDP echoes in a closed loop, contents compared");
    ask_arp_and_icmp(&world)?;
    let count = echoes(&world, FIRST, ECHOES)?;
    let holder_says = stats_from(first.process(), u64::from(ECHOES))?;
    let kernel_says = redirected(&broker, 2)?;
    show::packets(&count, &holder_says, kernel_says);
    ensure!(
        kernel_says >= u64::from(ECHOES),
        "the XDP program redirected {kernel_says} packets only"
    );

    show::step("Other queues' packets still reach the host's own stack");
    let host = world.device(Side::Host).clone();
    let answered = echoes_of_the_host(&world, &host)?;
    println!(
        "  {} UDP echoes by a plain socket of the host, over queue 0: {} lost",
        answered.sent, answered.lost
    );

    show::step("A request that the policy does not cover");
    let refused = broker.cli_as(&bob.user(), &["grant", "eth0:1", "--", "/run/bin/echo"])?;
    ensure!(
        refused.code == Some(77),
        "the request was not denied: {refused:?}"
    );
    println!("  uid {} asks for eth0:1: exit code 77", bob.number());
    show::quoted(&refused.stderr);
    let explained = broker.cli(&["explain", "--user", &bob.number().to_string(), "eth0:1"])?;
    println!(
        "  and the operator asks why (xsk-broker explain --user {} eth0:1):",
        bob.number()
    );
    show::quoted(&explained.stdout);

    show::step("A second holder gets its socket by inheritance");
    let mut second = inheriting_holder(&world, bob)?;
    println!(
        "  xsk-broker grant eth0:3 --as {} -- echo --ip {SECOND}",
        bob.number()
    );
    let active = second.wait_stdout(PATIENCE, |line| {
        line.starts_with("active").then(|| line.to_owned())
    })?;
    show::says("uid", bob.number(), &active);
    let count = echoes(&world, SECOND, 10_000)?;
    println!(
        "  {} UDP echoes, {} lost, {} doubled",
        count.echoed, count.lost, count.duplicated
    );
    show::quoted(&broker.cli(&["list"])?.stdout);

    show::step("The first holder dies by SIGKILL; its queue goes to another user");
    let killed = Instant::now();
    first.kill()?;
    let mut heir = Holder::example(
        &world,
        Side::Host,
        &bob.user(),
        "echo",
        &["eth0:2", "--ip", &FIRST.to_string(), "--stats"],
    )?;
    let active = heir.wait_active()?;
    let until_active = killed.elapsed();
    let count = echoes(&world, FIRST, 1_000)?;
    show::says("uid", bob.number(), &active);
    println!(
        "  {:.0} ms from SIGKILL to packets for uid {}; {} echoes, {} lost",
        until_active.as_secs_f64() * 1e3,
        bob.number(),
        count.echoed,
        count.lost
    );
    show::audit(&broker.audit()?);

    show::step("The end: nothing is left behind");
    heir.kill()?;
    second.kill()?;
    let status = broker.stop()?;
    ensure!(status.success(), "the broker ended with {status}");
    leaks.wait_none(&world, PATIENCE)?;
    println!("  no XDP program, BPF map, pin, socket or device of the broker's is left");
    drop((first, second, heir, broker));
    drop(world);
    leaks::wait_namespaces_gone(&everything, PATIENCE)?;
    println!("  no network namespace, mount or process of the demo's is left");
    Ok(())
}

fn policy(alice: &Uid, bob: &Uid) -> String {
    let (alice, bob) = (alice.number(), bob.number());
    format!(
        r#"[interface.eth0]
xdp = "native"
reserved = "0-1"          # the host's own traffic
queue-lock = "auto"       # what keeps an unbound socket from other queues: the strongest there is

[[allow]]
name = "alice"
user = {alice}
interface = "eth0"
queues = "2"
sockets = ["prepared"]

[[allow]]
name = "bob"
user = {bob}
interface = "eth0"
queues = "2-3"
sockets = ["prepared"]
limits = {{ queues = 2 }}
"#
    )
}

/// Both processes as the kernel reports them; an error where a holder has any capability.
fn who(broker: &BrokerProcess<'_>, holder: &Holder) -> Result<Vec<(String, Status)>> {
    let pid = broker.process().pid();
    let threads = Status::of_threads(pid)?;
    let mut rows: Vec<(String, Status)> = threads
        .into_iter()
        .map(|(_, name, status)| (format!("broker {pid}, thread {name}"), status))
        .collect();
    ensure!(
        rows.iter()
            .all(|(_, status)| status.capabilities.effective == 0 && !status.uids.contains(&0)),
        "the broker runs with more than it should"
    );
    let status = Status::of(holder.pid())?;
    ensure!(
        status.capabilities == Capabilities::NONE && status.no_new_privs,
        "the holder has more rights than none"
    );
    // Placeholders are closed by many threads of one name, all alike.
    let mut shown = std::collections::BTreeSet::new();
    rows.retain(|(name, _)| shown.insert(name.clone()));
    rows.push((format!("holder {}, echo", holder.pid()), status));
    Ok(rows)
}

/// The soft limit, as /proc/PID/limits has it.
fn memlock(pid: u32) -> Result<String> {
    let limits = std::fs::read_to_string(format!("/proc/{pid}/limits"))?;
    let line = limits
        .lines()
        .find_map(|line| line.strip_prefix("Max locked memory"));
    let mut words = line.context("no line of the locked memory")?.split_whitespace();
    Ok(words.next().context("no limit of the locked memory")?.to_owned() + " bytes")
}

fn ask_arp_and_icmp(world: &World) -> Result<()> {
    let peer = world.device(Side::PEER).end(77);
    let socket = PacketSocket::open(world, Side::PEER)?;
    socket.send(&arp_request(peer, FIRST))?;
    let mac: Option<Mac> = socket.expect(PATIENCE, |frame| match parse(frame) {
        Some(Parsed::Arp {
            operation: 2,
            sender: (mac, address),
            ..
        }) if address == FIRST => Some(mac),
        _ => None,
    })?;
    let mac = mac.context("nobody answered the ARP request")?;
    println!("  ARP:  {FIRST} is at {mac}, says the holder");

    let holder = End {
        mac,
        address: FIRST,
        port: 0,
    };
    for sequence in 0..10 {
        let contents = format!("ping {sequence} of the demo");
        socket.send(&echo_request(peer, holder, sequence, contents.as_bytes()))?;
        let answer = socket.expect(PATIENCE, |frame| match parse(frame) {
            Some(Parsed::Icmp {
                from: FIRST,
                kind: 0,
                sequence: number,
                checksums: Checksums::Right,
                payload,
                ..
            }) if number == sequence && payload == contents.as_bytes() => Some(()),
            _ => None,
        })?;
        answer.with_context(|| format!("ICMP echo request {sequence} was not answered"))?;
    }
    println!("  ICMP: 10 echo requests, 10 replies, contents equal");
    Ok(())
}

/// UDP echoes from the peer's own stack, which learns the holder's address by ARP like any other.
fn echoes(world: &World, address: Ipv4Addr, count: u32) -> Result<EchoCount> {
    let socket = world.run_in(Side::PEER, || UdpSocket::bind("0.0.0.0:0"))??;
    let count = EchoLoop::new((address, PORT).into(), count).run(&socket)?;
    ensure!(
        count.is_perfect(),
        "not every echo came back once and whole: {count:?}"
    );
    Ok(count)
}

/// The same with a socket of the host's stack, on the queue that the policy reserves.
fn echoes_of_the_host(world: &World, host: &Device) -> Result<EchoCount> {
    const ECHOES: u32 = 1_000;

    let server = world.run_in(Side::Host, || UdpSocket::bind(("0.0.0.0", PORT)))??;
    server.set_read_timeout(Some(PATIENCE))?;
    let answering = std::thread::spawn(move || -> std::io::Result<()> {
        let mut datagram = [0; 2048];
        for _ in 0..ECHOES {
            let (bytes, from) = server.recv_from(&mut datagram)?;
            server.send_to(datagram.get(..bytes).unwrap_or_default(), from)?;
        }
        Ok(())
    });
    let count = echoes(world, host.address, ECHOES)?;
    match answering.join() {
        Ok(answered) => answered?,
        Err(_panic) => bail!("the host's echo server panicked"),
    }
    Ok(count)
}

fn inheriting_holder(world: &World, user: &Uid) -> Result<Process> {
    world.install("echo", &binaries::client("echo")?)?;
    let (uid, address) = (user.number().to_string(), SECOND.to_string());
    start_cli(
        world,
        None,
        &[
            "grant",
            "eth0:3",
            "--as",
            &uid,
            "--",
            "/run/bin/echo",
            "--ip",
            &address,
        ],
    )
}

/// The holder's own count, once it has seen that many.
fn stats_from(holder: &Process, at_least: u64) -> Result<Value> {
    holder.wait_stdout(PATIENCE, |line| {
        let stats: Value = serde_json::from_str(line).ok()?;
        (stats["received"].as_u64()? >= at_least).then_some(stats)
    })
}

/// The XDP program's count, as `xsk-broker list --json` tells it.
fn redirected(broker: &BrokerProcess<'_>, queue: u64) -> Result<u64> {
    let listed: Value = serde_json::from_str(&broker.cli(&["list", "--json"])?.stdout)?;
    let leases = listed["leases"].as_array().context("list --json has no leases")?;
    leases
        .iter()
        .filter_map(|lease| lease["queues"].as_array())
        .flatten()
        .find(|listed| listed["queue"] == queue)
        .and_then(|listed| listed["counters"]["redirected"].as_u64())
        .with_context(|| format!("list --json has no queue {queue}"))
}
