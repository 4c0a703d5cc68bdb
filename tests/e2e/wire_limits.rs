//! One client's greed or sloth is no other's trouble, and whoever hangs up leaves nothing.

use std::net::Shutdown;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use e2e::leaks::Fds;
use e2e::raw_client::{INTERFACE, PATIENCE, RawClient};
use e2e::uids::Uid;
use e2e::world::World;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

use crate::scene::{Scene, explain, is_served};

/// How many connections one uid may have.
const CONNECTIONS: usize = 64;

fn acquire(queue: u32) -> Value {
    json!({ "interface": "eth0", "queues": [queue], "sockets": "prepared" })
}

fn message(method: &str, parameters: &Value) -> Vec<u8> {
    let call = json!({ "method": format!("{INTERFACE}.{method}"), "parameters": parameters });
    format!("{call}\0").into_bytes()
}

fn wait_until(what: &str, mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !done() {
        assert!(Instant::now() < deadline, "{what}");
        thread::sleep(Duration::from_millis(5));
    }
}

/// Whether the broker has closed its end, seen without reading.
fn hung_up(client: &RawClient) -> bool {
    let mut fds = [PollFd::new(client.stream(), PollFlags::RDHUP)];
    poll(&mut fds, Some(&Timespec::default())).unwrap() > 0
}

fn leases(operator: &mut RawClient) -> Vec<Value> {
    let reply = operator.call("ListLeases", &json!({})).unwrap();
    reply["parameters"]["leases"].as_array().unwrap().clone()
}

#[test]
fn one_uid_has_64_connections_and_the_others_theirs() {
    let world = World::new().unwrap();
    let scene = Scene::new(&world);
    let other = Uid::take().unwrap();
    let mut clients: Vec<RawClient> = (0..CONNECTIONS).map(|_| scene.client()).collect();
    assert!(clients.iter_mut().all(is_served));
    for _ in 0..3 {
        assert!(is_one_too_many(&mut scene.client()));
    }
    let mut stranger = scene.client_of(&other);
    assert!(stranger.exchange(&explain(1)).unwrap().is_some());
    assert!(clients.iter_mut().all(is_served));

    // As many as leave, so many come in again, once the broker has seen them leave.
    clients.truncate(CONNECTIONS - 2);
    while clients.len() < CONNECTIONS {
        let mut client = scene.client();
        wait_until("no place became free", || {
            let refused = is_one_too_many(&mut client);
            if refused {
                client = scene.client();
            }
            !refused
        });
        clients.push(client);
    }
    assert!(is_one_too_many(&mut scene.client()));
    drop((clients, stranger));
    wait_until("no place became free", || !is_one_too_many(&mut scene.client()));
    scene.finish();
}

/// Whether a connection is told that it is one too many, and closed; it is served otherwise.
fn is_one_too_many(client: &mut RawClient) -> bool {
    let reply = client.exchange(&explain(1)).unwrap().unwrap();
    if reply["parameters"]["granted"] == true {
        return false;
    }
    assert_eq!(reply["error"], format!("{INTERFACE}.QuotaExceeded"), "{reply}");
    let told = &reply["parameters"];
    assert_eq!(
        (&told["resource"], &told["limit"], &told["inUse"]),
        (&json!("connections"), &json!(CONNECTIONS), &json!(CONNECTIONS))
    );
    assert_eq!(client.receive().unwrap(), None);
    true
}

#[test]
fn who_does_not_read_stops_nobody_else() {
    let world = World::new().unwrap();
    let scene = Scene::new(&world);
    let mut good = scene.client();
    assert!(is_served(&mut good));
    let mut lazy = scene.client();
    let ask = json!({ "interface": INTERFACE });
    let call = json!({ "method": "org.varlink.service.GetInterfaceDescription", "parameters": ask });
    // Far more than the buffers of a socket hold; the requests themselves fit.
    lazy.send(format!("{call}\0").repeat(600).as_bytes()).unwrap();
    // All of these before the broker gives up on what does not fit, or it would have waited for that.
    for _ in 0..20 {
        assert!(is_served(&mut good));
    }
    assert!(good.call("Acquire", &acquire(1)).unwrap().get("error").is_none());
    assert!(!hung_up(&lazy), "who reads was served after who does not");
    wait_until("who does not read is never given up", || hung_up(&lazy));
    let replies = std::iter::from_fn(|| lazy.receive().unwrap_or_default()).count();
    assert!((1..600).contains(&replies), "{replies} replies");
    assert!(
        good.call("Release", &json!({ "lease": 1 }))
            .unwrap()
            .get("error")
            .is_none()
    );
    drop((good, lazy));
    scene.finish();
}

#[test]
fn who_hangs_up_before_the_reply_holds_nothing() {
    let world = World::new().unwrap();
    let scene = Scene::new(&world);
    let mut operator = scene.operator();
    // A reply with fds is not sent while an earlier one is unread: so this one cannot have been sent.
    let mut client = scene.client();
    let both = [message("ListLeases", &json!({})), message("Acquire", &acquire(1))].concat();
    client.send(&both).unwrap();
    let of = |event: &'static str| move |line: &Value| line["event"] == event;
    scene.broker.wait_audit(PATIENCE, of("granted")).unwrap();
    drop(client);
    let ended = scene.broker.wait_audit(PATIENCE, of("ended")).unwrap();
    assert_eq!(
        (&ended["lease"], &ended["reason"]),
        (&json!(1), &json!("not-delivered"))
    );
    assert_eq!(leases(&mut operator), Vec::<Value>::new());

    // At once: the reply may have been on its way already, and then the lease is not activated in time. Whoever has gone
    // before the broker looks is not served.
    for queue in [1, 2, 3] {
        scene.client().send(&message("Acquire", &acquire(queue))).unwrap();
    }
    // Accepted after the others.
    assert!(is_served(&mut scene.client()));
    wait_until("a lease is left", || {
        let status = operator.call("GetStatus", &json!({})).unwrap();
        let written = scene.broker.audit().unwrap();
        let granted = written.iter().filter(|line| line["event"] == "granted").count();
        let ended = written.iter().filter(|line| line["event"] == "ended").count();
        status["parameters"]["connections"] == 0 && (1..=4).contains(&granted) && granted == ended
    });
    assert_eq!(leases(&mut operator), Vec::<Value>::new());
    let mut client = scene.client();
    assert!(
        client
            .call("Acquire", &acquire(1))
            .unwrap()
            .get("error")
            .is_none()
    );
    let number = leases(&mut operator)[0]["lease"].clone();
    client.call("Release", &json!({ "lease": number })).unwrap();
    drop((client, operator));
    scene.finish();
}

#[test]
fn who_wants_no_reply_holds_nothing() {
    let world = World::new().unwrap();
    let scene = Scene::new(&world);
    let mut client = scene.client();
    let mut call: Value =
        serde_json::from_slice(message("Acquire", &acquire(1)).split_last().unwrap().1).unwrap();
    call["oneway"] = json!(true);
    client.send(format!("{call}\0").as_bytes()).unwrap();
    assert!(is_served(&mut client));
    let audit = scene.broker.audit().unwrap();
    assert!(audit.iter().all(|line| line["event"] != "granted"), "{audit:?}");
    assert_eq!(leases(&mut client), Vec::<Value>::new());
    drop(client);
    scene.finish();
}

/// While the broker cannot look, one client sends and hangs up, another one only sends no more.
#[test]
fn what_a_client_sent_before_it_hung_up_is_not_done() {
    let world = World::new().unwrap();
    let scene = Scene::new(&world);
    let (mut gone, mut half) = (scene.client(), scene.client());
    assert!(is_served(&mut gone) && is_served(&mut half));
    let signal = |signal| {
        let pid = Pid::from_raw(i32::try_from(scene.broker.process().pid()).unwrap()).unwrap();
        kill_process(pid, signal).unwrap();
    };
    signal(Signal::STOP);
    gone.send(&message("Acquire", &acquire(1)).repeat(4)).unwrap();
    drop(gone);
    half.send(&[&explain(1)[..], b"\0"].concat().repeat(2)).unwrap();
    half.stream().shutdown(Shutdown::Write).unwrap();
    signal(Signal::CONT);
    for _ in 0..2 {
        assert_eq!(half.receive().unwrap().unwrap()["parameters"]["granted"], true);
    }
    assert!(half.receive().unwrap().is_none());
    let mut operator = scene.operator();
    wait_until("a connection is left", || {
        operator.call("GetStatus", &json!({})).unwrap()["parameters"]["connections"] == 0
    });
    let audit = scene.broker.audit().unwrap();
    assert!(audit.iter().all(|line| line["event"] != "granted"), "{audit:?}");
    drop((half, operator));
    scene.finish();
}

/// Its connection lives on in another process.
#[test]
fn a_client_that_has_exited_is_not_served() {
    let world = World::new().unwrap();
    let scene = Scene::new(&world);
    let connector = scene.broker.connector(&scene.uid).unwrap();
    let stream = connector.connect(&scene.broker.paths().socket()).unwrap();
    let mut client = RawClient::over(stream).unwrap();
    assert!(is_served(&mut client));
    drop(connector);
    scene.broker.dismiss_connectors();
    wait_until("a dead client is served", || {
        client.exchange(&explain(1)).map_or(true, |reply| reply.is_none())
    });
    drop(client);
    scene.finish();
}

/// More than std's backlog has room for come to either socket while the broker cannot look.
#[test]
fn four_hundred_can_wait() {
    const CLIENTS: usize = 400;
    let world = World::new().unwrap();
    let scene = Scene::new(&world);
    let pid = Pid::from_raw(i32::try_from(scene.broker.process().pid()).unwrap()).unwrap();
    kill_process(pid, Signal::STOP).unwrap();
    let waiting: Vec<_> = [scene.broker.socket(), scene.broker.control_socket()]
        .iter()
        .flat_map(|path| (0..CLIENTS).map(|_| connect_at_once(path)))
        .collect();
    let refused = waiting.iter().filter(|connected| connected.is_err()).count();
    drop(waiting);
    kill_process(pid, Signal::CONT).unwrap();
    assert_eq!(refused, 0);
    scene.finish();
}

/// EAGAIN where there is no room.
fn connect_at_once(path: &Path) -> rustix::io::Result<OwnedFd> {
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    connect(&socket, &SocketAddrUnix::new(path)?)?;
    Ok(socket)
}

#[test]
fn two_hundred_come_and_go() {
    let world = World::new().unwrap();
    let scene = Scene::new(&world);
    let pid = scene.broker.process().pid();
    let mut lease = None;
    let mut counts = Vec::new();
    for cycle in 0..200 {
        let mut client = scene.client();
        if let Some(lease) = lease.replace(cycle + 1) {
            // Of the same process, hence the same holder.
            client.call("Release", &json!({ "lease": lease })).unwrap();
        }
        let reply = client.call("Acquire", &acquire(1)).unwrap();
        assert_eq!(reply["parameters"]["lease"], cycle + 1, "{reply}");
        counts.push(Fds::of(pid).unwrap().count());
    }
    // Early cycles may overlap with the end of the connections before.
    let (first, last) = (counts[..20].iter().max(), counts[180..].iter().min());
    assert!(last <= first, "{counts:?}");
    scene.client().call("Release", &json!({ "lease": 200 })).unwrap();
    scene.finish();
}
