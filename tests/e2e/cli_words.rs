//! What the command line prints, and how it ends.

use e2e::binaries;
use e2e::broker::{Output, cli};
use e2e::holder::Holder;
use e2e::uids::Uid;
use e2e::world::{Side, World};
use serde_json::{Value, json};

use crate::scene::{EVERY_INTERFACE, Scene, allow, tenant_rule};

const VERBS: [&str; 8] = [
    "serve", "check", "explain", "list", "status", "grant", "revoke", "monitor",
];

fn ends(output: &Output, code: i32, words: &str) {
    assert_eq!(output.code, Some(code), "{output:?}");
    let text = format!("{}{}", output.stdout, output.stderr);
    assert!(text.contains(words), "{words:?} is not in:\n{text}");
    assert!(!text.contains("panic"), "{text}");
}

#[test]
fn help_teaches() {
    let world = World::new().unwrap();
    let help = cli(&world, None, &["--help"]).unwrap();
    ends(&help, 0, "Exit codes:");
    for verb in VERBS {
        assert!(
            help.stdout
                .lines()
                .any(|line| line.trim_start().starts_with(verb)),
            "{verb}"
        );
        let help = cli(&world, None, &[verb, "--help"]).unwrap();
        ends(&help, 0, "Usage: ");
        // A line on what it does, and then a paragraph or an example.
        let (told, _) = help.stdout.split_once("Usage: ").unwrap();
        assert!(
            told.lines().filter(|line| !line.is_empty()).count() >= 2,
            "{told}"
        );
        for wrong in [&[verb, "--no-such-option"][..], &[verb, "a", "b", "c", "d"]] {
            assert_eq!(cli(&world, None, wrong).unwrap().code, Some(2), "{wrong:?}");
        }
    }
    for verb in ["explain", "grant"] {
        ends(
            &cli(&world, None, &[verb, "--help"]).unwrap(),
            0,
            "Example: xsk-broker",
        );
    }
    ends(
        &cli(&world, None, &["exec", "--help"]).unwrap(),
        0,
        "LISTEN_FDNAMES",
    );
    for wrong in [
        &[][..],
        &["lists"],
        &["explain", "eth0"],
        &["grant", "eth0:2"],
        &["revoke", "one"],
    ] {
        assert_eq!(cli(&world, None, wrong).unwrap().code, Some(2), "{wrong:?}");
    }
    ends(&cli(&world, None, &["--version"]).unwrap(), 0, "xsk-broker ");
}

#[test]
fn the_shipped_policy_is_good() {
    let world = World::new().unwrap();
    let text = std::fs::read_to_string(binaries::paper("policy.example.toml").unwrap()).unwrap();
    let path = world.write("example.toml", &text, 0o644).unwrap();
    let path = path.to_str().unwrap();
    ends(&cli(&world, None, &["check", path]).unwrap(), 0, "good");
    let output = cli(&world, None, &["check", "--json", path]).unwrap();
    let checked: Value = serde_json::from_str(&output.stdout).unwrap();
    assert_eq!(
        (output.code, &checked["ok"]),
        (Some(0), &true.into()),
        "{output:?}"
    );
    let explain = ["explain", "--policy", path, "--user", "0", "eth0:2"];
    assert!(matches!(cli(&world, None, &explain).unwrap().code, Some(0 | 77)));
}

#[test]
fn every_end_has_its_code() {
    let world = World::new().unwrap();
    for command in [
        &["list"][..],
        &["status"],
        &["explain", "eth0:1"],
        &["revoke", "1"],
    ] {
        ends(&cli(&world, None, command).unwrap(), 69, "/run/xsk-broker/");
    }
    ends(
        &cli(
            &world,
            None,
            &["grant", "eth0:1", "--", "/run/bin/xsk-broker", "--version"],
        )
        .unwrap(),
        69,
        "broker.sock",
    );

    let other = Uid::take().unwrap();
    let scene = Scene::with_policy(&world, |tenant| {
        tenant_rule(tenant) + &allow("other", other.number(), "eth0", "3-20") + EVERY_INTERFACE
    });
    let broker = &scene.broker;
    let (tenant, other) = (scene.uid.user(), other.user());
    ends(&broker.cli(&["list"]).unwrap(), 0, "no leases");
    let mut holder = Holder::example(&world, Side::Host, &tenant, "echo", &["eth0:3"]).unwrap();
    holder.wait_active().unwrap();

    let grant = |target: &'static str| ["grant", target, "--", "/run/bin/xsk-broker", "--version"];
    ends(
        &broker.cli_as(&other, &grant("eth0:3")).unwrap(),
        75,
        "held by another lease",
    );
    ends(&broker.cli_as(&other, &grant("eth0:2")).unwrap(), 77, "eth0:2");
    ends(
        &broker.cli_as(&other, &grant("eth0:20")).unwrap(),
        78,
        "has no queue 20",
    );
    ends(&broker.cli_as(&other, &grant("eth0:4")).unwrap(), 0, "");
    ends(
        &broker
            .cli_as(&other, &["grant", "eth0:4", "--", "/no/such"])
            .unwrap(),
        1,
        "/no/such",
    );
    for command in [
        &["status"][..],
        &["revoke", "1"],
        &["explain", "--user", "0", "eth0:1"],
    ] {
        ends(&broker.cli_as(&tenant, command).unwrap(), 77, "control.sock");
    }
    ends(
        &broker.cli_as(&tenant, &["explain", "eth0:1"]).unwrap(),
        0,
        "granted by rule tenant",
    );
    ends(
        &broker.cli_as(&tenant, &["explain", "eth0:4"]).unwrap(),
        77,
        "refused",
    );
    let uid = tenant.uid().to_string();
    ends(
        &broker.cli(&["explain", "--user", &uid, "eth0:1"]).unwrap(),
        0,
        "granted by rule tenant",
    );
    ends(
        &broker.cli(&["explain", "--user", &uid, "eth0:9"]).unwrap(),
        77,
        "queues = \"1-3,9\"",
    );
    ends(&broker.cli_as(&other, &["list"]).unwrap(), 0, "");
    ends(
        &broker.cli(&["revoke", "999"]).unwrap(),
        1,
        "there is no lease 999, or none any more: `xsk-broker list` shows those that there are",
    );
    ends(
        &broker.cli(&["revoke", "eth0:1"]).unwrap(),
        2,
        "a lease is named by its number, as the first column of `xsk-broker list` shows it",
    );
    ends(
        &broker.cli(&["revoke", "1"]).unwrap(),
        75,
        "lease 1 of eth0:3 has ended",
    );
    ends(&broker.cli(&["list"]).unwrap(), 0, "lingering");
    holder.kill().unwrap();
    scene.finish();
}

/// Without what time and the device's traffic change.
fn timeless(mut reply: Value) -> Value {
    let remove = |value: &mut Value, name: &str| {
        value.as_object_mut().unwrap().remove(name);
    };
    remove(&mut reply, "uptimeMs");
    remove(&mut reply, "engineCpuUs");
    remove(&mut reply, "connections");
    if let Some(quotas) = reply.get_mut("quotas") {
        // Of connections that come and go.
        let stays = |quota: &Value| {
            !matches!(
                quota["resource"].as_str(),
                Some("connections" | "requests" | "unread-fds")
            )
        };
        quotas.as_array_mut().unwrap().retain(stays);
    }
    for lease in reply["leases"].as_array_mut().into_iter().flatten() {
        remove(lease, "ageMs");
        for queue in lease["queues"].as_array_mut().into_iter().flatten() {
            remove(queue, "counters");
        }
    }
    reply
}

#[test]
fn json_is_the_reply_unchanged_and_tables_align() {
    let world = World::new().unwrap();
    let other = Uid::take().unwrap();
    let long = "a-rule-with-quite-a-long-name";
    let scene = Scene::with_policy(&world, |tenant| {
        tenant_rule(tenant) + &allow(long, other.number(), "eth0", "4") + EVERY_INTERFACE
    });
    let mut holders: Vec<_> = [(&scene.uid, "eth0:3"), (&other, "eth0:4")]
        .map(|(uid, target)| {
            let holder = Holder::example(&world, Side::Host, &uid.user(), "echo", &[target]).unwrap();
            holder.wait_active().unwrap();
            holder
        })
        .into();
    let mut operator = scene.operator();
    let mut same = |arguments: &[&str], line: usize, method: &str, parameters: Value| {
        let output = scene.broker.cli(arguments).unwrap();
        let printed: Value = serde_json::from_str(output.stdout.lines().nth(line).unwrap()).unwrap();
        let reply = operator.call(method, &parameters).unwrap()["parameters"].clone();
        if method == "ListInterfaces" {
            // Packets of the host's own arrive when they like.
            assert_eq!(printed["interfaces"][0]["held"], reply["interfaces"][0]["held"]);
        } else {
            assert_eq!(timeless(printed), timeless(reply), "{arguments:?}");
        }
        output
    };
    same(&["list", "--json"], 0, "ListLeases", json!({}));
    same(&["status", "--json"], 0, "GetStatus", json!({}));
    same(&["status", "--json"], 1, "ListInterfaces", json!({}));
    let uid = scene.uid.number();
    for queue in [1, 9] {
        let target = format!("eth0:{queue}");
        let about = json!({ "interface": "eth0", "queues": [queue], "uid": uid, "gids": [uid] });
        let user = uid.to_string();
        same(
            &["explain", "--json", "--user", &user, &target],
            0,
            "Explain",
            about,
        );
    }

    let list = scene.broker.cli(&["list"]).unwrap().stdout;
    let lines: Vec<&str> = list.lines().collect();
    assert_eq!(lines.len(), 3, "{list}");
    for heading in ["QUEUE", "HOLDER", "RULE", "SOCKET", "MODE", "LOCK", "STATE"] {
        let start = lines[0].find(heading).unwrap();
        for line in &lines[1..] {
            assert!(
                line[..start].ends_with("  ") && !line[start..].starts_with(' '),
                "{heading}:\n{list}"
            );
        }
    }
    for heading in ["LEASE", "AGE", "REDIRECTED", "DROPPED"] {
        let end = lines[0].find(heading).unwrap() + heading.len();
        for line in &lines[1..] {
            let rest = &line[end..];
            assert!(
                !line[..end].ends_with(' ') && (rest.is_empty() || rest.starts_with("  ")),
                "{heading}:\n{list}"
            );
        }
    }
    // One's own, to others than root.
    let own = scene.broker.cli_as(&other.user(), &["list"]).unwrap().stdout;
    assert!(own.contains(long) && !own.contains("tenant"), "{own}");

    let output = scene.broker.cli(&["revoke", "--json", "1"]).unwrap();
    let printed: Value = serde_json::from_str(&output.stdout).unwrap();
    assert_eq!(printed["lease"]["lease"], 1, "{output:?}");
    for holder in &mut holders {
        holder.kill().unwrap();
    }
    drop(operator);
    scene.finish();
}

/// What no broker could give is wrong usage, as clap's own complaints are.
#[test]
fn what_cannot_be_asked_for_is_wrong_usage() {
    let world = World::new().unwrap();
    for arguments in [
        &["grant", "eth0:1", "--direction", "rx", "--", "true"][..],
        &["grant", "eth0:1", "--ring-entries", "3", "--", "true"],
        &["explain", "eth0:1", "--kind", "bound", "--chunks", "3"],
        &["grant", "eth0", "--", "true"],
        &["frobnicate"],
    ] {
        let output = cli(&world, None, arguments).unwrap();
        assert_eq!(output.code, Some(2), "{arguments:?}: {output:?}");
    }
}

/// It is there for as long as it is used, whatever the policy names.
#[test]
fn status_shows_a_program_whose_section_is_gone() {
    let world = World::new().unwrap();
    let scene = Scene::new(&world);
    let mut holder = Holder::example(&world, Side::Host, &scene.uid.user(), "echo", &["eth0:3"]).unwrap();
    holder.wait_active().unwrap();
    let without = "[interface.eth9]\n".to_owned() + &tenant_rule(scene.uid.number());
    scene.broker.write_policy(&without).unwrap();
    assert_eq!(scene.broker.cli(&["reload"]).unwrap().code, Some(0));
    let status = scene.broker.cli(&["status"]).unwrap().stdout;
    let note = "eth0: nothing more is granted there until its leases have ended: no section [interface.eth0] names it\n";
    assert!(status.contains(note), "{status}");
    assert!(
        status
            .lines()
            .any(|line| line.starts_with("eth0 ") && line.contains("native")),
        "{status}"
    );
    holder.kill().unwrap();
}
