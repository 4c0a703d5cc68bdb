//! `serve --dry-run` says what a start would say, and does nothing: where a start would be refused, and what would be held
//! back.

use e2e::broker::{BrokerProcess, cli};
use e2e::netlink::LinkState as Set;
use e2e::uids::Uid;
use e2e::world::{Side, World};

use crate::lease_scene::{PATIENCE, allow, leases, wait_until};
use crate::puppet::Puppet;
use crate::restart_scene::{dry_run, pieces};

fn policy(lock: &str, more: &str, uid: &Uid) -> String {
    format!("[interface.eth0]\nqueue-lock = \"{lock}\"\nreserved = \"0\"\n{more}\n")
        + &allow(uid.number(), "1-7")
}

#[test]
fn beside_a_broker_that_runs_it_says_so() {
    let world = World::new().unwrap();
    let alice = Uid::take().unwrap();
    let mut broker = BrokerProcess::start(&world, &policy("none", "", &alice)).unwrap();
    let mut holder = Puppet::start(&world, Side::Host, &alice.user());
    let lease = holder.hold("eth0:3");
    let is_start = |((kind, _), _): &(&(String, String), &(String, String))| kind == "start";
    for _ in 0..20 {
        let output = dry_run(&world, &broker, &["--json"]);
        assert!(
            output.stderr.contains("a broker is running on /run/xsk-broker"),
            "{output:?}"
        );
        let told = pieces(&output);
        let ((_, name), (action, why)) = told.iter().find(is_start).unwrap();
        assert_eq!(action, "refuse");
        assert!(
            name.contains("/run/xsk-broker already") && why.contains("if that broker were gone"),
            "{name}: {why}"
        );
        assert_eq!(told[&("lease".to_owned(), lease.to_string())].0, "take-over");
        // It was there for a moment only.
        assert_eq!(leases(&broker).len(), 1);
    }
    // By another run directory, too: what is pinned is the other one's.
    let uid = broker.uid().to_string();
    let mut arguments = vec![
        "serve",
        "--dry-run",
        "--json",
        "--policy",
        "/run/xsk-broker.toml",
        "--user",
        &uid,
    ];
    arguments.extend(["--run-dir", "/run/other", "--bpf-dir", "/run/bpf/xsk-broker"]);
    let output = cli(&world, None, &arguments).unwrap();
    assert!(
        output
            .stderr
            .contains("/run/bpf/xsk-broker is used by a broker that runs"),
        "{output:?}"
    );
    assert!(pieces(&output).iter().any(|piece| is_start(&piece)));
    assert!(!world.path("other").exists());
    broker.kill().unwrap();
    let output = dry_run(&world, &broker, &["--json"]);
    assert_eq!(output.stderr, "");
    assert!(!pieces(&output).iter().any(|piece| is_start(&piece)));
}

#[test]
fn where_a_start_would_be_refused_it_is_refused_alike() {
    let world = World::new().unwrap();
    let alice = Uid::take().unwrap();
    let mut broker = BrokerProcess::start(&world, &policy("none", "", &alice)).unwrap();
    broker.kill().unwrap();
    let dry_run_of = |uid: &str, run_dir: &str, bpf_dir: &str| {
        let arguments = [
            "serve",
            "--dry-run",
            "--policy",
            "/run/xsk-broker.toml",
            "--user",
            uid,
        ];
        let places = ["--run-dir", run_dir, "--bpf-dir", bpf_dir];
        cli(&world, None, &[&arguments[..], &places].concat()).unwrap()
    };
    let own = broker.uid().to_string();
    world.write("file", "", 0o644).unwrap();
    std::fs::create_dir(world.path("no-bpffs")).unwrap();
    for (uid, run_dir, bpf_dir, words) in [
        (
            "64099",
            "/run/xsk-broker",
            "/run/bpf/xsk-broker",
            "/run/xsk-broker is no directory of root's or of uid 64099",
        ),
        (
            "64099",
            "/run/none",
            "/run/bpf/xsk-broker",
            "/run/bpf/xsk-broker belongs to uid",
        ),
        (
            &*own,
            "/run/file",
            "/run/bpf/xsk-broker",
            "/run/file is no directory",
        ),
        (
            &*own,
            "/run/xsk-broker",
            "/run/xsk-broker",
            "is not on a BPF file system",
        ),
        // A mount that somebody has forgotten: neither is there.
        (
            &*own,
            "/run/xsk-broker",
            "/run/no-bpffs/xsk-broker",
            "is not on a BPF file system: mount one",
        ),
        (
            &*own,
            "/run/xsk-broker",
            "/run/none/xsk-broker",
            "is not on a BPF file system: mount one",
        ),
        (
            &*own,
            "/run/none/xsk-broker",
            "/run/bpf/xsk-broker",
            "cannot make /run/none/xsk-broker",
        ),
    ] {
        let output = dry_run_of(uid, run_dir, bpf_dir);
        assert_eq!((output.code, &*output.stdout), (Some(78), ""), "{output:?}");
        assert!(output.stderr.contains(words), "{words}: {output:?}");
    }
    assert!(!world.path("no-bpffs/xsk-broker").exists());
    let output = cli(&world, Some(&alice.user()), &["serve", "--dry-run"]).unwrap();
    assert_eq!(output.code, Some(77), "{output:?}");
}

#[test]
fn what_would_be_held_back_is_told() {
    let world = World::new().unwrap();
    let alice = Uid::take().unwrap();
    let mut broker = BrokerProcess::start(&world, &policy("placeholders", "", &alice)).unwrap();
    let mut holder = Puppet::start(&world, Side::Host, &alice.user());
    let lease = holder.hold("eth0:3");
    let index = world.device(Side::Host).index;
    broker.kill().unwrap();
    let why = |kind: &str| {
        let told = pieces(&dry_run(&world, &broker, &["--json"]));
        told[&(kind.to_owned(), "eth0".to_owned())].1.clone()
    };
    let held_back = why("device");
    assert!(
        held_back.contains(&format!("until lease {lease} ends")),
        "{held_back}"
    );
    assert!(!why("program").contains("nothing more is granted"));
    // The policy of today, and the host's own use of the device.
    broker
        .write_policy(&policy("placeholders", "xdp = \"generic\"", &alice))
        .unwrap();
    let misfit = why("program");
    assert!(misfit.contains("the policy says `xdp = \"generic\"`"), "{misfit}");
    broker.write_policy(&policy("placeholders", "", &alice)).unwrap();
    world.add_default_route(0, 10).unwrap();
    let misfit = why("program");
    assert!(misfit.contains("carries a default route"), "{misfit}");
    // A start says the same of the lease, and of the device.
    let told = pieces(&dry_run(&world, &broker, &["--json"]));
    let (action, of_lease) = &told[&("lease".to_owned(), lease.to_string())];
    assert_eq!(action, "take-over");
    broker.restart().unwrap();
    let not_allowed = leases(&broker)[0].not_allowed.clone().unwrap();
    assert!(
        not_allowed.starts_with("eth0: it carries a default route"),
        "{not_allowed}"
    );
    assert!(of_lease.ends_with(&not_allowed), "{of_lease}");
    let is_told = |line: &str| {
        let all = [
            "WARN",
            "eth0: it carries a default route",
            ": nothing more is granted there",
        ];
        all.iter().all(|words| line.contains(words)).then_some(())
    };
    broker.process().wait_stderr(PATIENCE, is_told).unwrap();
    // With the device goes the route. That is no trouble.
    world.netlink(Side::Host).set_link(index, Set::Down).unwrap();
    let is_told = |line: &str| {
        let all = ["INFO", "eth0: as the policy wants it again"];
        all.iter().all(|words| line.contains(words)).then_some(())
    };
    broker.process().wait_stderr(PATIENCE, is_told).unwrap();
    world.netlink(Side::Host).set_link(index, Set::Up).unwrap();
    broker.kill().unwrap();
    // A process that has an unbound socket.
    broker
        .write_policy(&policy("placeholders", "uplink = true", &alice))
        .unwrap();
    holder.close(lease);
    holder.kill();
    broker.restart().unwrap();
    let mut other = Puppet::start(&world, Side::Host, &alice.user());
    wait_until("one is out unbound", || other.acquire("eth0:4").is_ok());
    broker.kill().unwrap();
    let told = pieces(&dry_run(&world, &broker, &["--json"]));
    let tainted = &told[&("device".to_owned(), "eth0".to_owned())].1;
    assert!(
        tainted.contains(&format!("until process {} is gone", other.pid())),
        "{tainted}"
    );
}
