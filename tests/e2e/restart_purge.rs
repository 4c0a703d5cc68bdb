//! `xsk-broker purge`, where sockets that a broker has handed out may still be unbound: what confines them, or says so, stays
//! until they cannot be bound any more.

use std::fs;

use e2e::broker::{BrokerProcess, Output, cli};
use e2e::lsm;
use e2e::skip;
use e2e::uids::{Uid, User};
use e2e::world::{Side, World};

use crate::lease_scene::{allow, eth0};
use crate::puppet::Puppet;
use crate::restart_scene::pieces;

fn policy(lock: &str, uid: &Uid) -> String {
    format!("[interface.eth0]\nqueue-lock = \"{lock}\"\nreserved = \"0\"\n") + &allow(uid.number(), "1-7")
}

fn purge(world: &World, more: &[&str]) -> Output {
    let arguments = [
        "purge",
        "--json",
        "--run-dir",
        "/run/xsk-broker",
        "--bpf-dir",
        "/run/bpf/xsk-broker",
    ];
    cli(world, None, &[&arguments, more].concat()).unwrap()
}

/// What is done about one piece, whether it is done or only told.
fn action(world: &World, kind: &str, name: &str) -> (String, String) {
    let key = (kind.to_owned(), name.to_owned());
    let told = pieces(&purge(world, &["--dry-run"])).remove(&key).unwrap();
    let done = pieces(&purge(world, &[])).remove(&key).unwrap();
    assert_eq!(told, done);
    done
}

#[test]
fn a_device_stays_tainted_while_its_process_lives() {
    let world = World::new().unwrap();
    let alice = Uid::take().unwrap();
    let mut broker = BrokerProcess::start(&world, &policy("placeholders", &alice)).unwrap();
    let mut holder = Puppet::start(&world, Side::Host, &alice.user());
    holder.acquire("eth0:3").unwrap();
    broker.kill().unwrap();
    let name = format!("unbound-{}", world.device(Side::Host).index);
    let (done, why) = action(&world, "file", &name);
    assert_eq!(done, "leave");
    assert!(why.contains(&format!("process {}", holder.pid())), "{why}");
    // Nothing else is left, and it is what the next broker goes by.
    broker.restart().unwrap();
    assert_eq!(eth0(&broker).tainted_by, Some(holder.pid()));
    broker.kill().unwrap();
    holder.kill();
    assert_eq!(action(&world, "file", &name).0, "remove");
    broker.restart().unwrap();
    assert_eq!(eth0(&broker).tainted_by, None);
    assert!(broker.stop().unwrap().success());
}

#[test]
fn the_lock_lsm_stays_while_a_ticket_of_it_does() {
    if let Err(skip) = lsm::is_in_force() {
        skip!(skip);
    }
    let world = World::new().unwrap();
    let alice = Uid::take().unwrap();
    let mut broker = BrokerProcess::start(&world, &policy("lsm", &alice)).unwrap();
    let pins = || {
        let entries = fs::read_dir("/run/bpf/xsk-broker").unwrap();
        entries
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .filter(|name| name.starts_with("lsm"))
            .count()
    };
    let pins = || world.run_in(Side::Host, pins).unwrap();
    assert_eq!(pins(), 4);
    // All that left is bound: the tickets are forgotten.
    let mut holder = Puppet::start(&world, Side::Host, &alice.user());
    holder.hold("eth0:3");
    broker.kill().unwrap();
    let (done, why) = action(&world, "pin", "lsm");
    assert_eq!((done.as_str(), pins()), ("remove", 0), "{why}");
    drop(holder);

    broker.restart().unwrap();
    let mut holder = Puppet::start(&world, Side::Host, &alice.user());
    holder.acquire("eth0:4").unwrap();
    broker.kill().unwrap();
    let (done, why) = action(&world, "pin", "lsm");
    assert_eq!((done.as_str(), pins()), ("leave", 4), "{why}");
    assert!(why.contains("may be unbound still"), "{why}");
}

/// One table for all commands.
#[test]
fn exit_codes_say_what_is_in_the_way() {
    let world = World::new().unwrap();
    let alice = Uid::take().unwrap();
    world.write("file", "", 0o644).unwrap();
    let purge = |user: Option<&User>, run_dir: &str, bpf_dir: &str| {
        let arguments = ["purge", "--run-dir", run_dir, "--bpf-dir", bpf_dir];
        let dry = cli(&world, user, &[&arguments[..], &["--dry-run"]].concat()).unwrap();
        let done = cli(&world, user, &arguments).unwrap();
        assert_eq!((dry.code, &dry.stderr), (done.code, &done.stderr));
        done
    };
    let nothing = purge(None, "/run/none", "/run/bpf/none");
    assert_eq!(
        (nothing.code, &*nothing.stdout),
        (Some(0), "nothing is left\n"),
        "{nothing:?}"
    );
    assert!(nothing.stderr.contains("there is no /run/none"), "{nothing:?}");
    assert!(!world.path("none").exists());
    for (run_dir, bpf_dir, words) in [
        ("/run/file", "/run/bpf/none", "/run/file is no directory"),
        ("/run/none", "/run", "/run is not on a BPF file system"),
    ] {
        let wrong = purge(None, run_dir, bpf_dir);
        assert_eq!((wrong.code, &*wrong.stdout), (Some(78), ""), "{wrong:?}");
        assert!(wrong.stderr.contains(words), "{wrong:?}");
    }
    let denied = purge(Some(&alice.user()), "/run/none", "/run/bpf/none");
    assert_eq!(denied.code, Some(77), "{denied:?}");
    let _broker = BrokerProcess::start(&world, &policy("none", &alice)).unwrap();
    for (run_dir, bpf_dir) in [
        ("/run/xsk-broker", "/run/bpf/none"),
        ("/run/none", "/run/bpf/xsk-broker"),
    ] {
        let busy = purge(None, run_dir, bpf_dir);
        assert_eq!((busy.code, &*busy.stdout), (Some(75), ""), "{busy:?}");
    }
}
