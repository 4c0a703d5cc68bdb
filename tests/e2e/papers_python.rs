//! The Python client in the README works as it stands there.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use e2e::binaries;
use e2e::process::Process;
use e2e::skip;
use e2e::skip::Skip;
use e2e::uids::{Uid, User};
use e2e::world::{Side, World};
use serde_json::Value;

use crate::scene::Scene;

const PYTHON: &str = "/usr/bin/python3";

/// The README's script.
fn script() -> String {
    let readme = std::fs::read_to_string(binaries::paper("README.md").unwrap()).unwrap();
    let between = |text: &str, begin: &str, end: &str| {
        let (_, rest) = text.split_once(begin).unwrap();
        rest.split_once(end).unwrap().0.to_owned()
    };
    let part = between(&readme, "<!-- python-client -->", "<!-- /python-client -->");
    between(&part, "```python\n", "```")
}

fn start(world: &World, user: &User, script: &str) -> Process {
    let mut command = Command::new(PYTHON);
    // Isolated: the standard library alone.
    command.env_clear().args(["-I", "-c", script]);
    Process::spawn(world.namespace(Side::Host), Some(user), command).unwrap()
}

#[test]
fn the_readmes_python_client_gets_a_socket() {
    if !Path::new(PYTHON).exists() {
        skip!(Skip::without("python3"));
    }
    let world = World::new().unwrap();
    let scene = Scene::new(&world);
    let script = script();
    assert!(script.lines().count() <= 30, "it is to be a short one");

    let mut client = start(&world, &scene.uid.user(), &script);
    let status = client.wait(Duration::from_secs(20)).unwrap();
    assert!(status.success(), "{}", client.last_words());
    let lines = client.stdout();
    let lease: Value = serde_json::from_str(lines[0].strip_prefix("lease ").unwrap()).unwrap();
    assert_eq!(
        (&lease["lease"], &lease["interface"], &lease["rule"]),
        (&1.into(), &"eth0".into(), &"tenant".into())
    );
    assert_eq!(
        lines[1],
        format!("queue 2 family {}", rustix::net::AddressFamily::XDP.as_raw())
    );
    // The lease ended with the process.
    let ended = |line: &Value| line["event"] == "ended" && line["reason"] == "holder-exited";
    scene.broker.wait_audit(Duration::from_secs(20), ended).unwrap();

    let stranger = Uid::take().unwrap();
    let mut refused = start(&world, &stranger.user(), &script);
    assert_eq!(refused.wait(Duration::from_secs(20)).unwrap().code(), Some(1));
    let words = refused.stderr().join("\n");
    assert!(
        words.starts_with("org.xskbroker.Broker.Denied: eth0:2: the policy"),
        "{words}"
    );
    scene.finish();
}
