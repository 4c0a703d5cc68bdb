//! The audit log: whoever is to read it holds up nobody, no grant is missing from it, and one user's refusals do not fill
//! it.

use std::io::{PipeReader, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::thread;
use std::time::{Duration, Instant};

use e2e::broker::{BrokerBuilder, BrokerProcess};
use e2e::raw_client::{PATIENCE, RawClient};
use e2e::uids::Uid;
use e2e::world::World;
use serde_json::{Value, json};
use xsk_client::Broker;
use xsk_client::wire::{AuditLog, Reload};

use crate::bound_scene;
use crate::lease_scene::{interface, operator, wait_until};
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
    let waits = "nothing is granted that could not be written down";
    wait_until("it is told", || said(waits) >= 1);
    assert_eq!((said(waits), said("grants go on")), (1, 0));

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
