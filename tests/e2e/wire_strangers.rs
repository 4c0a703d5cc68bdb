//! A stranger learns nothing: neither which devices there are, nor what others hold, nor how to touch it.

use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;

use e2e::holder::Holder;
use e2e::raw_client::RawClient;
use e2e::uids::Uid;
use e2e::world::{Side, World};
use serde_json::{Value, json};

use crate::scene::{EVERY_INTERFACE, Scene, allow, tenant_rule};

fn acquire(interface: &str) -> Value {
    json!({ "interface": interface, "queues": [1], "sockets": "prepared" })
}

#[test]
fn a_device_that_exists_looks_like_one_that_does_not() {
    let world = World::builder().peers(3).build().unwrap();
    let stranger = Uid::take().unwrap();
    let scene = Scene::with_policy(&world, |tenant| {
        tenant_rule(tenant)
            + &allow("tenant-gone", tenant, "gone0", "*")
            + &format!(
                "[[deny]]\nname = \"not-you\"\nuser = {}\ninterface = \"eth1\"\nqueues = \"*\"\n",
                stranger.number()
            )
            // eth2 exists and has no section.
            + "[interface.eth0]\nqueue-lock = \"none\"\nreserved = \"7\"\n\
               [interface.eth1]\nqueue-lock = \"none\"\n[interface.gone0]\nqueue-lock = \"none\"\n"
    });
    let mut client = scene.client_of(&stranger);
    let mut said = |method: &str, interface: &str, parameters: &Value| {
        let reply = client.call(method, parameters).unwrap();
        reply.to_string().replace(interface, "IF")
    };
    for method in ["Acquire", "Explain"] {
        // Queue 7 is reserved, where there is a section.
        let both = |interface| {
            let mut call = acquire(interface);
            call["queues"] = json!([1, 7]);
            call
        };
        let expected = said(method, "none0", &both("none0"));
        assert!(
            expected.contains("the policy does not give this to uid"),
            "{expected}"
        );
        for interface in ["eth0", "eth1", "eth2", "gone0", "lo"] {
            assert_eq!(
                said(method, interface, &both(interface)),
                expected,
                "{method} {interface}"
            );
        }
    }
    drop(client);
    scene.finish();
}

#[test]
fn a_stranger_sees_and_touches_nothing_of_others() {
    let world = World::new().unwrap();
    let scene = Scene::new(&world);
    let mut holder = Holder::example(&world, Side::Host, &scene.uid.user(), "echo", &["eth0:3"]).unwrap();
    holder.wait_active().unwrap();
    let stranger = Uid::take().unwrap();
    let mut client = scene.client_of(&stranger);

    let leases = client.call("ListLeases", &json!({})).unwrap();
    assert_eq!(leases, json!({ "parameters": { "leases": [] } }));
    let interfaces = client.call("ListInterfaces", &json!({})).unwrap();
    assert_eq!(interfaces, json!({ "parameters": { "interfaces": [] } }));
    cannot_touch(&mut client, &scene);
    for method in ["GetStatus", "Revoke"] {
        for parameters in [json!({}), json!({ "lease": 1 }), json!({ "wrong": 1 })] {
            let reply = client.call(method, &parameters).unwrap();
            assert_eq!(
                reply["error"], "org.varlink.service.PermissionDenied",
                "{method} {parameters}"
            );
        }
    }
    for about in [
        json!({ "uid": scene.uid.number() }),
        json!({ "uid": stranger.number() }),
        json!({ "gids": [0] }),
    ] {
        let mut call = json!({ "interface": "eth0", "queues": [1] });
        call.as_object_mut()
            .unwrap()
            .extend(about.as_object().unwrap().clone());
        let reply = client.call("Explain", &call).unwrap();
        assert_eq!(reply["error"], "org.varlink.service.PermissionDenied", "{call}");
    }
    drop(client);
    holder.kill().unwrap();
    scene.finish();
}

/// A lease that is there and one that is not are the same to them, and the one that is there stays.
fn cannot_touch(client: &mut RawClient, scene: &Scene<'_>) {
    let mut said = |method: &str, lease: u32| {
        let reply = client.call(method, &json!({ "lease": lease })).unwrap();
        let number = lease.to_string();
        reply.to_string().replace(&number, "LEASE")
    };
    let missing = said("Activate", 777);
    assert!(missing.contains("org.xskbroker.Broker.NoSuchLease"), "{missing}");
    assert_eq!(said("Activate", 1), missing);
    assert_eq!(said("Release", 777), r#"{"parameters":{}}"#);
    assert_eq!(said("Release", 1), r#"{"parameters":{}}"#);
    let leases = scene.operator().call("ListLeases", &json!({})).unwrap();
    assert_eq!(leases["parameters"]["leases"][0]["lease"], 1, "{leases}");
    assert_eq!(leases["parameters"]["leases"][0]["state"], "active", "{leases}");
}

#[test]
fn another_process_of_the_holders_uid_sees_the_lease_and_cannot_touch_it() {
    let world = World::new().unwrap();
    let scene = Scene::new(&world);
    let mut holder = Holder::example(&world, Side::Host, &scene.uid.user(), "echo", &["eth0:3"]).unwrap();
    holder.wait_active().unwrap();
    let mut client = scene.client();
    let leases = client.call("ListLeases", &json!({})).unwrap();
    let lease = &leases["parameters"]["leases"][0];
    assert_eq!(lease["holder"]["pid"], holder.pid(), "{lease}");
    assert_eq!(lease["holder"]["uid"], scene.uid.number(), "{lease}");
    let interfaces = client.call("ListInterfaces", &json!({})).unwrap();
    assert_eq!(interfaces["parameters"]["interfaces"][0]["interface"], "eth0");
    cannot_touch(&mut client, &scene);
    // They are of one uid, so the queue may be told to be its own.
    let mut call = acquire("eth0");
    call["queues"] = json!([3]);
    let reply = client.call("Acquire", &call).unwrap();
    assert_eq!(reply["error"], "org.xskbroker.Broker.QueueBusy", "{reply}");
    drop(client);
    holder.kill().unwrap();
    scene.finish();
}

#[test]
fn explain_tells_of_ones_own_rules_only() {
    let world = World::new().unwrap();
    let other = Uid::take().unwrap();
    let scene = Scene::with_policy(&world, |tenant| {
        allow("secret-other", other.number(), "eth0", "4-5")
            + &tenant_rule(tenant)
            + &format!(
                "[[deny]]\nname = \"secret-deny\"\nuser = {tenant}\ninterface = \"eth0\"\nqueues = \"3\"\n"
            )
            + EVERY_INTERFACE
    });
    let mut client = scene.client();
    for (queue, granted) in [(1, true), (3, false), (4, false), (7, false)] {
        let call = json!({ "interface": "eth0", "queues": [queue] });
        let reply = client.call("Explain", &call).unwrap();
        assert_eq!(reply["parameters"]["granted"], granted, "{reply}");
        let rules = reply["parameters"]["rules"].as_array().unwrap();
        assert_eq!(rules.len(), 1, "{reply}");
        assert_eq!(rules[0]["rule"], "tenant");
        let text = reply.to_string();
        assert!(!text.contains("secret") && !text.contains("suggestion"), "{text}");
        let number = other.number().to_string();
        assert!(!text.contains(&number), "{text}");
    }
    drop(client);
    scene.finish();
}

#[test]
fn the_brokers_directories_are_closed() {
    let world = World::new().unwrap();
    let scene = Scene::new(&world);
    // So that there is a pin to be looked for.
    let mut tenant = scene.client();
    assert!(
        tenant
            .call("Acquire", &acquire("eth0"))
            .unwrap()
            .get("error")
            .is_none()
    );
    let paths = scene.broker.paths();
    for uid in [Uid::take().unwrap().user(), scene.uid.user()] {
        let denied = world.run_as(Side::Host, &uid, || {
            [
                UnixStream::connect(paths.control_socket()).err(),
                fs::read_dir(paths.bpf_dir()).err(),
                fs::File::open(paths.run_dir().join("lock")).err(),
                fs::write(paths.run_dir().join("mine"), "").err(),
                fs::remove_file(paths.socket()).err(),
                fs::rename(paths.socket(), paths.run_dir().join("mine")).err(),
            ]
        });
        for error in denied.unwrap() {
            assert_eq!(error.map(|error| error.kind()), Some(ErrorKind::PermissionDenied));
        }
    }
    // Not only because the fixture's bpffs is closed.
    let mode = |path: &str| fs::metadata(world.path(path)).unwrap().permissions().mode() & 0o7777;
    assert_eq!(mode("bpf/xsk-broker"), 0o700);
    assert_eq!(mode("xsk-broker/control.sock"), 0o600);
    assert_eq!(mode("xsk-broker/broker.sock"), 0o666);
    assert_eq!(mode("xsk-broker"), 0o755);
}
