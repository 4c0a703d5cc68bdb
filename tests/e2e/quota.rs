//! What one user, and all of them together, may have at a time: each limit is told when it is reached, and nobody's greed
//! is another's trouble.

use std::net::Shutdown;
use std::sync::Arc;
use std::time::{Duration, Instant};

use e2e::broker::BrokerProcess;
use e2e::connector::Connector;
use e2e::raw_client::{INTERFACE, PATIENCE, RawClient};
use e2e::uids::Uid;
use e2e::world::World;
use serde_json::{Value, json};
use xsk_client::Broker;
use xsk_client::wire::Quota;

use crate::bound_scene::needs_bound;
use crate::lease_scene::{allow_kinds, interface, wait_until};
use crate::scene::{Scene, explain, is_served};

/// What a message asks for.
fn message(method: &str, parameters: &Value) -> Vec<u8> {
    let call = json!({ "method": format!("{INTERFACE}.{method}"), "parameters": parameters });
    format!("{call}\0").into_bytes()
}

fn prepared(queues: &[u32]) -> Value {
    json!({ "interface": "eth0", "queues": queues, "sockets": "prepared" })
}

fn bound(queue: u32) -> Value {
    let umem = json!({ "chunks": 4, "chunkBytes": 4096 });
    json!({ "interface": "eth0", "queues": [queue], "sockets": "bound", "umem": umem })
}

/// Resource, limit, in use; and the words.
fn quota_exceeded(reply: &Value) -> (String, u64, u64, String) {
    assert_eq!(reply["error"], format!("{INTERFACE}.QuotaExceeded"), "{reply}");
    let told = &reply["parameters"];
    let text = |name: &str| told[name].as_str().unwrap().to_owned();
    let number = |name: &str| told[name].as_u64().unwrap();
    (
        text("resource"),
        number("limit"),
        number("inUse"),
        text("message"),
    )
}

fn quota(operator: &mut Broker, resource: &str) -> Quota {
    let quotas = operator.get_status().unwrap().quotas;
    quotas
        .into_iter()
        .find(|quota| quota.resource == resource)
        .unwrap()
}

fn operator(broker: &BrokerProcess<'_>) -> Broker {
    Broker::connect_to(broker.control_socket()).unwrap()
}

#[test]
fn each_limit_is_told_when_it_is_reached() {
    needs_bound!();
    let world = World::new().unwrap();
    let other = Uid::take().unwrap();
    let scene = Scene::with_policy(&world, |tenant| {
        let kinds = ["prepared", "bound"];
        interface("eth0", "")
            + &allow_kinds(tenant, "1-7", &kinds, "")
            + &allow_kinds(other.number(), "1-7", &kinds, "")
            + "[limits.per-user]\nleases = 2\nqueues = 3\numem-bytes = 20000\n[limits.in-all]\nqueues = 4\n"
    });
    let mut client = scene.client();
    let mut get = |parameters: Value| client.call("Acquire", &parameters).unwrap();
    let lease = |reply: &Value| {
        reply["parameters"]["lease"]
            .as_u64()
            .unwrap_or_else(|| panic!("{reply}"))
    };
    let tenant = scene.uid.number();

    let first = lease(&get(prepared(&[1, 2])));
    let (resource, limit, in_use, words) = quota_exceeded(&get(prepared(&[3, 4])));
    assert_eq!((resource.as_str(), limit, in_use), ("queues", 3, 2));
    assert_eq!(
        words,
        format!(
            "uid {tenant} may have at most 3 queues at a time: 2 in use, 2 more asked for; release some first, or have the \
             operator raise `queues` under [limits.per-user]"
        )
    );
    let second = lease(&get(bound(3)));
    let (resource, limit, in_use, _) = quota_exceeded(&get(prepared(&[4])));
    assert_eq!((resource.as_str(), limit, in_use), ("leases", 2, 2));

    let mut operator = operator(&scene.broker);
    let in_use = |operator: &mut Broker, resource| quota(operator, resource).in_use;
    let now = ["leases", "queues", "umem-bytes"].map(|resource| in_use(&mut operator, resource));
    assert_eq!(now, [2, 3, 16384]);
    let quota = quota(&mut operator, "queues");
    assert_eq!((quota.limit, quota.limit_per_user), (4, 3));
    assert_eq!(
        (quota.users.len(), quota.users[0].uid, quota.users[0].in_use),
        (1, tenant, 3)
    );

    // What all have counts for somebody who has nothing.
    let mut stranger = scene.client_of(&other);
    let refused = stranger.call("Acquire", &prepared(&[4, 5])).unwrap();
    let (resource, limit, in_use_in_all, words) = quota_exceeded(&refused);
    assert_eq!((resource.as_str(), limit, in_use_in_all), ("queues", 4, 3));
    assert!(
        words.starts_with("all users together may have at most 4 queues"),
        "{words}"
    );
    let third = lease(&stranger.call("Acquire", &prepared(&[4])).unwrap());
    stranger.call("Release", &json!({ "lease": third })).unwrap();

    client.call("Release", &json!({ "lease": first })).unwrap();
    let (resource, limit, in_use_by_user, words) =
        quota_exceeded(&client.call("Acquire", &bound(4)).unwrap());
    assert_eq!(
        (resource.as_str(), limit, in_use_by_user),
        ("umem-bytes", 20000, 16384)
    );
    assert!(words.contains("or ask for fewer chunks"), "{words}");
    client.call("Release", &json!({ "lease": second })).unwrap();
    // When the kernel has let go of the queues.
    wait_until("everything is given back", || {
        ["leases", "queues", "umem-bytes"].map(|resource| in_use(&mut operator, resource)) == [0, 0, 0]
    });
    wait_until("each refusal has its line", || {
        let lines = scene.broker.audit().unwrap();
        lines
            .iter()
            .filter(|line| line["reason"] == "quota-exceeded")
            .count()
            == 4
    });
    drop((client, stranger, operator));
    scene.finish();
}

#[test]
fn requests_that_wait_are_counted() {
    let world = World::new().unwrap();
    let scene = Scene::with_policy(&world, |tenant| {
        crate::scene::tenant_rule(tenant)
            + crate::scene::EVERY_INTERFACE
            + "[limits.per-user]\nrequests = 1\n"
    });
    let mut operator = operator(&scene.broker);
    // Its replies do not fit into the buffer of its socket: one of its requests is not answered for as long as the broker
    // has patience with that.
    let mut lazy = scene.client();
    let ask = json!({ "method": "org.varlink.service.GetInterfaceDescription", "parameters": { "interface": INTERFACE } });
    let asks = format!("{ask}\0").repeat(600);
    let refused = (0..5).find_map(|_| {
        lazy = scene.client();
        lazy.send(asks.as_bytes()).unwrap();
        wait_until("it waits to be read", || {
            quota(&mut operator, "requests").in_use == 1
        });
        // It may have been given up by now, on a slow machine.
        let reply = scene.client().exchange(&explain(1)).unwrap().unwrap();
        reply["error"].is_string().then_some(reply)
    });
    let (resource, limit, in_use, _) =
        quota_exceeded(&refused.expect("all five of them were given up at once"));
    assert_eq!((resource.as_str(), limit, in_use), ("requests", 1, 1));
    drop(lazy);
    wait_until("its place is free", || {
        quota(&mut operator, "requests").in_use == 0
    });
    assert!(is_served(&mut scene.client()));
    drop(operator);
    scene.finish();
}

/// Queues of one lease of an attacker's.
const AT_ONCE: u32 = 16;
/// What the broker may have open; and as many fds may be in flight before the kernel refuses to send any more.
const OPEN_FILES: u64 = 512;

/// fds in unread replies are charged to the broker's uid by the kernel, and beyond its RLIMIT_NOFILE nobody is sent any more
/// (`too_many_unix_fds`). Three users never read: one by one connection, two by as many as they get, some of which they shut
/// down half way. Together they would have 528 in flight.
#[test]
fn who_never_reads_has_its_own_fds_in_flight_and_not_everybodys() {
    let world = World::builder().queues(64).build().unwrap();
    let attackers = [(); 3].map(|()| Uid::take().unwrap());
    let innocent = Uid::take().unwrap();
    let brief = "activate-within-ms = 100\n";
    let rules: String = attackers
        .iter()
        .zip(["0-15", "16-31", "32-47"])
        .map(|(uid, queues)| allow_kinds(uid.number(), queues, &["prepared"], brief))
        .collect();
    let policy = "[interface.eth0]\nqueue-lock = \"none\"\n".to_owned()
        + &rules
        + &allow_kinds(innocent.number(), "48-63", &["prepared"], "")
        // What this is about is not kept by another limit.
        + "[limits.per-user]\nabandoned-sockets = 100000\n[limits.in-all]\nabandoned-sockets = 100000\n";
    let broker = BrokerProcess::builder()
        .open_files(OPEN_FILES)
        .start(&world, &policy)
        .unwrap();
    let mut operator = operator(&broker);
    let limits = quota(&mut operator, "unread-fds");
    assert_eq!(
        (limits.limit, limits.limit_per_user),
        (OPEN_FILES / 2, OPEN_FILES / 8)
    );
    let connector = |uid: &Uid| Arc::new(Connector::start(&world, &uid.user()).unwrap());
    let connect =
        |connector: &Arc<Connector>| RawClient::connect(connector, &broker.paths().socket()).unwrap();

    let mut unread = Vec::new();
    let mut sent = 0;
    for (number, (uid, first)) in attackers.iter().zip([0, AT_ONCE, 2 * AT_ONCE]).enumerate() {
        let queues: Vec<u32> = (first..first + AT_ONCE).collect();
        let acquire = message("Acquire", &prepared(&queues));
        let connector = connector(uid);
        let connections = if number == 0 { 1 } else { 16 };
        let mut reached = false;
        for connection in 0..connections {
            let mut client = connect(&connector);
            wait_until("the last lease has ended", || {
                quota(&mut operator, "leases")
                    .users
                    .iter()
                    .all(|used| used.uid != uid.number())
            });
            client.send(&acquire).unwrap();
            let granted = wait_for_verdict(&broker, uid.number(), sent);
            if granted {
                sent += 1;
            } else {
                reached = true;
            }
            if connection % 2 == 1 {
                client.stream().shutdown(Shutdown::Write).unwrap();
            }
            unread.push(client);
        }
        let used = quota(&mut operator, "unread-fds");
        let used = used
            .users
            .iter()
            .find(|used| used.uid == uid.number())
            .unwrap()
            .in_use;
        assert_eq!((number, used), (number, if reached { 64 } else { 16 }));
        assert_eq!(reached, number > 0, "{number}");
    }
    let in_flight = quota(&mut operator, "unread-fds").in_use;
    assert_eq!(in_flight, 16 + 64 + 64);

    // Whoever reads is served, and is sent fds.
    let connector = connector(&innocent);
    for _ in 0..20 {
        let mut client = connect(&connector);
        let reply = client.call("Acquire", &prepared(&[48, 49, 50, 51])).unwrap();
        let lease = reply["parameters"]["lease"]
            .as_u64()
            .unwrap_or_else(|| panic!("{reply}"));
        client.call("Release", &json!({ "lease": lease })).unwrap();
    }
    // Long after their leases have ended they are charged, and not after their ends are gone.
    std::thread::sleep(Duration::from_millis(300));
    assert_eq!(quota(&mut operator, "unread-fds").in_use, in_flight);
    drop(unread);
    wait_until("all is given back", || {
        quota(&mut operator, "unread-fds").in_use == 0
    });
    wait_until("no connection counts", || {
        quota(&mut operator, "connections").in_use <= 1
    });
}

/// Waits until a user's next request was granted or refused; this many were granted before.
fn wait_for_verdict(broker: &BrokerProcess<'_>, uid: u32, granted_before: usize) -> bool {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let lines = broker.audit().unwrap();
        if lines.iter().filter(|line| line["event"] == "granted").count() > granted_before {
            return true;
        }
        let refused = |line: &&Value| line["event"] == "refused" && line["uid"] == uid;
        if let Some(line) = lines.iter().rfind(refused) {
            assert_eq!(line["reason"], "quota-exceeded", "{line}");
            return false;
        }
        assert!(Instant::now() < deadline, "neither granted nor refused");
        std::thread::sleep(Duration::from_millis(5));
    }
}
