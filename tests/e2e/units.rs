//! The README's units for systemd: it can read them, and the capabilities that they leave are enough.

use std::path::Path;
use std::process::Command;

use e2e::binaries;
use e2e::broker::{BrokerProcess, Paths};
use e2e::service_manager::ServiceManager;
use e2e::skip;
use e2e::skip::Skip;
use e2e::uids::Uid;
use e2e::world::{Side, World};
use rustix::process::Signal;
use rustix::thread::CapabilitySet;

use crate::lease_scene::{PATIENCE, policy};
use crate::puppet::Puppet;

const NAMES: [&str; 3] = [
    "xsk-broker.service",
    "xsk-broker.socket",
    "xsk-broker-control.socket",
];
const ANALYZE: &str = "/usr/bin/systemd-analyze";
/// The first systemd that knows `Type=notify-reload`.
const NOTIFY_RELOAD: u32 = 253;

fn unit(name: &str) -> String {
    let readme = std::fs::read_to_string(binaries::paper("README.md").unwrap()).unwrap();
    let (_, rest) = readme.split_once(&format!("<!-- unit {name} -->")).unwrap();
    let (_, rest) = rest.split_once("```ini\n").unwrap();
    rest.split_once("```").unwrap().0.to_owned()
}

/// All values of a key, in the order of the lines.
fn values(unit: &str, key: &str) -> Vec<String> {
    let value = |line: &str| line.strip_prefix(&format!("{key}=")).map(str::to_owned);
    unit.lines().filter_map(value).collect()
}

#[test]
fn systemd_reads_the_units() {
    if !Path::new(ANALYZE).exists() {
        skip!(Skip::without("systemd-analyze"));
    }
    let version = Command::new(ANALYZE).arg("--version").output().unwrap();
    let version = String::from_utf8(version.stdout).unwrap();
    let version: u32 = version.split_whitespace().nth(1).unwrap().parse().unwrap();
    let directory = std::env::temp_dir().join(format!("xsk-broker-units-{}", std::process::id()));
    std::fs::create_dir(&directory).unwrap();
    for name in NAMES {
        // The program need not be installed; and an older systemd than they are for knows no better than `notify`.
        let mut text = unit(name).replace("/usr/local/sbin/xsk-broker", "/bin/true");
        if version < NOTIFY_RELOAD {
            text = text.replace("Type=notify-reload", "Type=notify");
        }
        std::fs::write(directory.join(name), text).unwrap();
    }
    let verified = Command::new(ANALYZE)
        .arg("verify")
        .args(NAMES.map(|name| directory.join(name)))
        .env("SYSTEMD_UNIT_PATH", format!("{}:", directory.display()))
        .output()
        .unwrap();
    std::fs::remove_dir_all(&directory).unwrap();
    let said = String::from_utf8_lossy(&verified.stderr);
    // Other units of this machine are none of ours.
    let ours: Vec<&str> = said.lines().filter(|line| line.contains("xsk-broker")).collect();
    assert!(verified.status.success() && ours.is_empty(), "{verified:?}");
}

#[test]
fn a_broker_with_what_the_units_leave_it_serves() {
    let service = unit("xsk-broker.service");
    let world = World::new().unwrap();
    let alice = Uid::take().unwrap();
    let manager = ServiceManager::new(&world).unwrap();
    let mut kept = CapabilitySet::empty();
    for name in values(&service, "CapabilityBoundingSet")
        .join(" ")
        .split_whitespace()
    {
        let name = name.strip_prefix("CAP_").unwrap();
        kept |= CapabilitySet::from_name(name).unwrap_or_else(|| panic!("no capability {name}"));
    }
    manager.bound_to(kept);
    manager.set("FDSTORE", &values(&service, "FileDescriptorStoreMax")[0]);
    let paths = Paths::new("xsk-broker");
    for (name, path, mode) in [
        ("xsk-broker.socket", paths.socket(), 0o666),
        ("xsk-broker-control.socket", paths.control_socket(), 0o600),
    ] {
        let socket = unit(name);
        assert_eq!(values(&socket, "ListenStream"), [path.display().to_string()]);
        assert_eq!(values(&socket, "SocketMode"), [format!("{mode:04o}")]);
        manager
            .listen(&values(&socket, "FileDescriptorName")[0], &path, mode)
            .unwrap();
    }
    let text =
        policy(&[(alice.number(), "1-7")]).replace("queue-lock = \"none\"", "queue-lock = \"placeholders\"");
    let tending = manager.tend().unwrap();
    let mut broker = BrokerProcess::builder()
        .service(manager.service())
        .start(&world, &text)
        .unwrap();
    let mut holder = Puppet::start(&world, Side::Host, &alice.user());
    let lease = holder.hold("eth0:3");
    let names = ["broker", "control", &format!("xsk-{lease}-3")];
    tending.wait(PATIENCE, |found| found == names).unwrap();
    assert_eq!(broker.cli(&["reload"]).unwrap().code, Some(0));
    // A restart of it is told from a stop.
    assert_eq!(values(&service, "RestartKillSignal"), ["SIGUSR1"]);
    broker.process().signal(Signal::USR1).unwrap();
    assert!(broker.wait().unwrap().success());
    broker.restart().unwrap();
    // Files in its directories are its own by now: the next start, as root again, gets on with them.
    broker.kill().unwrap();
    broker.restart().unwrap();
    Puppet::start(&world, Side::Host, &alice.user()).hold("eth0:4");
    assert!(broker.stop().unwrap().success());
}
