//! What a policy that was read anew means for what is held: kept and told of, or ended; and for devices in use.

use std::time::Duration;

use e2e::broker::BrokerProcess;
use e2e::uids::Uid;
use e2e::world::{Side, World};
use serde_json::{Value, json};
use xsk_client::wire::{Change, EndReason, LeaseState, QueueLock, XdpMode};

use crate::lease_monitor::{event, monitor, operators};
use crate::lease_scene::{SILENCE, Traffic, allow, allow_with, interface, policy, wait_event, wait_until};
use crate::puppet::{Puppet, Seen};
use crate::reload::{audited, find, reload, reloaded};

const IDLE: Duration = Duration::from_secs(5);

#[test]
fn leases_that_it_would_not_give_are_kept_and_listed_or_ended() {
    let world = World::new().unwrap();
    let traffic = Traffic::new(&world);
    let [alice, bob] = [(); 2].map(|()| Uid::take().unwrap());
    let both = policy(&[(alice.number(), "1-4"), (bob.number(), "5")]);
    let mut broker = BrokerProcess::start(&world, &both).unwrap();
    let [mut of_alice, mut of_bob] = [&alice, &bob].map(|uid| Puppet::start(&world, Side::Host, &uid.user()));
    let (one, two) = (of_alice.hold("eth0:3"), of_alice.hold("eth0:4"));
    let three = of_bob.hold("eth0:5");
    // What alice may have is queue 4 now, since a rule that she is not to hear of denies queue 3.
    let narrow = both.clone()
        + &format!(
            "[[deny]]\nname = \"whispered\"\nuser = {}\ninterface = \"eth0\"\nqueues = \"3\"\n",
            alice.number()
        );
    let told = reloaded(&broker, &narrow);
    let not_allowed = told["notAllowed"].as_array().unwrap();
    assert_eq!(not_allowed.len(), 1, "{told}");
    assert_eq!(not_allowed[0]["lease"], one);
    assert_eq!(not_allowed[0]["ended"], false);
    let why = not_allowed[0]["reason"].as_str().unwrap();
    assert!(
        why.contains("denied by rule whispered (/run/xsk-broker.toml:"),
        "{why}"
    );

    // It is kept, and everybody who may know of it is told, in the words that are for them.
    traffic.send_all(3, 0..50);
    assert_eq!(of_alice.receive(one, 3, 50, IDLE), Seen::only(3, 50));
    assert_eq!(find(&broker, one).not_allowed.as_deref(), Some(why));
    for kept in [two, three] {
        assert_eq!(find(&broker, kept).not_allowed, None);
    }
    let list = broker.cli(&["list"]).unwrap();
    let line = format!("lease {one}: the policy in force would not give it: {why}\n");
    assert!(list.stdout.contains(&line), "{list:?}");
    let own = of_alice.call("ListLeases", json!({})).unwrap();
    let own = own["leases"][0]["notAllowed"].as_str().unwrap();
    assert!(
        own.contains("the policy does not give this") && !own.contains("whispered"),
        "{own}"
    );
    let again = of_alice.acquire("eth0:3").unwrap_err();
    assert_eq!(again.kind, "Denied");

    // A policy that gives it lifts that.
    reloaded(&broker, &both);
    assert_eq!(find(&broker, one).not_allowed, None);

    // Ended, it is told to go on only as far as it does.
    let (mut of_all, _) = operators(&broker);
    let output = reload(&broker, &narrow, &["--revoke"]);
    assert_eq!(output.code, Some(75), "{output:?}");
    let words = format!(
        "lease {one} of uid {}, eth0:3, rule uid-{0}: ended",
        alice.number()
    );
    assert!(
        output.stdout.contains(&words) && output.stdout.contains("may go on transmitting"),
        "{output:?}"
    );
    let ended = event(&mut of_all);
    assert_eq!((ended.lease, ended.reason), (one, Some(EndReason::NotAllowed)));
    assert_eq!(wait_event(&broker, "ended", one)["reason"], "not-allowed");
    traffic.expect_at_stack(3, 100..120);
    assert_eq!(of_alice.receive(one, 3, 1, SILENCE), Seen::default());
    assert_eq!(find(&broker, two).state, LeaseState::Active);
    // Who asks again hears of it again, and what to do.
    let again = broker.cli(&["reload", "--revoke"]).unwrap();
    assert_eq!(again.code, Some(75), "{again:?}");
    for words in [
        words,
        format!("`xsk-broker revoke {one}` says who has its sockets"),
    ] {
        assert!(again.stdout.contains(&words), "{words}: {again:?}");
    }
    of_alice.close(one);
    assert_eq!(wait_event(&broker, "freed", one)["lease"], one);
    // Nothing is left of it that could go on.
    let output = broker.cli(&["reload", "--revoke", "--json"]).unwrap();
    assert_eq!(output.code, Some(0), "{output:?}");
    assert!(broker.stop().unwrap().success());
}

#[test]
fn a_lease_moves_only_where_the_policy_in_force_lets_it() {
    let world = World::new().unwrap();
    let [alice, bob] = [(); 2].map(|()| Uid::take().unwrap());
    let to_bob = format!("transfer-to = {}", bob.number());
    let open = interface("eth0", "") + &allow_with(alice.number(), "1-7", &to_bob);
    let closed = interface("eth0", "") + &allow(alice.number(), "1-7");
    let mut broker = BrokerProcess::start(&world, &closed).unwrap();
    let [mut manager, mut vmm] = [&alice, &bob].map(|uid| Puppet::start(&world, Side::Host, &uid.user()));
    let lease = manager.hold("eth0:3");
    let mut denied = || {
        let failure = manager.transfer(lease, vmm.pid()).unwrap_err();
        assert_eq!(failure.kind, "Denied", "{failure:?}");
    };
    denied();
    reloaded(&broker, &open);
    // What is not given any more moves to nobody.
    reloaded(&broker, &open.replace("1-7", "4-7"));
    denied();
    reloaded(&broker, &closed);
    denied();
    reloaded(&broker, &open);
    manager.transfer(lease, vmm.pid()).unwrap();
    vmm.activate(lease).unwrap();
    assert!(broker.stop().unwrap().success());
}

fn xdp_of(world: &World, device: &str) -> Option<u32> {
    world.netlink(Side::Host).link(device).unwrap().xdp
}

#[test]
fn a_program_that_does_not_fit_goes_when_nobody_uses_it() {
    let world = World::builder().peers(2).build().unwrap();
    let alice = Uid::take().unwrap();
    let rule = allow(alice.number(), "1-7");
    let of = |eth0: &str, eth1: &str| interface("eth0", eth0) + &interface("eth1", eth1) + &rule;
    let mut broker = BrokerProcess::start(&world, &of("", "")).unwrap();
    let mut holder = Puppet::start(&world, Side::Host, &alice.user());
    let (one, two) = (holder.hold("eth0:3"), holder.hold("eth1:3"));
    assert_eq!(find(&broker, one).xdp, XdpMode::Native);
    holder.release(two);
    holder.close(two);
    wait_event(&broker, "freed", two);
    assert!(xdp_of(&world, "eth1").is_some(), "it stays for the next lease");

    let generic = "xdp = \"generic\"";
    let told = reloaded(&broker, &of(generic, generic));
    let notes = told["interfaces"].as_array().unwrap();
    let note = |name: &str| {
        let of = |note: &&Value| note["interface"] == name;
        notes.iter().find(of).unwrap()["message"].as_str().unwrap()
    };
    let why = "its XDP program runs native, and the policy says `xdp = \"generic\"`";
    assert_eq!(note("eth1"), format!("{why}: its XDP program has been detached"));
    assert!(
        note("eth0").starts_with(why) && note("eth0").ends_with(&format!("let go of their queues: {one}")),
        "{notes:?}"
    );
    assert_eq!(xdp_of(&world, "eth1"), None);
    assert_eq!(told["notAllowed"][0]["lease"], one, "{told}");
    // As long as it is used, nothing more is granted by it.
    holder.activate(one).unwrap();
    let failure = holder.acquire("eth0:4").unwrap_err();
    assert_eq!(failure.kind, "DeviceUnavailable", "{failure:?}");
    assert!(failure.text.contains(why), "{}", failure.text);
    holder.release(one);
    holder.close(one);
    wait_until("its program is detached", || xdp_of(&world, "eth0").is_none());
    assert_eq!(audited(&broker, "detached")["interface"], "eth1");
    let again = holder.hold("eth0:4");
    assert_eq!(find(&broker, again).xdp, XdpMode::Generic);

    // A device that no section names any more is let go of altogether.
    let output = reload(&broker, &(interface("eth1", "") + &rule), &["--revoke"]);
    assert_eq!(output.code, Some(75), "{output:?}");
    assert!(
        output
            .stdout
            .contains("eth0: no section [interface.eth0] names it: nothing more is granted there"),
        "{output:?}"
    );
    holder.close(again);
    wait_until("its program is detached", || xdp_of(&world, "eth0").is_none());
    assert!(broker.stop().unwrap().success());
}

#[test]
fn an_uplink_is_one_by_the_policy_in_force() {
    let world = World::new().unwrap();
    let alice = Uid::take().unwrap();
    let of = |uplink: &str| interface("eth0", uplink) + &allow(alice.number(), "1-7");
    let mut broker = BrokerProcess::start(&world, &of("uplink = true")).unwrap();
    world.add_default_route(0, 10).unwrap();
    let mut holder = Puppet::start(&world, Side::Host, &alice.user());
    let lease = holder.hold("eth0:3");
    let told = reloaded(&broker, &of(""));
    let why = "it carries a default route, and the policy does not say `uplink = true`";
    assert_eq!(told["notAllowed"][0]["reason"], format!("eth0: {why}"), "{told}");
    assert!(
        told["interfaces"][0]["message"]
            .as_str()
            .unwrap()
            .starts_with(why),
        "{told}"
    );
    assert!(holder.acquire("eth0:4").unwrap_err().text.contains(why));
    reloaded(&broker, &of("uplink = true"));
    holder.acquire("eth0:4").unwrap();
    assert_eq!(find(&broker, lease).not_allowed, None);
    assert!(broker.stop().unwrap().success());
}

#[test]
fn a_queue_lock_holds_for_what_leaves_from_then_on() {
    let world = World::new().unwrap();
    let alice = Uid::take().unwrap();
    let text = interface("eth0", "") + &allow_with(alice.number(), "1-7", "activate-within-ms = 60000");
    let locked = text.replace("queue-lock = \"none\"", "queue-lock = \"placeholders\"");
    // Reserved queues change with it.
    let locked = locked.replace("reserved = \"0\"", "reserved = \"0,6\"");
    let mut broker = BrokerProcess::start(&world, &text).unwrap();
    let mut holder = Puppet::start(&world, Side::Host, &alice.user());
    let bound = holder.hold("eth0:3");
    let unbound = holder.acquire("eth0:4").unwrap();
    let reserved = holder.hold("eth0:6");
    let told = reloaded(&broker, &locked);
    let not_allowed: Vec<(u64, &str)> = told["notAllowed"]
        .as_array()
        .unwrap()
        .iter()
        .map(|lease| {
            (
                lease["lease"].as_u64().unwrap(),
                lease["reason"].as_str().unwrap(),
            )
        })
        .collect();
    assert_eq!(not_allowed.len(), 2, "{told}");
    assert_eq!((not_allowed[0].0, not_allowed[1].0), (unbound, reserved));
    assert!(
        not_allowed[0].1.contains("left unbound under queue-lock none"),
        "{told}"
    );
    assert!(not_allowed[1].1.contains("reserved"), "{told}");
    let notes = told["interfaces"].to_string();
    assert!(
        notes.contains("queue-lock is placeholders, was none")
            && notes.contains("reserved queues are 0,6, were 0"),
        "{notes}"
    );
    // It goes on under the lock that it left under; what leaves from now on is locked.
    holder.bind(unbound).unwrap();
    holder.activate(unbound).unwrap();
    let next = holder.acquire("eth0:5").unwrap();
    let lock_of = |id| find(&broker, id).queue_lock;
    assert_eq!(
        (lock_of(bound), lock_of(unbound), lock_of(next)),
        (QueueLock::None, QueueLock::None, QueueLock::Placeholders)
    );
    // And bound, it is what the policy in force would give.
    reloaded(&broker, &locked);
    assert_eq!(find(&broker, unbound).not_allowed, None);
    assert!(broker.stop().unwrap().success());
}

#[test]
fn a_holder_is_told_by_its_monitor() {
    let world = World::new().unwrap();
    let alice = Uid::take().unwrap();
    let mut broker = BrokerProcess::start(&world, &policy(&[(alice.number(), "1-7")])).unwrap();
    let mut holder = Puppet::start(&world, Side::Host, &alice.user());
    let lease = holder.hold("eth0:3");
    let (mut of_alice, seen) = monitor(&broker, &alice);
    assert_eq!(seen, 1);
    // Kept, and told: what concerns its holder of it, in the words of its own rules.
    let (mut of_all, _) = operators(&broker);
    let rules = policy(&[(alice.number(), "1-7")]);
    let output = reload(&broker, &interface("eth0", ""), &[]);
    assert_eq!(output.code, Some(0), "{output:?}");
    for monitor in [&mut of_alice, &mut of_all] {
        let kept = event(monitor);
        assert_eq!(
            (kept.lease, kept.change, kept.state),
            (lease, Change::Policy, LeaseState::Active)
        );
        assert!(kept.not_allowed.is_some() && !kept.rx_stopped, "{kept:?}");
    }
    // Given again it is told, too; the same once more is no news.
    for _ in 0..2 {
        assert_eq!(reload(&broker, &rules, &[]).code, Some(0));
    }
    let given = event(&mut of_alice);
    assert_eq!((given.change, given.not_allowed), (Change::Policy, None));
    let output = reload(&broker, &interface("eth0", ""), &["--revoke"]);
    assert_eq!(output.code, Some(75), "{output:?}");
    let ended = event(&mut of_alice);
    assert_eq!(
        (ended.lease, ended.state, ended.reason),
        (lease, LeaseState::Lingering, Some(EndReason::NotAllowed))
    );
    assert!(ended.rx_stopped && ended.tx_may_continue);
    assert!(broker.stop().unwrap().success());
}
