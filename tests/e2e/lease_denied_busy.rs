//! A request is granted whole or refused whole, and a refusal says which of the ways of "no" it is.

use std::time::Duration;

use e2e::broker::BrokerProcess;
use e2e::uids::Uid;
use e2e::world::{Side, World};
use serde_json::json;

use crate::lease_scene::{Traffic, allow_with, interface, leases, policy, state_of};
use crate::puppet::{Puppet, Seen};

#[test]
fn who_has_no_rule_gets_nothing() {
    let world = World::new().unwrap();
    let [alice, bob, stranger, team] = [(); 4].map(|()| Uid::take().unwrap());
    let mut text = policy(&[(alice.number(), "0-3"), (bob.number(), "1-7")]);
    text += &format!(
        "[[allow]]\nname = \"team\"\ngroup = {}\ninterface = \"eth0\"\nqueues = \"5\"\nsockets = [\"prepared\"]\n\
         [[deny]]\nname = \"not-seven\"\nuser = {}\ninterface = \"eth0\"\nqueues = \"7\"\n",
        team.number(),
        bob.number()
    );
    let broker = BrokerProcess::start(&world, &text).unwrap();
    let denied = |user: &e2e::uids::User, target: &str| {
        let mut puppet = Puppet::start(&world, Side::Host, user);
        let failure = puppet.acquire(target).unwrap_err();
        assert_eq!(failure.kind, "Denied", "{failure:?}");
        let line = broker
            .wait_audit(Duration::from_secs(5), |line| {
                line["event"] == "refused" && line["pid"] == puppet.pid()
            })
            .unwrap();
        assert_eq!(line["reason"], "denied");
        assert_eq!(line["uid"], user.uid());
        failure.text
    };

    let nothing = denied(&stranger.user(), "eth0:2");
    assert!(nothing.contains("does not give this to uid"), "{nothing}");
    let elsewhere = denied(&stranger.user(), "nowhere9:2");
    assert_eq!(
        elsewhere.replace("nowhere9", "eth0"),
        nothing,
        "a stranger learns no names"
    );
    assert_eq!(
        denied(&bob.user(), "eth0:7")
            .replace(":7", ":2")
            .replace(&bob.number().to_string(), &stranger.number().to_string()),
        nothing
    );
    assert!(denied(&bob.user(), "eth0:6-7").contains("does not give this"));
    assert!(denied(&alice.user(), "eth0:3-4").contains("gives queues 0-3 of it, not queue 4"));
    assert!(denied(&alice.user(), "eth0:0").contains("queue 0 is reserved for the host"));

    let member = stranger.user().groups(&[team.number()]);
    let mut member = Puppet::start(&world, Side::Host, &member);
    let lease = member.acquire("eth0:5").unwrap();
    assert_eq!(leases(&broker)[0].rule, "team");
    assert_eq!(leases(&broker)[0].lease, lease);
}

#[test]
fn busy_says_whose_and_a_refusal_takes_nothing() {
    let world = World::new().unwrap();
    let [alice, bob] = [(); 2].map(|()| Uid::take().unwrap());
    let broker =
        BrokerProcess::start(&world, &policy(&[(alice.number(), "1-7"), (bob.number(), "1-7")])).unwrap();
    let mut holder = Puppet::start(&world, Side::Host, &alice.user());
    let mut other = Puppet::start(&world, Side::Host, &bob.user());
    let lease = holder.hold("eth0:2");

    let failure = other.acquire("eth0:1-3").unwrap_err();
    assert_eq!(
        (failure.kind.as_str(), &failure.details["queue"]),
        ("QueueBusy", &json!(2))
    );
    assert_eq!(failure.details.get("retryAfterMs"), None, "nobody knows when");
    assert!(
        failure.text.contains("held by another lease;"),
        "{}",
        failure.text
    );
    let failure = holder.acquire("eth0:2").unwrap_err();
    assert!(
        failure
            .text
            .contains(&format!("held by lease {lease} of your own")),
        "{}",
        failure.text
    );

    // Nothing is held by what was refused.
    assert_eq!(leases(&broker).len(), 1);
    let rest = other.acquire("eth0:1,3").unwrap();
    assert_eq!(leases(&broker).len(), 2);
    assert!(state_of(&broker, rest).is_some());
}

#[test]
fn a_quota_counts_what_is_held() {
    let world = World::new().unwrap();
    let alice = Uid::take().unwrap();
    let rule = allow_with(alice.number(), "1-7", "limits = { queues = 2 }");
    let _broker = BrokerProcess::start(&world, &(interface("eth0", "") + &rule)).unwrap();
    let mut holder = Puppet::start(&world, Side::Host, &alice.user());
    let mut sibling = Puppet::start(&world, Side::Host, &alice.user());

    let whole = holder.acquire("eth0:1-3").unwrap_err();
    assert_eq!(whole.kind, "Denied", "no waiting makes it fit: {whole:?}");
    let lease = holder.acquire("eth0:1-2").unwrap();
    let failure = sibling.acquire("eth0:3").unwrap_err();
    assert_eq!(
        failure.kind, "QuotaExceeded",
        "the uid is charged, not the process: {failure:?}"
    );
    assert_eq!(
        (&failure.details["limit"], &failure.details["inUse"]),
        (&json!(2), &json!(2))
    );
    assert!(failure.text.contains("release some first"), "{}", failure.text);
    holder.release(lease);
    sibling.acquire("eth0:3").unwrap();
}

#[test]
fn a_rule_may_give_more_queues_than_there_are() {
    let world = World::new().unwrap();
    let alice = Uid::take().unwrap();
    let _broker = BrokerProcess::start(&world, &policy(&[(alice.number(), "1-100")])).unwrap();
    let mut holder = Puppet::start(&world, Side::Host, &alice.user());
    let failure = holder.acquire("eth0:8").unwrap_err();
    assert_eq!(
        (failure.kind.as_str(), &failure.details["queues"]),
        ("NoSuchQueue", &json!(8))
    );
    assert!(
        failure.text.contains("`ethtool -L eth0` changes that, up to 8"),
        "{}",
        failure.text
    );

    // The count is the one of the moment.
    world.set_queues(0, 4).unwrap();
    let failure = holder.acquire("eth0:3-4").unwrap_err();
    assert_eq!(
        (failure.kind.as_str(), &failure.details["queues"]),
        ("NoSuchQueue", &json!(4))
    );
    holder.acquire("eth0:3").unwrap();
    world.set_queues(0, 8).unwrap();
    let lease = holder.hold("eth0:7");
    let traffic = Traffic::new(&world);
    traffic.send_all(7, 0..20);
    assert_eq!(
        holder.receive(lease, 7, 20, Duration::from_secs(5)),
        Seen::only(7, 20)
    );
}

#[test]
fn all_queues_of_a_grant_carry_packets() {
    let world = World::new().unwrap();
    let alice = Uid::take().unwrap();
    let broker = BrokerProcess::start(&world, &policy(&[(alice.number(), "*")])).unwrap();
    let traffic = Traffic::new(&world);
    let mut holder = Puppet::start(&world, Side::Host, &alice.user());
    let lease = holder.acquire("eth0:2-4").unwrap();
    holder.bind(lease).unwrap();
    let activated = holder.activate(lease).unwrap();
    let mode = |queue| json!({"queue": queue, "mode": "copy"});
    assert_eq!(activated["sockets"], json!([mode(2), mode(3), mode(4)]));
    for queue in 2..=4 {
        traffic.send_all(queue, 0..50);
        assert_eq!(
            holder.receive(lease, queue, 50, Duration::from_secs(5)),
            Seen::only(queue, 50)
        );
    }
    let lease = &leases(&broker)[0];
    let redirected: Vec<_> = lease
        .queues
        .iter()
        .map(|queue| (queue.queue, queue.counters.redirected))
        .collect();
    assert_eq!(redirected, [(2, 50), (3, 50), (4, 50)]);
    traffic.expect_at_stack(5, 0..5);
}
