//! `xsk-broker grant IF:QUEUES -- COMMAND` becomes the command, which finds its sockets where systemd's services do.

use std::collections::BTreeSet;
use std::time::Duration;

use e2e::broker::BrokerProcess;
use e2e::holder::{ARGUMENTS, BODY};
use e2e::status::Status;
use e2e::uids::Uid;
use e2e::world::{Side, World};
use serde_json::Value;
use xsk_client::wire::Acquired;

use crate::lease_scene::{Traffic, leases, policy, wait_event, wait_until};
use crate::puppet::{Order, Puppet, Seen};

const IDLE: Duration = Duration::from_secs(5);
/// A command that anybody can run inside, and that says something if it is run.
const COMMAND: [&str; 2] = ["/run/bin/xsk-broker", "--version"];

#[test]
fn the_command_is_the_holder_as_the_user_that_root_named() {
    let world = World::new().unwrap();
    let alice = Uid::take().unwrap();
    let (number, text) = (alice.number(), alice.number().to_string());
    let broker = BrokerProcess::start(&world, &policy(&[(number, "1-7")])).unwrap();
    let traffic = Traffic::new(&world);
    let mut holder = Puppet::granted(&world, None, &["eth0:4", "--as", &text, "--label", "vm 7"]);

    let introduction = holder.introduce();
    assert_eq!(introduction.pid, holder.pid(), "exec keeps the process");
    let status = Status::of(holder.pid()).unwrap();
    assert_eq!(
        (status.uids, status.gids, status.groups),
        ([number; 4], [number; 4], vec![number])
    );
    let capabilities = status.capabilities;
    assert_eq!(
        (
            capabilities.permitted,
            capabilities.effective,
            capabilities.ambient
        ),
        (0, 0, 0)
    );
    let granted = broker
        .wait_audit(IDLE, |line| line["event"] == "granted")
        .unwrap();
    assert_eq!(
        (&granted["pid"], &granted["uid"]),
        (&holder.pid().into(), &number.into())
    );
    assert_eq!(granted["label"], "vm 7");

    let reply = holder.ask(&Order::FromEnv).unwrap();
    let lease = reply["lease"].as_u64().unwrap();
    holder.bind(lease).unwrap();
    holder.activate(lease).unwrap();
    traffic.send_all(4, 0..100);
    assert_eq!(holder.receive(lease, 4, 100, IDLE), Seen::only(4, 100));
    assert_eq!(leases(&broker)[0].holder.pid, holder.pid());
    assert_eq!(
        holder.ask(&Order::FromEnv).unwrap_err().kind,
        "Error::Inherit",
        "once only"
    );

    holder.kill();
    assert_eq!(wait_event(&broker, "ended", lease)["reason"], "holder-exited");
}

#[test]
fn an_ordinary_user_needs_nobody_for_it() {
    let world = World::new().unwrap();
    let alice = Uid::take().unwrap();
    let _broker = BrokerProcess::start(&world, &policy(&[(alice.number(), "1-7")])).unwrap();
    let traffic = Traffic::new(&world);
    let mut holder = Puppet::granted(&world, Some(&alice.user()), &["eth0:4-5"]);
    let introduction = holder.introduce();

    let ours = [BODY, ARGUMENTS];
    let names: BTreeSet<&str> = introduction.environment.keys().map(String::as_str).collect();
    let names: Vec<&str> = names.into_iter().filter(|name| !ours.contains(name)).collect();
    // The last one so that the command activates its lease at the broker that granted it.
    let expected = [
        "LISTEN_FDNAMES",
        "LISTEN_FDS",
        "LISTEN_PID",
        "XSK_BROKER_SOCKET",
        "XSK_LEASE",
    ];
    assert_eq!(names, expected);
    let variable = |name: &str| introduction.environment[name].as_str();
    assert_eq!(variable("LISTEN_FDS"), "2");
    assert_eq!(variable("LISTEN_PID"), holder.pid().to_string());
    assert_eq!(variable("LISTEN_FDNAMES"), "xsk-eth0-4:xsk-eth0-5");
    let acquired: Acquired = serde_json::from_str(variable("XSK_LEASE")).unwrap();
    let queues: Vec<u32> = acquired.sockets.iter().map(|socket| socket.queue).collect();
    assert_eq!(queues, [4, 5]);

    // What whoever starts it has left open, which are the standard ones at least, and the two sockets: not the
    // connection, nor anything else.
    let mut expected = Puppet::start(&world, Side::Host, &alice.user()).introduce().fds;
    expected.extend([3, 4].map(|number| (number, String::new())));
    assert!(
        introduction.fds.keys().eq(expected.keys()),
        "{:?}",
        introduction.fds
    );
    assert!(introduction.fds[&3].starts_with("socket:") && introduction.fds[&4].starts_with("socket:"));

    holder.ask(&Order::FromEnv).unwrap();
    holder.bind(acquired.lease).unwrap();
    holder.activate(acquired.lease).unwrap();
    for queue in [4, 5] {
        traffic.send_all(queue, 0..50);
        assert_eq!(
            holder.receive(acquired.lease, queue, 50, IDLE),
            Seen::only(queue, 50)
        );
    }
}

#[test]
fn a_command_that_cannot_be_run_leaves_no_lease() {
    let world = World::new().unwrap();
    let alice = Uid::take().unwrap();
    let broker = BrokerProcess::start(&world, &policy(&[(alice.number(), "1-7")])).unwrap();
    let output = broker
        .cli_as(&alice.user(), &["grant", "eth0:4", "--", "/run/bin/nothing"])
        .unwrap();
    assert_eq!(output.code, Some(1), "{}", output.stderr);
    assert!(
        output
            .stderr
            .contains("cannot run /run/bin/nothing: No such file"),
        "{}",
        output.stderr
    );
    let ended = |line: &Value| line["event"] == "ended";
    assert_eq!(broker.wait_audit(IDLE, ended).unwrap()["reason"], "holder-exited");
    wait_until("no lease is left", || leases(&broker).is_empty());
}

#[test]
fn what_is_refused_runs_no_command() {
    let world = World::new().unwrap();
    let alice = Uid::take().unwrap();
    let broker = BrokerProcess::start(&world, &policy(&[(alice.number(), "1-3")])).unwrap();
    let user = alice.user();
    let mut holder = Puppet::start(&world, Side::Host, &user);
    holder.hold("eth0:3");
    let zero = ["--as", "0"];
    for (target, more, code, words) in [
        ("eth0:4", &[][..], 77, "gives queues 1-3 of it"),
        ("eth0:0", &[], 77, "not queue 0"),
        ("nowhere9:1", &[], 77, "does not give this"),
        ("eth0:3", &[], 75, "of your own"),
        ("eth0:1", &zero, 77, "--as 0 is for root"),
        ("eth0", &[], 2, "IF:QUEUES"),
    ] {
        let arguments = [&["grant", target], more, &["--"], &COMMAND].concat();
        let output = broker.cli_as(&user, &arguments).unwrap();
        assert_eq!(output.code, Some(code), "{arguments:?}: {}", output.stderr);
        assert!(output.stderr.contains(words), "{arguments:?}: {}", output.stderr);
        assert_eq!(output.stdout, "", "{arguments:?}: the command was run");
    }
    let output = broker
        .cli_as(&user, &[&["grant", "eth0:1", "--"], &COMMAND[..]].concat())
        .unwrap();
    assert!(output.stdout.starts_with("xsk-broker "), "{output:?}");
}
