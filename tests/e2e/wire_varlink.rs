//! The `.varlink` file tells the truth: it is what the daemon answers, and all that the daemon says is in it.

use std::collections::{BTreeMap, BTreeSet};

use e2e::raw_client::{INTERFACE, RawClient};
use e2e::uids::Uid;
use e2e::world::{Side, World};
use serde_json::{Value, json};
use xsk_client::sys::{Mapping, Prefault};
use xsk_client::wire::{Acquire, BrokerError, ModeWish, SocketKind};
use xsk_client::{Broker, CallError};

use crate::puppet::Puppet;
use crate::scene::{EVERY_INTERFACE, Scene, allow, tenant_rule};
use crate::varlink_file::VarlinkFile;

const BROKER_FILE: &str = include_str!("../../client-lib/src/wire/broker.varlink");
const SERVICE_FILE: &str = include_str!("../../client-lib/src/wire/service.varlink");

/// What the daemon has said so far, held against the file.
struct Checker {
    file: VarlinkFile,
    methods: BTreeSet<String>,
    errors: BTreeSet<String>,
}

impl Checker {
    fn call(&mut self, client: &mut RawClient, method: &str, parameters: &Value) -> Value {
        let reply = client.call(method, parameters).unwrap();
        self.check(method, &reply);
        reply
    }

    fn check(&mut self, method: &str, reply: &Value) {
        let known = ["error", "parameters", "continues"];
        let members = reply.as_object().unwrap();
        assert!(
            members.keys().all(|name| known.contains(&name.as_str())),
            "{reply}"
        );
        let expected = match reply.get("error") {
            None => {
                self.methods.insert(method.to_owned());
                &self.file.methods[method].result
            }
            Some(error) => {
                let name = error.as_str().unwrap().strip_prefix(INTERFACE).unwrap();
                let name = name.strip_prefix('.').unwrap();
                self.errors.insert(name.to_owned());
                &self.file.errors[name]
            }
        };
        let complaints = self.file.complaints(expected, &reply["parameters"], method);
        assert_eq!(complaints, Vec::<String>::new(), "{reply}");
    }
}

#[test]
fn the_file_is_what_the_daemon_answers() {
    let world = World::new().unwrap();
    let scene = Scene::new(&world);
    let mut client = scene.client();
    let mut ask = |method: &str, parameters: Value| {
        let call = json!({ "method": format!("org.varlink.service.{method}"), "parameters": parameters });
        client.exchange(call.to_string().as_bytes()).unwrap().unwrap()
    };
    let service = VarlinkFile::read(SERVICE_FILE);
    let info = ask("GetInfo", json!({}));
    let complaints = service.complaints(&service.methods["GetInfo"].result, &info["parameters"], "GetInfo");
    assert_eq!(complaints, Vec::<String>::new());
    for (interface, file) in [(INTERFACE, BROKER_FILE), ("org.varlink.service", SERVICE_FILE)] {
        assert!(
            info["parameters"]["interfaces"]
                .as_array()
                .unwrap()
                .contains(&interface.into())
        );
        let reply = ask("GetInterfaceDescription", json!({ "interface": interface }));
        assert_eq!(reply["parameters"]["description"], file);
        assert_eq!(VarlinkFile::read(file).interface, interface);
    }
    let reply = ask("GetInterfaceDescription", json!({ "interface": "a.b" }));
    assert_eq!(reply["error"], "org.varlink.service.InterfaceNotFound");
    let complaints = service.complaints(
        &service.errors["InterfaceNotFound"],
        &reply["parameters"],
        "error",
    );
    assert_eq!(complaints, Vec::<String>::new());
    drop(client);
    scene.finish();
}

#[test]
fn every_method_answers_as_the_file_says() {
    let world = World::new().unwrap();
    let other = Uid::take().unwrap();
    let scene = Scene::with_policy(&world, |tenant| {
        tenant_rule(tenant)
            + "transfer-to = 0\n"
            + &allow("beyond", tenant, "eth0", "4-20")
            + &allow("bound", tenant, "eth0", "5-7").replace("prepared", "bound")
            + &allow("gone", tenant, "gone0", "0")
            + &allow("one", other.number(), "eth0", "1-7")
            + "limits = { queues = 1 }\n"
            + EVERY_INTERFACE
    });
    let mut checker = Checker {
        file: VarlinkFile::read(BROKER_FILE),
        methods: BTreeSet::new(),
        errors: BTreeSet::new(),
    };
    let (mut client, mut operator) = (scene.client(), scene.operator());
    let acquire = |interface: &str, queue: u32| json!({ "interface": interface, "queues": [queue], "sockets": "prepared", "label": "a label" });

    // A lease whose fds went nowhere: it can be told of, and activated it cannot be.
    let lease = checker.call(&mut client, "Acquire", &acquire("eth0", 1));
    let number = json!({ "lease": lease["parameters"]["lease"] });
    checker.call(&mut client, "ListLeases", &json!({}));
    checker.call(&mut client, "Activate", &number);
    checker.call(&mut client, "Release", &number);

    // One that lives.
    let mut puppet = Puppet::start(&world, Side::Host, &scene.uid.user());
    let lease = puppet.acquire("eth0:2").unwrap();
    puppet.bind(lease).unwrap();
    let activated = puppet.activate(lease).unwrap();
    checker.check("Activate", &json!({ "parameters": activated }));
    let leases = checker.call(&mut client, "ListLeases", &json!({}));
    assert_eq!(
        leases["parameters"]["leases"][0]["queues"][0]["mode"], "copy",
        "{leases}"
    );
    for client in [&mut client, &mut operator] {
        checker.call(client, "ListInterfaces", &json!({}));
        for queue in [1, 99] {
            let explain = json!({ "interface": "eth0", "queues": [queue] });
            checker.call(client, "Explain", &explain);
        }
    }
    checker.call(
        &mut operator,
        "Explain",
        &json!({ "interface": "eth0", "queues": [1], "uid": 7, "gids": [7] }),
    );
    checker.call(&mut operator, "ListLeases", &json!({}));
    checker.call(&mut operator, "GetStatus", &json!({}));

    let binds = e2e::kernel::maps_rings_of_bound_sockets().unwrap();
    let only_there = if binds {
        bind_as_the_file_says(&mut checker, &scene);
        &["SocketKindUnsupported"][..]
    } else {
        let wish = json!({ "interface": "eth0", "queues": [5], "sockets": "bound" });
        checker.call(&mut client, "Acquire", &wish);
        checker.call(&mut client, "Bind", &json!({ "lease": 999 }));
        &["AlreadyBound", "UmemNotPopulated", "ZeroCopyUnavailable"]
    };

    // Every error that a client can bring about.
    let mut second = scene.client_of(&other);
    checker.call(&mut client, "Acquire", &acquire("eth1", 1));
    checker.call(&mut second, "Acquire", &acquire("eth0", 2));
    checker.call(&mut second, "Acquire", &acquire("eth0", 3));
    checker.call(&mut second, "Acquire", &acquire("eth0", 4));
    checker.call(&mut client, "Acquire", &acquire("eth0", 20));
    checker.call(&mut client, "Acquire", &acquire("gone0", 0));
    checker.call(&mut client, "Activate", &json!({ "lease": 999 }));
    checker.call(&mut client, "Activate", &json!({}));
    let number = json!({ "lease": activated["lease"] });
    // A monitor, and what it hears of a lease that moves to this process, which is root's.
    let mut monitor = scene.client();
    monitor
        .send(b"{\"method\":\"org.xskbroker.Broker.Monitor\",\"more\":true}\0")
        .unwrap();
    checker.check("Monitor", &monitor.receive().unwrap().unwrap());
    let to = |pid: u32| json!({ "lease": activated["lease"], "pid": pid, "pidfdInode": 1, "startTicks": 1 });
    checker.call(&mut client, "Transfer", &to(u32::MAX));
    checker.call(&mut client, "Transfer", &to(std::process::id()));
    let moved = puppet.transfer(activated["lease"].as_u64().unwrap(), std::process::id());
    checker.check("Transfer", &json!({ "parameters": moved.unwrap() }));
    checker.check("Monitor", &monitor.receive().unwrap().unwrap());
    checker.call(&mut operator, "Revoke", &number);
    let event = monitor.receive().unwrap().unwrap();
    assert_eq!(event["parameters"]["event"]["reason"], "revoked", "{event}");
    checker.check("Monitor", &event);
    checker.call(&mut operator, "Revoke", &number);
    checker.call(&mut client, "ListLeases", &json!({}));

    // A policy with a mistake, and one that gives little of what is held.
    let mut held = Puppet::start(&world, Side::Host, &scene.uid.user());
    held.hold("eth0:1");
    scene.broker.write_policy("[interface.eth0]\nxdp = 7\n").unwrap();
    checker.call(&mut operator, "Reload", &json!({}));
    let other = "[interface.eth0]\nqueue-lock = \"none\"\nreserved = \"1\"\n[interface.gone0]\n".to_owned();
    scene
        .broker
        .write_policy(&(other + &tenant_rule(scene.uid.number())))
        .unwrap();
    let told = checker.call(&mut operator, "Reload", &json!({ "revoke": true }));
    for list in ["warnings", "notAllowed", "interfaces"] {
        let list = &told["parameters"][list];
        assert!(!list.as_array().unwrap().is_empty(), "{told}");
    }
    checker.call(&mut operator, "ListLeases", &json!({}));

    let mut methods: BTreeSet<String> = checker.file.methods.keys().cloned().collect();
    if !binds {
        methods.remove("Bind");
    }
    assert_eq!(checker.methods, methods);
    let errors: BTreeSet<&str> = checker.file.errors.keys().map(String::as_str).collect();
    let seen: BTreeSet<&str> = checker.errors.iter().map(String::as_str).collect();
    // A rogue bind and a mode that is not allowed have tests of their own, a failure of the broker's own nobody can order.
    let unseen: BTreeSet<_> = errors.difference(&seen).copied().collect();
    let expected = ["BoundElsewhere", "Failed", "ModeNotAllowed"];
    assert_eq!(
        unseen,
        expected
            .iter()
            .chain(only_there)
            .copied()
            .collect::<BTreeSet<_>>()
    );
}

/// Sockets of kind `bound`, for which a client needs the fd of the umem.
fn bind_as_the_file_says(checker: &mut Checker, scene: &Scene<'_>) {
    let socket = scene.broker.paths().socket();
    let calls = || {
        let mut broker = Broker::connect_to(&socket).unwrap();
        let mut replies = Vec::new();
        let mut bind = |broker: &mut Broker, lease| {
            let reply = match broker.bind(lease) {
                Ok((reply, _sockets)) => json!({ "parameters": reply }),
                Err(CallError::Refused { cause, .. }) => serde_json::to_value(cause).unwrap(),
                Err(other) => panic!("{other}"),
            };
            replies.push(("Bind", reply));
        };
        let wish = Acquire::new("eth0:5".parse().unwrap(), SocketKind::Bound);
        let (acquired, memfd) = broker.acquire(&wish).unwrap();
        bind(&mut broker, acquired.lease);
        let bytes = usize::try_from(acquired.umem.unwrap().bytes()).unwrap();
        let _memory = Mapping::new(&memfd[0], 0, bytes, Prefault::Yes).unwrap();
        bind(&mut broker, acquired.lease);
        bind(&mut broker, acquired.lease);
        let wish = Acquire {
            mode: Some(ModeWish::ZeroCopy),
            ..Acquire::new("eth0:6".parse().unwrap(), SocketKind::Bound)
        };
        match broker.acquire(&wish) {
            Err(CallError::Refused { cause, .. }) => {
                replies.push(("Acquire", serde_json::to_value(cause).unwrap()));
            }
            other => panic!("{other:?}"),
        }
        replies.push(("Acquire", json!({ "parameters": acquired })));
        replies
    };
    let replies = scene.world.run_as(Side::Host, &scene.uid.user(), calls).unwrap();
    for (method, reply) in replies {
        checker.check(method, &reply);
    }
}

#[test]
fn errors_are_the_same_in_the_file_and_in_the_library() {
    let file = VarlinkFile::read(BROKER_FILE);
    for (name, members) in &file.errors {
        let sent = json!({ "error": format!("{INTERFACE}.{name}"), "parameters": file.sample(members) });
        let read: BrokerError =
            serde_json::from_value(sent.clone()).unwrap_or_else(|e| panic!("{name}: {e}"));
        assert_eq!(serde_json::to_value(&read).unwrap(), sent);
    }
    // serde knows all variants, and says so to whoever asks for another.
    let other = json!({ "error": "other", "parameters": {} });
    let error = serde_json::from_value::<BrokerError>(other)
        .unwrap_err()
        .to_string();
    let prefix = format!("{INTERFACE}.");
    let variants: BTreeSet<&str> = error
        .split('`')
        .filter_map(|word| word.strip_prefix(&prefix))
        .collect();
    let names: BTreeMap<_, _> = file.errors.keys().map(|name| (name.as_str(), ())).collect();
    assert_eq!(variants, names.into_keys().collect());
}
