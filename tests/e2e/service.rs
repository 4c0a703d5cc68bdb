//! The broker as a service: what it tells its manager, and in which order; and sockets that were opened for it.

use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

use e2e::broker::{BrokerProcess, Paths};
use e2e::connector::Connector;
use e2e::raw_client::RawClient;
use e2e::service_manager::{Said, ServiceManager};
use e2e::uids::Uid;
use e2e::world::{Side, World};
use rustix::process::Signal;
use rustix::time::{ClockId, clock_gettime};
use serde_json::json;
use std::sync::Arc;

use crate::lease_scene::{PATIENCE, interface, policy};
use crate::puppet::Puppet;

fn hear(manager: &ServiceManager<'_>) -> Said {
    manager.hear(PATIENCE).unwrap()
}

fn now_usec() -> i64 {
    let now = clock_gettime(ClockId::Monotonic);
    now.tv_sec * 1_000_000 + now.tv_nsec / 1000
}

#[test]
fn it_says_that_it_is_ready_reloads_and_stops() {
    let world = World::new().unwrap();
    let alice = Uid::take().unwrap();
    let manager = ServiceManager::new(&world).unwrap();
    let good = policy(&[(alice.number(), "1-7")]);
    let mut broker = BrokerProcess::builder()
        .service(manager.service())
        .launch(&world, &good)
        .unwrap();
    // Its first word: from then on it answers.
    let ready = hear(&manager);
    assert_eq!((ready.value("READY"), ready.pid), ("1", broker.process().pid()));
    assert!(
        ready.value("STATUS").starts_with("serving; rules: 1"),
        "{ready:?}"
    );
    let mut operator = RawClient::over(UnixStream::connect(broker.control_socket()).unwrap()).unwrap();
    let reply = operator.call("GetStatus", &json!({})).unwrap();
    assert_eq!(reply["parameters"]["pid"], broker.process().pid());

    let reloads = |ask: &dyn Fn(), status: &str| {
        let before = now_usec();
        ask();
        let reloading = hear(&manager);
        assert_eq!(reloading.value("RELOADING"), "1", "{reloading:?}");
        // systemd takes the READY=1 for the end of this reload by that time.
        let at: i64 = reloading.value("MONOTONIC_USEC").parse().unwrap();
        assert!((before..=now_usec()).contains(&at), "{before} {at}");
        let ready = hear(&manager);
        assert_eq!(ready.value("READY"), "1", "{ready:?}");
        assert!(ready.value("STATUS").contains(status), "{ready:?}");
    };
    let hang_up = || broker.process().signal(Signal::HUP).unwrap();
    reloads(&hang_up, "serving; rules: 1");
    broker
        .write_policy(&(good.clone() + &interface("eth9", "")))
        .unwrap();
    let reload = || assert_eq!(broker.cli(&["reload"]).unwrap().code, Some(0));
    reloads(&reload, "serving; rules: 1");
    broker.write_policy("[interface.eth0]\nxdp = 1\n").unwrap();
    reloads(&hang_up, "the policy is not taken, the former one stays in force");

    broker.process().signal(Signal::TERM).unwrap();
    assert_eq!(hear(&manager).value("STOPPING"), "1");
    assert!(broker.wait().unwrap().success());
    let line = broker.audit().unwrap();
    assert_eq!(line.last().unwrap()["event"], "stopped");
}

#[test]
fn a_manager_that_wants_to_see_it_alive_does() {
    let world = World::new().unwrap();
    let manager = ServiceManager::new(&world).unwrap();
    manager.set("WATCHDOG_USEC", "100000");
    let _broker = BrokerProcess::builder()
        .service(manager.service())
        .start(&world, &interface("eth0", ""))
        .unwrap();
    let mut seen = 0;
    while seen < 3 {
        seen += usize::from(hear(&manager).value("WATCHDOG") == "1");
    }
}

fn paths() -> (PathBuf, PathBuf) {
    let paths = Paths::new("xsk-broker");
    (paths.socket(), paths.control_socket())
}

#[test]
fn sockets_that_were_opened_for_it_outlive_it() {
    let world = World::new().unwrap();
    let alice = Uid::take().unwrap();
    let manager = ServiceManager::new(&world).unwrap();
    let (socket, control) = paths();
    manager.listen("control", &control, 0o600).unwrap();
    manager.listen("broker", &socket, 0o666).unwrap();
    // Whoever connects before it is there waits for it.
    let connector = Arc::new(Connector::start(&world, &alice.user()).unwrap());
    let mut early = RawClient::connect(&connector, &socket).unwrap();
    let mut broker = BrokerProcess::builder()
        .service(manager.service())
        .start(&world, &policy(&[(alice.number(), "1-7")]))
        .unwrap();
    let explain = json!({ "interface": "eth0", "queues": [3] });
    let reply = early.call("Explain", &explain).unwrap();
    assert_eq!(reply["parameters"]["granted"], true, "{reply}");
    let mut holder = Puppet::start(&world, Side::Host, &alice.user());
    holder.hold("eth0:3");
    assert_eq!(broker.cli(&["status"]).unwrap().code, Some(0));
    for words in [
        "socket `broker` comes from the service manager: /run/xsk-broker/broker.sock, mode 0666, uid 0",
        "socket `control` comes from the service manager: /run/xsk-broker/control.sock, mode 0600, uid 0",
    ] {
        let told = |line: &str| line.contains(words).then_some(());
        broker.process().wait_stderr(PATIENCE, told).unwrap();
    }
    // They are not its to remove, and the one that comes next finds who has connected meanwhile.
    assert!(broker.stop().unwrap().success());
    let mut between = RawClient::connect(&connector, &socket).unwrap();
    broker.restart().unwrap();
    let reply = between.call("Explain", &explain).unwrap();
    assert_eq!(reply["parameters"]["granted"], true, "{reply}");
    assert!(broker.stop().unwrap().success());
    assert!(world.path("xsk-broker/broker.sock").exists());
}

#[test]
fn one_that_was_not_opened_it_opens_by_itself() {
    let world = World::new().unwrap();
    let manager = ServiceManager::new(&world).unwrap();
    let (socket, _) = paths();
    manager.listen("broker", &socket, 0o666).unwrap();
    let mut broker = BrokerProcess::builder()
        .service(manager.service())
        .start(&world, &interface("eth0", ""))
        .unwrap();
    assert_eq!(broker.cli(&["status"]).unwrap().code, Some(0));
    assert!(broker.stop().unwrap().success());
    let left = |name: &str| world.path("xsk-broker").join(name).exists();
    assert!(left("broker.sock") && !left("control.sock"));

    // What was meant for another process is nobody's business.
    manager.close_all();
    let mut broker = BrokerProcess::builder()
        .name("other")
        .environment("LISTEN_PID", "1")
        .environment("LISTEN_FDS", "7")
        .environment("LISTEN_FDNAMES", "nonsense")
        .start(&world, &interface("eth0", ""))
        .unwrap();
    assert!(broker.stop().unwrap().success());
}

#[test]
fn wrong_sockets_are_refused_in_words() {
    let world = World::new().unwrap();
    let manager = ServiceManager::new(&world).unwrap();
    let (socket, control) = paths();
    let refused = |words: &[&str]| {
        let mut broker = BrokerProcess::builder()
            .service(manager.service())
            .launch(&world, &interface("eth0", ""))
            .unwrap();
        let status = broker.wait().unwrap();
        let log = broker.process().stderr().join("\n");
        assert_eq!(status.code(), Some(78), "{log}");
        for words in words {
            assert!(log.contains(words), "{words} is not in {log}");
        }
        manager.close_all();
        for path in [&socket, &control] {
            let outside = world.path(path.strip_prefix("/run").unwrap());
            if outside.exists() {
                std::fs::remove_file(outside).unwrap();
            }
        }
        // Nothing was made.
        assert!(!world.path("xsk-broker/lock").exists() && !world.path("bpf/xsk-broker").exists());
    };
    let in_world = |make: &(dyn Fn() -> OwnedFd + Sync)| world.run_in(Side::Host, make).unwrap();

    manager.listen("unknown", &socket, 0o666).unwrap();
    refused(&["\"unknown\"", "FileDescriptorName=broker"]);
    manager.listen("broker", &socket, 0o666).unwrap();
    manager
        .listen("broker", Path::new("/run/xsk-broker/second.sock"), 0o666)
        .unwrap();
    refused(&["two sockets by the name `broker`"]);
    manager.pass(
        "broker",
        in_world(&|| UnixDatagram::bind("/run/datagram").unwrap().into()),
    );
    refused(&["no listening stream socket of AF_UNIX", "Accept=no"]);
    manager.pass("control", UnixStream::pair().unwrap().0.into());
    refused(&["passed by the name `control` is no listening"]);
    manager.pass("control", std::fs::File::open("/dev/null").unwrap().into());
    refused(&["passed by the name `control` is no listening"]);
    let tcp = in_world(&|| std::net::TcpListener::bind("127.0.0.1:0").unwrap().into());
    manager.pass("broker", tcp);
    refused(&["no listening stream socket of AF_UNIX"]);
    let abstract_socket = in_world(&|| {
        use std::os::linux::net::SocketAddrExt;
        let address = std::os::unix::net::SocketAddr::from_abstract_name("xsk-broker-test").unwrap();
        UnixListener::bind_addr(&address).unwrap().into()
    });
    manager.pass("control", abstract_socket);
    refused(&["`control` is bound to no path"]);
    manager.listen("control", &control, 0o666).unwrap();
    refused(&[
        "everybody may connect to /run/xsk-broker/control.sock (mode 0666)",
        "SocketMode=0600",
    ]);
    manager
        .listen("broker", Path::new("/run/elsewhere/broker.sock"), 0o666)
        .unwrap();
    refused(&[
        "passed `broker` on /run/elsewhere/broker.sock",
        "wants it on /run/xsk-broker/broker.sock",
    ]);
    manager.listen("broker", &socket, 0o666).unwrap();
    std::fs::remove_file(world.path("xsk-broker/broker.sock")).unwrap();
    refused(&["cannot look at /run/xsk-broker/broker.sock"]);
}

#[test]
fn a_manager_that_does_not_listen_any_more_stops_nothing() {
    let world = World::new().unwrap();
    let manager = ServiceManager::new(&world).unwrap();
    std::fs::remove_file(world.path("notify")).unwrap();
    let mut broker = BrokerProcess::builder()
        .service(manager.service())
        .start(&world, &interface("eth0", ""))
        .unwrap();
    let told = |line: &str| line.contains("cannot tell the service manager").then_some(());
    broker
        .process()
        .wait_stderr(Duration::from_secs(20), told)
        .unwrap();
    assert_eq!(broker.cli(&["reload"]).unwrap().code, Some(0));
    assert!(broker.stop().unwrap().success());
}
