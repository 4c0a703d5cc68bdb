//! Clients that mean harm: what each of them once achieved, and achieves no more.

use std::io::Write;
use std::net::Shutdown;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use e2e::broker::BrokerProcess;
use e2e::raw_client::{PATIENCE, RawClient};
use e2e::uids::Uid;
use e2e::world::{Side, World};
use serde_json::{Value, json};

use crate::scene::{EVERY_INTERFACE, Scene, allow};

fn acquire(client: &mut RawClient, interface: &str, queues: &[u32]) -> Value {
    let parameters = json!({ "interface": interface, "queues": queues, "sockets": "prepared" });
    client.call("Acquire", &parameters).unwrap()
}

fn error_of(reply: &Value) -> &str {
    let name = reply["error"].as_str().unwrap_or_default();
    name.rsplit('.').next().unwrap_or_default()
}

/// Says so when dropped, by a panic too: a thread that waits for it would else keep a failed test from ending.
struct Over<'a>(&'a AtomicBool);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// tokio counts a readable stream as no work: a client that never pauses once had the whole thread.
#[test]
fn a_client_that_never_pauses_keeps_nobody_from_being_served() {
    const CALL: &[u8] = b"{\"method\":\"a.b\",\"oneway\":true}\0";

    let world = World::new().unwrap();
    let scene = Scene::new(&world);
    let stranger = Uid::take().unwrap();
    // Short enough for one piece of the stream, so that two senders do not tear each other's messages apart.
    let flood = CALL.repeat(128);
    let hog = scene.client_of(&stranger);
    rustix::net::sockopt::set_socket_send_buffer_size(hog.stream(), 16 << 20).unwrap();
    let served = AtomicBool::new(false);
    std::thread::scope(|scope| {
        // Two senders for one stream: one of them always has bytes for it.
        for _ in 0..2 {
            scope.spawn(|| {
                let mut stream = hog.stream();
                while !served.load(Ordering::Relaxed) {
                    stream.write_all(&flood).unwrap();
                }
            });
        }
        // None of these would be answered before the flood is over, and it is over only after the last of them.
        let _over = Over(&served);
        for _ in 0..20 {
            assert!(crate::scene::is_served(&mut scene.client()));
        }
    });
    drop(hog);
    scene.finish();
}

/// The ordinary log is written by whoever has something to say, the engine too, and whoever reads it may be slow: a uid
/// without any rule once wrote 10,000 lines a second there.
#[test]
fn whatever_a_stranger_sends_the_ordinary_log_stays_as_it_is() {
    let world = World::new().unwrap();
    let scene = Scene::new(&world);
    let stranger = Uid::take().unwrap();
    let before = scene.broker.process().stderr();
    for junk in [
        &b"x\0"[..],
        b"\0",
        b"{}\0",
        b"{\"method\":7}\0",
        b"{\"method\":\"a.b\"}\0",
        b"half",
    ] {
        for _ in 0..20 {
            // With more connections than it may have, of which the broker has not seen yet that they are over, it is hung up on.
            while let Err(error) = scene.client_of(&stranger).stream().write_all(junk) {
                assert_eq!(error.kind(), std::io::ErrorKind::BrokenPipe, "{error}");
            }
        }
    }
    // All of them were heard before this one is.
    assert!(crate::scene::is_served(&mut scene.client()));
    assert_eq!(scene.broker.process().stderr(), before);
    scene.finish();
}

/// The kernel takes alternative names where it takes names; the policy speaks of names.
#[test]
fn an_alternative_name_opens_no_way_around_the_policy() {
    let world = World::new().unwrap();
    let device = world.device(Side::Host).index;
    world
        .netlink(Side::Host)
        .add_alternative_name(device, "wan0")
        .unwrap();
    let tenant = Uid::take().unwrap();
    let policy = "[interface.eth0]\nqueue-lock = \"none\"\nreserved = \"0-7\"\n".to_owned()
        + EVERY_INTERFACE
        + &allow("everything", tenant.number(), "*", "*");
    let broker = BrokerProcess::start(&world, &policy).unwrap();
    let connector = broker.connector(&tenant).unwrap();
    let mut client = RawClient::connect(&connector, &broker.paths().socket()).unwrap();
    assert_eq!(error_of(&acquire(&mut client, "eth0", &[1])), "Denied");
    assert_eq!(error_of(&acquire(&mut client, "wan0", &[1])), "DeviceUnavailable");
    assert_eq!(world.netlink(Side::Host).link("eth0").unwrap().xdp, None);
}

/// fds in unread replies are charged to the broker's uid: a connection counts until they are read or its end is gone.
#[test]
fn replies_that_nobody_reads_are_counted() {
    let world = World::new().unwrap();
    let scene = Scene::new(&world);
    let mut kept = Vec::new();
    let request = json!({
        "method": "org.xskbroker.Broker.Acquire",
        "parameters": { "interface": "eth0", "queues": [1], "sockets": "prepared" },
    });
    let request = [request.to_string().as_bytes(), b"\0"].concat();
    let mut half_closed = scene.client();
    half_closed.send(&request).unwrap();
    half_closed.stream().shutdown(Shutdown::Write).unwrap();
    kept.push(half_closed);
    let connections = || {
        let status = scene.operator().call("GetStatus", &json!({})).unwrap();
        status["parameters"]["connections"].as_u64().unwrap()
    };
    scene
        .broker
        .wait_audit(PATIENCE, |line| line["event"] == "granted")
        .unwrap();
    // Long enough for a connection that was read to its end to be gone: others come and go meanwhile.
    for _ in 0..50 {
        assert!(crate::scene::is_served(&mut scene.client()));
    }
    assert!(connections() >= 1);
    kept.clear();
    let deadline = Instant::now() + PATIENCE;
    while connections() > 0 {
        assert!(
            Instant::now() < deadline,
            "a connection whose end is gone still counts"
        );
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Rings are charged to nobody: who leaves socket after socket unbound is told to wait.
#[test]
fn sockets_that_are_left_unbound_are_few() {
    let world = World::new().unwrap();
    let scene = Scene::new(&world);
    let mut client = scene.client();
    let mut granted = 0;
    let refused = loop {
        let reply = acquire(&mut client, "eth0", &[1, 2, 3]);
        if reply["error"].is_string() {
            break reply;
        }
        granted += 3;
        assert!(granted < 1000, "nobody says stop");
        let lease = reply["parameters"]["lease"].clone();
        client.call("Release", &json!({ "lease": lease })).unwrap();
    };
    assert_eq!(error_of(&refused), "QuotaExceeded", "{refused}");
    assert_eq!(refused["parameters"]["resource"], "abandoned-sockets");
    assert!((256..=260).contains(&granted), "{granted}");
    drop(client);
    scene.finish();
}

/// What a client chose is written into logs that people read on terminals.
#[test]
fn words_of_a_client_stay_words() {
    let world = World::new().unwrap();
    let scene = Scene::new(&world);
    let mut client = scene.client();
    let label = "vm\u{9b}2J\u{202e}\n";
    let parameters = json!({ "interface": "eth0", "queues": [1], "sockets": "prepared", "label": label });
    let reply = client.call("Acquire", &parameters).unwrap();
    assert_eq!(reply["parameters"]["lease"], 1, "{reply}");
    let line = scene
        .broker
        .wait_audit(PATIENCE, |line| line["event"] == "granted")
        .unwrap();
    assert_eq!(line["label"], label);
    // What is printed moves no cursor and turns no writing around, and means the same.
    let json = scene.broker.cli(&["list", "--json"]).unwrap().stdout;
    assert!(
        json.trim_end()
            .chars()
            .all(|c| c.is_ascii() && !c.is_ascii_control()),
        "{json:?}"
    );
    let listed: Value = serde_json::from_str(&json).unwrap();
    assert_eq!(listed["leases"][0]["label"], label);
    let table = scene.broker.cli(&["list"]).unwrap().stdout;
    assert!(table.contains("  vm\\u{9b}2J\\u{202e}\\n\n"), "{table:?}");
    let printable = |line: &String| line.chars().all(|c| c.is_ascii_graphic() || c == ' ');
    assert!(scene.broker.process().stdout().iter().all(printable));

    let long = json!({ "interface": "eth0", "queues": [2], "sockets": "prepared", "label": "x".repeat(257) });
    assert_eq!(
        error_of(&client.call("Acquire", &long).unwrap()),
        "InvalidRequest"
    );
    let mut forger = scene.client();
    forger.send(b"\n2026-01-01 WARN FAKE: policy reloaded\0").unwrap();
    assert!(forger.receive().unwrap().is_none());
    let log = scene.broker.process().stderr();
    assert!(log.iter().all(|line| !line.starts_with("2026-01-01")), "{log:?}");
    client.call("Release", &json!({ "lease": 1 })).unwrap();
}
