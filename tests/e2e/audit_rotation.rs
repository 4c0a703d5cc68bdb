//! The audit log's file is rotated: lines go on to the next one, once a reload has said so.

use std::os::unix::fs::chown;
use std::path::{Path, PathBuf};

use e2e::broker::BrokerProcess;
use e2e::uids::Uid;
use e2e::world::World;
use rustix::process::Signal;
use serde_json::Value;
use xsk_client::Broker;
use xsk_client::wire::{AuditLog, Reload};

use crate::lease_scene::{PATIENCE, operator, policy, wait_until};

fn log(operator: &mut Broker) -> AuditLog {
    operator.get_status().unwrap().audit_log.unwrap()
}

/// A file for the audit log, in a directory of root's.
fn with_a_file<'w>(world: &'w World, tenant: &Uid) -> (BrokerProcess<'w>, PathBuf) {
    let directory = world.path("log");
    std::fs::create_dir(&directory).unwrap();
    let broker = BrokerProcess::builder()
        .arguments(&["--audit-log", "/run/log/audit.log"])
        .start(world, &policy(&[(tenant.number(), "1-7")]))
        .unwrap();
    (broker, directory.join("audit.log"))
}

fn lines(file: &Path) -> Vec<Value> {
    let text = std::fs::read_to_string(file).unwrap_or_default();
    text.lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

/// As logrotate does it with `create`: in a directory of root's, since the broker is root no more.
#[test]
fn a_file_that_was_rotated_is_opened_anew_at_sighup() {
    let world = World::new().unwrap();
    let tenant = Uid::take().unwrap();
    let (mut broker, file) = with_a_file(&world, &tenant);
    let rotated = file.with_extension("log.1");
    let reloads = |file: &Path| {
        lines(file)
            .iter()
            .filter(|line| line["event"] == "reloaded")
            .count()
    };
    wait_until("its start is in the file", || lines(&file).len() == 1);
    // Nothing was rotated: nothing is opened.
    broker.process().signal(Signal::HUP).unwrap();
    wait_until("it is told", || reloads(&file) == 1);

    std::fs::rename(&file, &rotated).unwrap();
    std::fs::write(&file, "").unwrap();
    chown(&file, Some(broker.uid()), None).unwrap();
    broker.process().signal(Signal::HUP).unwrap();
    wait_until("it goes to the new one", || reloads(&file) == 1);
    assert_eq!(reloads(&rotated), 1);
    let told = |line: &str| line.contains("opened anew").then_some(());
    broker.process().wait_stderr(PATIENCE, told).unwrap();

    // Copied and truncated, it goes on at the beginning.
    std::fs::OpenOptions::new()
        .write(true)
        .open(&file)
        .unwrap()
        .set_len(0)
        .unwrap();
    broker.process().signal(Signal::HUP).unwrap();
    wait_until("it goes on in the same one", || reloads(&file) == 1);
    assert!(broker.stop().unwrap().success());
    assert_eq!(lines(&file).last().unwrap()["event"], "stopped");
}

/// Where the broker may neither make nor write one, no line is lost, and its log says what to do.
#[test]
fn a_file_that_cannot_be_opened_anew_is_told_of_and_the_old_one_goes_on() {
    let world = World::new().unwrap();
    let tenant = Uid::take().unwrap();
    let (mut broker, file) = with_a_file(&world, &tenant);
    let rotated = file.with_extension("log.1");
    wait_until("its start is in the file", || lines(&file).len() == 1);
    std::fs::rename(&file, &rotated).unwrap();
    broker.process().signal(Signal::HUP).unwrap();
    let said = |line: &str| line.contains("copytruncate").then(|| line.to_owned());
    let line = broker.process().wait_stderr(PATIENCE, said).unwrap();
    let written_to = format!("uid {}'s to write to", broker.uid());
    for words in ["audit.log", &written_to] {
        assert!(line.contains(words), "{line}");
    }
    // It stays to be seen, by who has not read the log, until it is right.
    let mut operator = operator(&broker);
    wait_until("status tells of it", || log(&mut operator).trouble.is_some());
    let trouble = log(&mut operator).trouble.unwrap();
    assert!(trouble.contains(&written_to), "{trouble}");
    let status = broker.cli(&["status"]).unwrap().stdout;
    assert!(status.contains(&format!("audit log: {trouble}\n")), "{status}");
    assert!(!file.exists());
    std::fs::write(&file, "").unwrap();
    chown(&file, Some(broker.uid()), None).unwrap();
    operator.reload(&Reload::default()).unwrap();
    wait_until("nothing is the matter", || log(&mut operator).trouble.is_none());
    drop(operator);
    assert!(broker.stop().unwrap().success());
    let last = |file: &Path| lines(file).last().unwrap()["event"].clone();
    assert_eq!(
        (last(&rotated), last(&file)),
        ("reloaded".into(), "stopped".into())
    );
}

/// As `ExecReload=xsk-broker reload` does it, and where the policy is not taken, too.
#[test]
fn a_file_that_was_rotated_is_opened_anew_at_the_verb() {
    let world = World::new().unwrap();
    let tenant = Uid::take().unwrap();
    let (mut broker, file) = with_a_file(&world, &tenant);
    wait_until("its start is in the file", || lines(&file).len() == 1);
    for (policy, code, event) in [
        (policy(&[(tenant.number(), "1-6")]), 0, "reloaded"),
        ("nonsense".to_owned(), 78, "reload-refused"),
    ] {
        let rotated = file.with_extension(format!("log.{event}"));
        std::fs::rename(&file, &rotated).unwrap();
        std::fs::write(&file, "").unwrap();
        chown(&file, Some(broker.uid()), None).unwrap();
        let before = lines(&rotated).len();
        broker.write_policy(&policy).unwrap();
        assert_eq!(broker.cli(&["reload"]).unwrap().code, Some(code));
        wait_until("it goes to the new one", || lines(&file).len() == 1);
        assert_eq!(lines(&file)[0]["event"], event);
        assert_eq!(lines(&rotated).len(), before);
    }
    assert!(broker.stop().unwrap().success());
}
