//! `explain` says of the machine what `grant` would meet there, with the same exit code and in the same words; and says
//! plainly what it did not look at.

use e2e::bpf::XdpAttach;
use e2e::broker::{BrokerProcess, Output};
use e2e::netlink::LinkState;
use e2e::queue_program::QueueProgram;
use e2e::uids::Uid;
use e2e::world::{Side, World};
use serde_json::{Value, json};

use crate::bound_scene;
use crate::lease_scene::{allow_kinds, allow_with, eth0, interface, wait_until};
use crate::puppet::Puppet;

/// What both say of the same request: the broker's words are in both.
fn both(broker: &BrokerProcess<'_>, uid: &Uid, target: &str, more: &[&str]) -> (Output, Output) {
    let user = uid.number().to_string();
    let explain = [&["explain", "--user", &user, target], more].concat();
    // A program that only ends well, and that is wherever the suite is.
    let program = ["--", "/run/bin/xsk-broker", "--version"];
    let grant = [&["grant", target, "--as", &user], more, &program].concat();
    (broker.cli(&explain).unwrap(), broker.cli(&grant).unwrap())
}

/// Both refuse, with that code and these words.
fn refused(broker: &BrokerProcess<'_>, uid: &Uid, target: &str, code: i32, words: &str) {
    let (explained, granted) = both(broker, uid, target, &[]);
    assert_eq!(
        (explained.code, granted.code),
        (Some(code), Some(code)),
        "{explained:?}\n{granted:?}"
    );
    assert!(explained.stdout.contains(words), "{explained:?}");
    assert!(granted.stderr.contains(words), "{granted:?}");
    // Not by the rule, which would give it.
    let by = if code == 77 { "a limit\n" } else { "this machine (" };
    let heading = format!("{target}: refused by {by}");
    assert!(explained.stdout.starts_with(&heading), "{explained:?}");
}

#[test]
fn what_the_machine_refuses_is_refused_by_both() {
    let world = World::builder().peers(4).build().unwrap();
    let alice = Uid::take().unwrap();
    let sections = interface("eth0", "")
        + &interface("eth1", "")
        + &interface("eth2", "xdp = \"native\"")
        + &interface("eth3", "")
        + &interface("eth7", "");
    let zero_copy = format!(
        "[[allow]]\nname = \"zc\"\nuser = {}\ninterface = \"eth2\"\nqueues = \"*\"\nsockets = [\"prepared\"]\n\
         zero-copy = \"required\"\n",
        alice.number()
    );
    let text =
        sections + &zero_copy + &allow_with(alice.number(), "1-99", "") + "[limits.per-user]\nqueues = 3\n";
    let broker = BrokerProcess::start(&world, &text).unwrap();
    world.add_default_route(1, 10).unwrap();
    let _foreign = QueueProgram::attach(&world, Side::Host, XdpAttach::Native).unwrap();

    refused(&broker, &alice, "eth7:1", 78, "there is no interface eth7");
    refused(
        &broker,
        &alice,
        "eth3:63",
        78,
        "eth3 has no queue 63: it receives on 8 queues now",
    );
    refused(&broker, &alice, "eth1:1", 78, "eth1 carries a default route");
    let words = "the driver of eth2 has none";
    let (explained, granted) = both(&broker, &alice, "eth2:1", &[]);
    assert_eq!(granted.code, Some(78), "{granted:?}");
    assert!(granted.stderr.contains(words), "{granted:?}");
    // Before Linux 6.3 only a bind shows that, and `explain` binds nothing.
    match explained.code {
        Some(0) => assert!(
            explained.stdout.contains("only when a queue is bound"),
            "{explained:?}"
        ),
        code => assert!(
            code == Some(78) && explained.stdout.contains(words),
            "{explained:?}"
        ),
    }
    refused(
        &broker,
        &alice,
        "eth0:1",
        78,
        "which is not the broker's; its owner must detach it first",
    );
    // What alone is more than anybody may have can never be had: no code that says "later".
    refused(
        &broker,
        &alice,
        "eth3:1-4",
        77,
        "at most 3 queues, and this one request asks for 4",
    );

    // And what can be had is granted by both, with a word on what nobody knows before.
    let (explained, granted) = both(&broker, &alice, "eth3:1", &[]);
    assert_eq!(
        (explained.code, granted.code),
        (Some(0), Some(0)),
        "{explained:?}\n{granted:?}"
    );
    for words in ["machine:\n", "what others hold  not looked at  ", "queue lock"] {
        assert!(explained.stdout.contains(words), "{words}: {explained:?}");
    }
    // A stranger is told nothing of the machine.
    let stranger = Uid::take().unwrap();
    let output = broker
        .cli_as(&stranger.user(), &["explain", "--json", "eth7:1"])
        .unwrap();
    assert_eq!(output.code, Some(77), "{output:?}");
    let reply: Value = serde_json::from_str(&output.stdout).unwrap();
    assert_eq!(reply["checks"], json!([]));
}

#[test]
fn a_lock_that_cannot_be_had_is_told() {
    let world = World::new().unwrap();
    let alice = Uid::take().unwrap();
    let text = "[interface.eth0]\nqueue-lock = \"lsm\"\n".to_owned()
        + &allow_kinds(alice.number(), "1-7", &["prepared", "bound"], "");
    let broker = BrokerProcess::start(&world, &text).unwrap();
    let has_lsm = eth0(&broker).queue_lock.is_some();
    let (explained, granted) = both(&broker, &alice, "eth0:1", &[]);
    let code = if has_lsm { 0 } else { 78 };
    assert_eq!(
        (explained.code, granted.code),
        (Some(code), Some(code)),
        "{explained:?}\n{granted:?}"
    );
    if !has_lsm {
        let words = "the policy wants `queue-lock = \"lsm\"` there, which cannot be had";
        assert!(
            explained.stdout.contains(words) && granted.stderr.contains(words),
            "{explained:?}"
        );
    }
    // What the broker binds needs none.
    let user = alice.number().to_string();
    let bound = ["explain", "--user", &user, "--kind", "bound", "eth0:1"];
    let output = broker.cli(&bound).unwrap();
    assert!(
        output.stdout.contains("sockets of kind bound need none"),
        "{output:?}"
    );
    let offline = [&bound[..], &["--policy", "/run/xsk-broker.toml"]].concat();
    let output = broker.cli(&offline).unwrap();
    assert_eq!(output.code, Some(0), "{output:?}");
    assert!(output.stdout.contains("machine  not looked at"), "{output:?}");
}

/// What the broker binds it knows of before: nobody is to touch memory for what cannot be.
#[test]
fn a_mode_that_the_driver_has_not_is_refused_by_both() {
    bound_scene::needs_bound!();
    let world = World::new().unwrap();
    let alice = Uid::take().unwrap();
    let text = interface("eth0", "") + &bound_scene::allow(alice.number(), "1-7", "");
    let broker = BrokerProcess::start(&world, &text).unwrap();
    let of_mode = |mode| both(&broker, &alice, "eth0:1", &["--kind", "bound", "--mode", mode]);
    let words = "the driver of eth0 has no zero-copy";
    let (explained, granted) = of_mode("zerocopy");
    assert_eq!(
        (explained.code, granted.code),
        (Some(78), Some(78)),
        "{explained:?}\n{granted:?}"
    );
    assert!(explained.stdout.contains(words), "{explained:?}");
    assert!(granted.stderr.contains(words), "{granted:?}");
    let (explained, granted) = of_mode("zerocopy_else_copy");
    assert_eq!(
        (explained.code, granted.code),
        (Some(0), Some(0)),
        "{explained:?}\n{granted:?}"
    );
}

#[test]
fn a_device_that_is_down_is_told_and_granted() {
    let world = World::new().unwrap();
    let alice = Uid::take().unwrap();
    let text = interface("eth0", "") + &allow_with(alice.number(), "1-7", "");
    let broker = BrokerProcess::start(&world, &text).unwrap();
    let link = |words: &str, queue: u32| {
        let (explained, granted) = both(&broker, &alice, &format!("eth0:{queue}"), &[]);
        assert_eq!(
            (explained.code, granted.code),
            (Some(0), Some(0)),
            "{explained:?}\n{granted:?}"
        );
        assert!(explained.stdout.contains(words), "{explained:?}");
    };
    link("up, with a carrier", 1);
    let peer = world.device(Side::PEER).index;
    world.netlink(Side::PEER).set_link(peer, LinkState::Down).unwrap();
    link("eth0 has no carrier: it is granted all the same", 2);
    let index = world.device(Side::Host).index;
    world
        .netlink(Side::Host)
        .set_link(index, LinkState::Down)
        .unwrap();
    link("eth0 is down: it is granted all the same", 3);
}

/// A device that became an uplink after its first grant: the next one is refused, what is held goes on.
#[test]
fn an_uplink_is_seen_at_each_grant() {
    let world = World::new().unwrap();
    let alice = Uid::take().unwrap();
    let text = interface("eth0", "") + &allow_with(alice.number(), "1-7", "");
    let _broker = BrokerProcess::start(&world, &text).unwrap();
    let mut holder = Puppet::start(&world, Side::Host, &alice.user());
    let held = holder.hold("eth0:3");
    world.add_default_route(0, 10).unwrap();
    wait_until("an uplink is seen", || match holder.acquire("eth0:4") {
        Ok(lease) => {
            holder.close(lease);
            holder.release(lease);
            // An answer may be a second old, and only so many sockets may be left unbound meanwhile.
            std::thread::sleep(std::time::Duration::from_millis(100));
            false
        }
        Err(failure) if failure.kind == "QueueBusy" => false,
        Err(failure) => {
            assert_eq!(failure.kind, "DeviceUnavailable", "{failure:?}");
            assert!(
                failure.text.contains("carries a default route"),
                "{}",
                failure.text
            );
            true
        }
    });
    holder.activate(held).unwrap();
}
