//! The audit log: whoever is to read it holds up nobody, no grant is missing from it, and one user's refusals do not fill
//! it.

use std::io::{PipeReader, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::chown;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use e2e::broker::{BrokerBuilder, BrokerProcess};
use e2e::raw_client::{PATIENCE, RawClient};
use e2e::uids::Uid;
use e2e::world::World;
use rustix::process::Signal;
use serde_json::{Value, json};
use xsk_client::Broker;
use xsk_client::wire::{AuditLog, Reload};

use crate::bound_scene;
use crate::lease_scene::{interface, operator, policy, wait_until};
use crate::scene::Scene;

/// What a label may have, in characters that take six bytes each in the log.
const LABEL: &str = "\u{1}";
const LABEL_BYTES: usize = 256;

fn acquire(queue: u32) -> Value {
    let umem = json!({ "chunks": 4, "chunkBytes": 4096 });
    let label = LABEL.repeat(LABEL_BYTES);
    json!({ "interface": "eth0", "queues": [queue], "sockets": "bound", "umem": umem, "label": label })
}

fn lease_of(reply: &Value) -> u64 {
    reply["parameters"]["lease"]
        .as_u64()
        .unwrap_or_else(|| panic!("{reply}"))
}

fn log(operator: &mut Broker) -> AuditLog {
    operator.get_status().unwrap().audit_log.unwrap()
}

/// Grants and releases until the pipe is full and lines wait in the broker. Gives the numbers of the leases.
fn fill_the_pipe(client: &mut RawClient, operator: &mut Broker) -> Vec<u64> {
    let mut leases = Vec::new();
    while log(operator).waiting_lines < 20 {
        let lease = lease_of(&client.call("Acquire", &acquire(1)).unwrap());
        client.call("Release", &json!({ "lease": lease })).unwrap();
        leases.push(lease);
    }
    leases
}

/// A broker whose standard output nobody reads yet, and its reader's end.
fn with_stalled_reader<'w>(
    world: &'w World,
    tenants: &[&Uid],
    builder: BrokerBuilder,
) -> (BrokerProcess<'w>, PipeReader) {
    let (reader, writer) = std::io::pipe().unwrap();
    rustix::pipe::fcntl_setpipe_size(&writer, 4096).unwrap();
    // Nothing is to end by itself while the backlog fills.
    let rule = |uid: &&Uid| bound_scene::allow(uid.number(), "1-7", "activate-within-ms = 600000");
    let rules: String = tenants.iter().map(rule).collect();
    let broker = builder
        .stdout(OwnedFd::from(writer))
        .start(world, &(interface("eth0", "") + &rules))
        .unwrap();
    (broker, reader)
}

#[test]
fn nobody_waits_for_who_reads_the_log_and_no_grant_is_missing() {
    bound_scene::needs_bound!();
    let world = World::new().unwrap();
    let tenant = Uid::take().unwrap();
    let (mut broker, mut reader) = with_stalled_reader(&world, &[&tenant], BrokerProcess::builder());
    let connector = broker.connector(&tenant).unwrap();
    let mut client = RawClient::connect(&connector, &broker.paths().socket()).unwrap();
    let mut operator = operator(&broker);
    let mut granted = fill_the_pipe(&mut client, &mut operator);

    // Grants, revokes and what the operator asks go on.
    let held = lease_of(&client.call("Acquire", &acquire(2)).unwrap());
    granted.push(held);
    operator.revoke(held).unwrap();
    assert_eq!(operator.list_leases().unwrap().leases, []);
    let reloaded = broker.cli(&["reload"]).unwrap();
    assert_eq!(reloaded.code, Some(0), "{}", reloaded.stderr);
    let status = broker.cli(&["status"]).unwrap();
    assert!(
        status
            .stdout
            .contains("audit log: lines that nobody has taken yet: "),
        "{}",
        status.stdout
    );

    let reading = thread::spawn(move || {
        let mut text = String::new();
        // Its other ends are the broker's, and that of the fixture which started it.
        reader.read_to_string(&mut text).unwrap();
        text
    });
    wait_until("everything is taken", || log(&mut operator).waiting_lines == 0);
    assert!(broker.stop().unwrap().success());
    drop(broker);
    let text = reading.join().unwrap();
    let lines: Vec<Value> = text
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    let leases = |event: &str| -> Vec<u64> {
        let of = lines.iter().filter(|line| line["event"] == event);
        of.map(|line| line["lease"].as_u64().unwrap()).collect()
    };
    assert_eq!(leases("granted"), granted);
    assert_eq!(leases("ended"), granted);
    let events = lines.iter().map(|line| line["event"].as_str().unwrap());
    assert_eq!(events.clone().filter(|event| *event == "reloaded").count(), 1);
    assert!(events.clone().all(|event| event != "events-dropped"));
    assert_eq!(
        (events.clone().next(), events.clone().next_back()),
        (Some("started"), Some("stopped"))
    );
}

/// What cannot be written down is not granted. What ends does not depend on it, and neither does the end of the broker.
#[test]
fn nothing_is_granted_once_the_reserve_is_used_up() {
    bound_scene::needs_bound!();
    let world = World::new().unwrap();
    let tenant = Uid::take().unwrap();
    let (mut broker, mut reader) = with_stalled_reader(&world, &[&tenant], BrokerProcess::builder());
    let connector = broker.connector(&tenant).unwrap();
    let mut client = RawClient::connect(&connector, &broker.paths().socket()).unwrap();
    let mut operator = operator(&broker);
    let held = lease_of(&client.call("Acquire", &acquire(2)).unwrap());
    let refusal = flood(&mut client);
    let told = &refusal["parameters"];
    assert_eq!(told["resource"], "audit-log-bytes", "{refusal}");
    assert!(told["inUse"].as_u64() >= told["limit"].as_u64(), "{refusal}");
    operator.revoke(held).unwrap();
    assert_eq!(operator.list_leases().unwrap().leases, []);

    // As soon as somebody reads, it goes on.
    let reading = thread::spawn(move || {
        let mut bytes = vec![0; 1 << 16];
        let mut read = 0;
        while read < 1 << 20 {
            read += reader.read(&mut bytes).unwrap();
        }
        reader
    });
    let reader = reading.join().unwrap();
    let lease = lease_of(&client.call("Acquire", &acquire(1)).unwrap());
    client.call("Release", &json!({ "lease": lease })).unwrap();

    // Nobody does again: the stop has patience, but not for ever, and says what is lost.
    let began = Instant::now();
    assert!(broker.stop().unwrap().success());
    assert!(began.elapsed() < Duration::from_secs(15), "{:?}", began.elapsed());
    let lost = |line: &&String| line.contains("lines of the audit log that nobody took");
    let stderr = broker.process().stderr();
    assert!(stderr.iter().any(|line| lost(&line)), "{stderr:?}");
    // Until here, or it would have been a pipe without a reader.
    assert!(reader.as_fd().try_clone_to_owned().is_ok());
}

/// Acquires and releases until that is refused, with what it is told.
fn flood(client: &mut RawClient) -> Value {
    loop {
        let reply = client.call("Acquire", &acquire(1)).unwrap();
        if reply.get("error").is_some() {
            return reply;
        }
        let lease = json!({ "lease": lease_of(&reply) });
        client.call("Release", &lease).unwrap();
    }
}

/// One user's grants and ends, with nobody who reads of them, are that user's trouble alone.
#[test]
fn who_floods_the_log_waits_and_others_are_granted() {
    bound_scene::needs_bound!();
    let world = World::new().unwrap();
    let [loud, quiet] = [(); 2].map(|()| Uid::take().unwrap());
    let (mut broker, mut reader) = with_stalled_reader(&world, &[&loud, &quiet], BrokerProcess::builder());
    let [mut of_loud, mut of_quiet] = [&loud, &quiet].map(|uid| {
        let connector = broker.connector(uid).unwrap();
        RawClient::connect(&connector, &broker.paths().socket()).unwrap()
    });
    let mut operator = operator(&broker);

    let refusal = flood(&mut of_loud);
    let told = &refusal["parameters"];
    assert_eq!(told["resource"], "audit-log-bytes", "{refusal}");
    let words = format!("of those that wait uid {} has ", loud.number());
    assert!(told["message"].as_str().unwrap().contains(&words), "{refusal}");
    let lease = lease_of(&of_quiet.call("Acquire", &acquire(2)).unwrap());
    of_quiet.call("Release", &json!({ "lease": lease })).unwrap();
    let lease = lease_of(&of_quiet.call("Acquire", &acquire(2)).unwrap());
    let explain = |uid: &Uid| {
        let user = uid.number().to_string();
        let words = ["explain", "--user", &user, "--kind", "bound", "eth0:1"];
        broker.cli(&words).unwrap()
    };
    let explained = explain(&loud);
    assert_eq!(explained.code, Some(75), "{explained:?}");
    assert!(
        explained.stdout.contains("eth0:1: refused for now by the broker")
            && explained.stdout.contains(&words),
        "{explained:?}"
    );
    assert_eq!(explain(&quiet).code, Some(0));
    // Nor does it hide whose refusals there are.
    let beyond = json!({ "interface": "eth0", "queues": [0], "sockets": "prepared" });
    of_quiet.call("Acquire", &beyond).unwrap();
    assert_eq!(log(&mut operator).refusals_dropped, 0);
    // Who has what of it is told, and that somebody waits, once.
    assert_eq!(flood(&mut of_loud)["parameters"]["resource"], "audit-log-bytes");
    let quotas = operator.get_status().unwrap().quotas;
    let quota = quotas.iter().find(|quota| quota.resource == "audit-log-bytes");
    let used = &quota.unwrap().users;
    let of = |uid: &Uid| used.iter().find(|used| used.uid == uid.number()).unwrap().in_use;
    assert!(of(&loud) > 100 * of(&quiet), "{used:?}");
    let said = |words: &str| {
        let stderr = broker.process().stderr();
        stderr.iter().filter(|line| line.contains(words)).count()
    };
    assert_eq!(said("nothing is granted that could not be written down"), 1);
    assert_eq!(said("grants go on"), 0);

    let reading = thread::spawn(move || {
        let mut text = String::new();
        reader.read_to_string(&mut text).unwrap();
        text
    });
    wait_until("everything is taken", || log(&mut operator).waiting_lines == 0);
    assert_eq!(said("grants go on"), 1);
    let again = lease_of(&of_loud.call("Acquire", &acquire(1)).unwrap());
    for (client, lease) in [(&mut of_loud, again), (&mut of_quiet, lease)] {
        client.call("Release", &json!({ "lease": lease })).unwrap();
    }
    drop((of_loud, of_quiet, operator));
    assert!(broker.stop().unwrap().success());
    drop(broker);
    let text = reading.join().unwrap();
    let wanted = |line: &Value| line["event"] == "refused" && line["uid"] == quiet.number();
    assert!(
        text.lines()
            .any(|line| wanted(&serde_json::from_str(line).unwrap()))
    );
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
    let stderr = broker.process().stderr();
    assert!(
        stderr.iter().any(|line| line.contains("opened anew")),
        "{stderr:?}"
    );

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

/// What was said before the engine panicked is written, as far as somebody reads it.
#[test]
fn a_panic_loses_no_line() {
    bound_scene::needs_bound!();
    let world = World::new().unwrap();
    let tenant = Uid::take().unwrap();
    let builder = BrokerProcess::builder().environment("XSK_BROKER_FAIL_POINT", "panic at acquire: granted");
    let (mut broker, mut reader) = with_stalled_reader(&world, &[&tenant], builder);
    let mut operator = operator(&broker);
    let mut reloads = 0;
    while log(&mut operator).waiting_lines < 20 {
        operator.reload(&Reload::default()).unwrap();
        reloads += 1;
    }
    let connector = broker.connector(&tenant).unwrap();
    let mut client = RawClient::connect(&connector, &broker.paths().socket()).unwrap();
    let call = json!({ "method": "org.xskbroker.Broker.Acquire", "parameters": acquire(1) });
    client.send(format!("{call}\0").as_bytes()).unwrap();
    let panicked = |line: &str| line.contains("XSK_BROKER_FAIL_POINT").then_some(());
    broker.process().wait_stderr(PATIENCE, panicked).unwrap();
    let reading = thread::spawn(move || {
        let mut text = String::new();
        reader.read_to_string(&mut text).unwrap();
        text
    });
    assert!(!broker.wait().unwrap().success());
    drop(broker);
    let text = reading.join().unwrap();
    assert_eq!(text.matches("\"event\":\"reloaded\"").count(), reloads);
    let last: Value = serde_json::from_str(text.lines().last().unwrap()).unwrap();
    assert_eq!(last["event"], "granted", "{last}");
}

#[test]
fn a_flood_of_refusals_by_one_user_is_a_bounded_number_of_lines() {
    const REFUSED: u64 = 3000;

    let world = World::new().unwrap();
    let scene = Scene::new(&world);
    let stranger = Uid::take().unwrap();
    let mut client = scene.client_of(&stranger);
    let request = json!({ "interface": "eth0", "queues": [1], "sockets": "prepared" });
    let began = Instant::now();
    for _ in 0..REFUSED {
        let reply = client.call("Acquire", &request).unwrap();
        assert!(reply["error"].as_str().unwrap().ends_with(".Denied"), "{reply}");
    }
    let seconds = began.elapsed().as_secs() + 2;
    let of_stranger = || -> Vec<Value> {
        let lines = scene.broker.audit().unwrap();
        lines
            .into_iter()
            .filter(|line| line["uid"] == stranger.number())
            .collect()
    };
    let told =
        |lines: &[Value]| -> u64 { lines.iter().map(|line| line["count"].as_u64().unwrap_or(1)).sum() };
    wait_until("each refusal is told", || told(&of_stranger()) == REFUSED);
    let lines = of_stranger();
    assert!(
        u64::try_from(lines.len()).unwrap() <= 11 * seconds,
        "{}",
        lines.len()
    );
    let summed = lines.iter().filter(|line| line["event"] == "refusals-summed");
    let summed: Vec<&Value> = summed.collect();
    assert!(!summed.is_empty());
    for line in summed {
        assert_eq!(line["message"], format!("denied: {}", line["count"]), "{line}");
    }
    let mut operator = operator(&scene.broker);
    assert!(log(&mut operator).refusals_summed > 0);
    assert_eq!(log(&mut operator).refusals_dropped, 0);

    // Somebody else's has its line, at once.
    let mut tenant = scene.client();
    let beyond = json!({ "interface": "eth0", "queues": [7], "sockets": "prepared" });
    tenant.call("Acquire", &beyond).unwrap();
    let wanted = |line: &Value| line["event"] == "refused" && line["uid"] == scene.uid.number();
    scene.broker.wait_audit(PATIENCE, wanted).unwrap();
    drop((client, tenant, operator));
    scene.finish();
}
