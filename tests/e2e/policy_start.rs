//! A broker with a wrong policy, or in a wrong place, never starts: exit code 78, and words that say what to do.

use std::path::Path;
use std::process::Command;

use e2e::broker::{BrokerProcess, Output, Paths, cli, start_cli};
use e2e::process::Process;
use e2e::raw_client::PATIENCE;
use e2e::skip;
use e2e::skip::Skip;
use e2e::uids::{Uid, User};
use e2e::world::{Side, World};
use rustix::process::Signal;

use crate::scene::{EVERY_INTERFACE, Scene, tenant_rule};

const SHELL: &str = "/bin/sh";
/// EX_CONFIG
const WRONG_SETUP: i32 = 78;
/// EX_NOPERM
const NOT_ALLOWED: i32 = 77;

/// `serve` as somebody, with the default policy of the fixture and these other arguments. It is expected to end.
fn serve(world: &World, user: Option<&User>, name: &str, arguments: &[&str]) -> Output {
    let paths = Paths::new(name);
    let [policy, run_dir, bpf_dir] =
        [paths.policy(), paths.run_dir(), paths.bpf_dir()].map(|path| path.display().to_string());
    let mut all = vec!["serve", "--policy", &policy];
    for (option, value) in [("--run-dir", &run_dir), ("--bpf-dir", &bpf_dir)] {
        if !arguments.contains(&option) {
            all.extend([option, value.as_str()]);
        }
    }
    all.extend(arguments);
    cli(world, user, &all).unwrap()
}

fn refuses(output: &Output, words: &[&str]) {
    assert_eq!(output.code, Some(WRONG_SETUP), "{output:?}");
    for words in words {
        assert!(
            output.stderr.contains(words),
            "{words:?} is not in:\n{}",
            output.stderr
        );
    }
    assert_eq!(output.stdout, "");
    assert!(!output.stderr.contains("panic"), "{}", output.stderr);
}

#[test]
fn a_wrong_policy_never_starts_the_broker() {
    let world = World::new().unwrap();
    let good = tenant_rule(64_099) + EVERY_INTERFACE;
    let cases = [
        ("[interface.eth0\n".to_owned(), ":1:", "error"),
        (
            good.replace("queues = \"1-3\"", "queues = \"3-1\""),
            ":5:10",
            "write 1-3",
        ),
        (good.replace("queues =", "queue ="), ":5:1", "`queues`"),
        (good.replace("interface = \"eth0\"\n", ""), ":1:1", "interface"),
        (good.replace("user = 64099\n", ""), ":1:1", "user"),
        (good.replace("\"prepared\"", "\"naked\""), ":6:12", "prepared"),
        (
            good.replace("queue-lock = \"none\"", "queue-lock = \"nnone\""),
            ":8:14",
            "did you mean `none`",
        ),
        (good.clone() + "[[deny]]\n", ":9:1", "name"),
        (good.clone() + "\u{0}", ":9:", ""),
        (good.clone() + &"[".repeat(60_000), ":9:", ""),
        (good.clone() + &good, ":", "tenant"),
    ];
    for (policy, place, words) in cases {
        let mut broker = BrokerProcess::builder().launch(&world, &policy).unwrap();
        let status = broker.wait().unwrap();
        let shown: String = policy.chars().take(400).collect();
        let stderr = broker.process().stderr().join("\n");
        assert_eq!(status.code(), Some(WRONG_SETUP), "{shown}\n{stderr}");
        let place = format!("/run/xsk-broker.toml{place}");
        assert!(
            stderr.contains(&place) && stderr.contains(words),
            "{place} {words}:\n{shown}\n{stderr}"
        );
        assert!(!stderr.contains("panic"), "{stderr}");
        assert_eq!(broker.process().stdout(), Vec::<String>::new());
        // `check` says the same.
        let checked = cli(&world, None, &["check", "/run/xsk-broker.toml"]).unwrap();
        assert_eq!(checked.code, Some(WRONG_SETUP), "{checked:?}");
        assert!(checked.stderr.contains(&place), "{checked:?}");
        // Nothing was made.
        assert!(!world.path("xsk-broker").exists() && !world.path("bpf/xsk-broker").exists());
    }
    let missing = serve(&world, None, "none", &["--user", "64099"]);
    refuses(&missing, &["/run/none.toml"]);
}

#[test]
fn whoever_may_write_the_policy_would_be_the_policy() {
    let world = World::new().unwrap();
    let policy = tenant_rule(64_099) + EVERY_INTERFACE;
    for mode in [0o666, 0o664, 0o646] {
        world.write("open.toml", &policy, mode).unwrap();
        let output = serve(&world, None, "open", &["--user", "64099"]);
        refuses(
            &output,
            &[
                "/run/open.toml",
                "chmod go-w /run/open.toml",
                "install -D -o root -g root -m 0644",
            ],
        );
    }
    world.write("open.toml", &policy, 0o644).unwrap();
    std::os::unix::fs::chown(world.path("open.toml"), Some(64_098), None).unwrap();
    let output = serve(&world, None, "open", &["--user", "64099"]);
    refuses(&output, &["/run/open.toml", "chown root:root /run/open.toml"]);
    // `check` looks at policies that are not in place yet.
    let checked = cli(&world, None, &["check", "/run/open.toml"]).unwrap();
    assert_eq!(checked.code, Some(0), "{checked:?}");
    assert!(checked.stderr.contains("warning"), "{checked:?}");
}

#[test]
fn only_root_starts_it_and_it_ends_as_somebody_else() {
    let world = World::new().unwrap();
    world
        .write("x.toml", &(tenant_rule(64_099) + EVERY_INTERFACE), 0o644)
        .unwrap();
    let uid = Uid::take().unwrap();
    let output = serve(&world, Some(&uid.user()), "x", &["--user", "64099"]);
    assert_eq!(output.code, Some(NOT_ALLOWED), "{output:?}");
    assert!(output.stderr.contains("must be started by root"), "{output:?}");
    let output = serve(&world, None, "x", &["--user", "no-such-user-here"]);
    let line = "useradd --system --no-create-home --shell /usr/sbin/nologin no-such-user-here";
    refuses(&output, &["no user no-such-user-here", line]);
    for root in ["root", "0"] {
        refuses(&serve(&world, None, "x", &["--user", root]), &["is root"]);
    }
    assert!(!world.path("x").exists() && !world.path("bpf/x").exists());
}

#[test]
fn warnings_are_fatal_if_wanted() {
    let world = World::new().unwrap();
    let policy = tenant_rule(64_099).replace("64099", "\"no-such-user-here\"") + EVERY_INTERFACE;
    world.write("x.toml", &policy, 0o644).unwrap();
    let output = serve(&world, None, "x", &["--user", "64099", "--strict"]);
    refuses(
        &output,
        &["/run/x.toml:3:8", "no user", "--strict: the policy has 1 warning"],
    );
}

#[test]
fn two_brokers_never_share_their_directories() {
    let world = World::new().unwrap();
    let scene = Scene::new(&world);
    // With another user the directory itself is refused.
    let output = serve(&world, None, "xsk-broker", &["--user", "64099"]);
    refuses(
        &output,
        &["/run/xsk-broker is no directory of root's or of uid 64099"],
    );
    let uid = scene.broker.uid().to_string();
    let output = serve(&world, None, "xsk-broker", &["--user", &uid]);
    refuses(
        &output,
        &[
            "a broker is running on /run/xsk-broker already",
            "--run-dir and --bpf-dir",
        ],
    );
    // Nor half of them: to a second one the first one's pins would look like a dead broker's.
    let output = serve(
        &world,
        None,
        "xsk-broker",
        &["--user", &uid, "--run-dir", "/run/second"],
    );
    refuses(
        &output,
        &["/run/bpf/xsk-broker is used by a broker that runs", "--bpf-dir"],
    );
    // Where nothing is mounted it is said what to mount.
    let arguments = [
        "--user",
        &uid,
        "--run-dir",
        "/run/second",
        "--bpf-dir",
        "/run/none/xsk",
    ];
    refuses(
        &serve(&world, None, "xsk-broker", &arguments),
        &["mount -t bpf bpf"],
    );
    assert!(!world.path("second").exists());
    // The first one's sockets are still its own: it is asked over them.
    scene.finish();
}

/// What is said to be missing is all that is.
#[test]
fn the_mount_that_it_names_is_one_that_it_starts_with() {
    if !Path::new(SHELL).exists() {
        skip!(Skip::without("sh"));
    }
    let world = World::new().unwrap();
    world
        .write("x.toml", &(tenant_rule(64_099) + EVERY_INTERFACE), 0o644)
        .unwrap();
    let elsewhere = ["--user", "64099", "--bpf-dir", "/run/of/its/own"];
    let told = serve(&world, None, "x", &elsewhere);
    let command = "mkdir -p /run/of/its/own && mount -t bpf bpf /run/of/its/own";
    refuses(&told, &[command]);
    let mut shell = Command::new(SHELL);
    shell.args(["-c", command]);
    let mut shell = Process::spawn(world.namespace(Side::Host), None, shell).unwrap();
    assert!(shell.wait(PATIENCE).unwrap().success(), "{}", shell.last_words());
    let policy = ["serve", "--policy", "/run/x.toml", "--run-dir", "/run/x"];
    let mut broker = start_cli(&world, None, &[&policy[..], &elsewhere].concat()).unwrap();
    let serves = |line: &str| line.contains("\"started\"").then_some(());
    broker.wait_stdout(PATIENCE, serves).unwrap();
    broker.signal(Signal::TERM).unwrap();
    assert!(
        broker.wait(PATIENCE).unwrap().success(),
        "{}",
        broker.last_words()
    );
}

#[test]
fn a_start_that_comes_to_nothing_leaves_nothing() {
    let world = World::new().unwrap();
    world
        .write("x.toml", &(tenant_rule(64_099) + EVERY_INTERFACE), 0o644)
        .unwrap();
    let with = |more: &[&str]| serve(&world, None, "x", &[&["--user", "64099"], more].concat());
    let is_left = || [world.path("x"), world.path("bpf/x"), world.path("no-bpffs")].map(|path| path.exists());
    for (more, words) in [
        (
            ["--control-socket", "/run/none/control.sock"],
            "/run/none/control.sock",
        ),
        (["--audit-log", "/run/none/audit.log"], "/run/none/audit.log"),
        (["--bpf-dir", "/run/no-bpffs"], "mount -t bpf bpf"),
        (["--bpf-dir", "/run/none/bpffs"], "mount -t bpf bpf"),
    ] {
        refuses(&with(&more), &[words]);
        assert_eq!(is_left(), [false; 3], "{words}");
    }
    // What was there before stays, with what is in it.
    std::fs::create_dir(world.path("x")).unwrap();
    std::fs::write(world.path("x/of-somebody"), "").unwrap();
    refuses(&with(&["--bpf-dir", "/run/no-bpffs"]), &["mount -t bpf bpf"]);
    assert_eq!(is_left(), [true, false, false]);
    assert!(world.path("x/of-somebody").exists());
}
