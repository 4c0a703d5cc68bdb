//! `status` tells what this kernel lacks and what the broker does instead, and it tells the truth: held against the answers
//! of the kernel itself.

use e2e::kernel;
use e2e::raw_client::INTERFACE;
use e2e::world::World;
use serde_json::{Value, json};

use crate::bound_scene;
use crate::scene::{EVERY_INTERFACE, Scene, tenant_rule};

/// What `GetStatus` says of the kernel, by name.
fn probes(scene: &Scene<'_>) -> Vec<Value> {
    let reply = scene.operator().call("GetStatus", &json!({})).unwrap();
    reply["parameters"]["probes"].as_array().unwrap().clone()
}

#[test]
fn status_tells_each_fallback() {
    let world = World::new().unwrap();
    let scene = Scene::new(&world);
    let probes = probes(&scene);
    let told = |name: &str| {
        let probe = probes.iter().find(|probe| probe["name"] == name);
        probe.unwrap_or_else(|| panic!("{name}: {probes:?}"))["available"] == true
    };
    for (name, answer) in [
        ("SO_PEERPIDFD", kernel::has_peer_pidfd()),
        ("SO_PASSRIGHTS", kernel::has_passrights()),
        ("netdev xdp-features", kernel::has_netdev_family()),
        ("XDP_USE_SG", kernel::has_multi_buffer()),
        ("mmap of rings after bind", kernel::maps_rings_of_bound_sockets()),
    ] {
        assert_eq!(told(name), answer.unwrap(), "{name}");
    }
    for probe in &probes {
        let (name, available) = (probe["name"].as_str().unwrap(), &probe["available"]);
        // Not looked for under this policy; `kernel_lsm` tells of it.
        if name != "BPF LSM" {
            kernel::tell(name, if *available == true { "yes" } else { "no" }).unwrap();
        }
        // What is missing is told with what follows from it.
        let note = probe["note"].as_str().unwrap();
        assert!(note.len() > 20, "{probe}");
    }
    scene.finish();
}

#[test]
fn a_kind_that_the_kernel_is_too_old_for_is_refused_before_anything_is_made() {
    let world = World::new().unwrap();
    let scene = Scene::with_policy(&world, |uid| {
        bound_scene::allow(uid, "1-7", "") + &tenant_rule(uid) + EVERY_INTERFACE
    });
    let mut client = scene.client();
    let wish = json!({ "interface": "eth0", "queues": [1], "sockets": "bound" });
    let reply = client.call("Acquire", &wish).unwrap();
    match kernel::maps_rings_of_bound_sockets().unwrap() {
        true => {
            let lease = &reply["parameters"]["lease"];
            client.call("Release", &json!({ "lease": lease })).unwrap();
        }
        false => assert_eq!(
            reply["error"],
            format!("{INTERFACE}.SocketKindUnsupported"),
            "{reply}"
        ),
    }
    drop(client);
    scene.finish();
}
