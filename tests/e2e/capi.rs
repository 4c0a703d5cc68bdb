//! A C program: its socket from the broker by the client library for C, its rings from libxdp, no capability.

use std::process::Command;
use std::time::Duration;

use e2e::binaries;
use e2e::broker::BrokerProcess;
use e2e::packet_socket::PacketSocket;
use e2e::packets::{Mac, ethernet};
use e2e::process::Process;
use e2e::skip;
use e2e::skip::Skip;
use e2e::status::Status;
use e2e::uids::Uid;
use e2e::world::{Side, World};

use crate::bound_scene::needs_bound;

const PATIENCE: Duration = Duration::from_secs(30);
const PACKETS: u8 = 200;
const US: Mac = Mac([2, 0, 0, 0, 0, 1]);
const PEER: Mac = Mac([2, 0, 0, 0, 0, 2]);

fn policy(uid: u32) -> String {
    format!(
        "[interface.eth0]\nqueue-lock = \"none\"\n\
         [[allow]]\nname = \"c\"\nuser = {uid}\ninterface = \"eth0\"\nqueues = \"1-3\"\n\
         sockets = [\"bare\", \"bound\"]\n"
    )
}

/// The C program gets `words`, be it what `xsk-broker grant` becomes.
fn reflects(grant: Option<&[&str]>, words: &[&str]) {
    let program = match binaries::peer("peer-capi") {
        Ok(program) => program,
        Err(_) => skip!(Skip::without("peer-capi")),
    };
    let world = World::new().unwrap();
    let uid = Uid::take().unwrap();
    let _broker = BrokerProcess::start(&world, &policy(uid.number())).unwrap();
    let program = world.install("peer-capi", &program).unwrap();
    let mut command = match grant {
        None => Command::new(program),
        Some(grant) => {
            let broker = world.install("xsk-broker", &binaries::broker().unwrap()).unwrap();
            let mut command = Command::new(broker);
            command.arg("grant").args(grant).arg("--").arg(program);
            command
        }
    };
    command.env_clear().args(words).arg(PACKETS.to_string());
    let mut process = Process::spawn(world.namespace(Side::Host), Some(&uid.user()), command).unwrap();
    process
        .wait_stdout(PATIENCE, |line| {
            line.strip_prefix("active lease ").map(str::to_owned)
        })
        .unwrap();
    let status = Status::of(process.pid()).unwrap();
    assert_eq!(status.uids, [uid.number(); 4]);
    assert_eq!(
        (status.capabilities.permitted, status.capabilities.ambient),
        (0, 0)
    );

    let wire = PacketSocket::open(&world, Side::PEER).unwrap();
    wire.steer(2).unwrap();
    for number in 0..PACKETS {
        wire.send(&ethernet(US, PEER, 0x88b5, &[number; 50])).unwrap();
        let expected = ethernet(PEER, US, 0x88b5, &[number; 50]);
        let back = wire
            .expect(PATIENCE, |it| (it == expected).then_some(()))
            .unwrap();
        assert!(back.is_some(), "packet {number}: {}", process.last_words());
    }
    let status = process.wait(PATIENCE).unwrap();
    assert!(status.success(), "{status}: {}", process.last_words());
}

#[test]
fn a_c_program_acquires_and_moves_packets() {
    reflects(None, &["eth0", "2"]);
}

#[test]
fn a_c_program_inherits_and_moves_packets() {
    reflects(Some(&["eth0:2", "--kind", "bare"]), &[]);
}

#[test]
fn a_c_program_has_a_socket_bound_by_the_broker() {
    needs_bound!();
    reflects(None, &["bound", "eth0", "2"]);
}

#[test]
fn a_c_program_inherits_what_the_broker_binds() {
    needs_bound!();
    reflects(Some(&["eth0:2", "--kind", "bound"]), &["bound"]);
}

#[test]
fn a_c_program_that_is_denied_has_the_sentence() {
    let program = match binaries::peer("peer-capi") {
        Ok(program) => program,
        Err(_) => skip!(Skip::without("peer-capi")),
    };
    let world = World::new().unwrap();
    let uid = Uid::take().unwrap();
    let _broker = BrokerProcess::start(&world, &policy(uid.number())).unwrap();
    let mut command = Command::new(world.install("peer-capi", &program).unwrap());
    command.env_clear().args(["eth0", "5", "1"]);
    let mut process = Process::spawn(world.namespace(Side::Host), Some(&uid.user()), command).unwrap();
    // 100 and XSK_CLIENT_DENIED.
    assert_eq!(process.wait(PATIENCE).unwrap().code(), Some(103));
    let said = process.stderr().join("\n");
    assert!(said.contains("acquire: status -3: Acquire: "), "{said}");
}
