//! The fixture's unprivileged users really are, as the kernel reports it.

use std::collections::BTreeSet;
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::Duration;

use e2e::holder::Holder;
use e2e::process::was_killed;
use e2e::status::{Capabilities, Status};
use e2e::uids::{self, Uid};
use e2e::world::{Side, World};

const PATIENCE: Duration = Duration::from_secs(10);

/// A body: says what the kernel says of it.
pub(crate) fn report_status(arguments: &[String]) {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Memlock);
    println!("arguments {arguments:?}");
    println!("memlock {:?} {:?}", limit.current, limit.maximum);
    println!(
        "socket {:?}",
        e2e::raw_xsk::bare_socket()
            .map(drop)
            .map_err(|error| format!("{error:#}"))
    );
    println!("status {:?}", Status::of_this_thread().unwrap());
    sleep_long(&[]);
}

/// A body: stays until it is killed.
pub(crate) fn sleep_long(_: &[String]) {
    println!("asleep");
    std::thread::sleep(Duration::from_secs(600));
}

#[test]
fn a_holder_has_no_capability_in_any_set() {
    let world = World::new().unwrap();
    let uid = Uid::take().unwrap();
    let number = uid.number();
    let user = uid.user().groups(&[64_001, 64_002]);
    let mut holder = Holder::body(&world, Side::Host, &user, "report_status", &["one", "two words"]).unwrap();
    holder.wait_line("asleep", PATIENCE).unwrap();

    let status = Status::of(holder.pid()).unwrap();
    assert_eq!(status.uids, [number; 4]);
    assert_eq!(status.gids, [number; 4]);
    assert_eq!(status.groups, [64_001, 64_002]);
    assert_eq!(status.capabilities, Capabilities::NONE);
    assert!(status.no_new_privs);
    for (_, name, of_thread) in Status::of_threads(holder.pid()).unwrap() {
        assert_eq!(of_thread, status, "thread {name}");
    }

    assert_eq!(
        holder.wait_line("arguments", PATIENCE).unwrap(),
        r#"arguments ["one", "two words"]"#
    );
    let memlock = holder.wait_line("memlock", PATIENCE).unwrap();
    assert_eq!(memlock, "memlock Some(8388608) Some(8388608)");
    let socket = holder.wait_line("socket", PATIENCE).unwrap();
    assert!(socket.contains("Operation not permitted"), "{socket}");
    assert!(was_killed(holder.kill().unwrap()));
}

#[test]
fn a_thread_becomes_a_user_alone() {
    let world = World::new().unwrap();
    let uid = Uid::take().unwrap();
    let listener = UnixListener::bind(world.path("listener")).unwrap();
    std::fs::set_permissions(
        world.path("listener"),
        std::os::unix::fs::PermissionsExt::from_mode(0o666),
    )
    .unwrap();
    let (status, socket, connected) = uid
        .user()
        .run(world.namespace(Side::PEER), || {
            let socket = e2e::raw_xsk::bare_socket();
            (
                Status::of_this_thread().unwrap(),
                socket,
                UnixStream::connect("/run/listener").unwrap(),
            )
        })
        .unwrap();
    assert_eq!(status.uids, [uid.number(); 4]);
    assert_eq!(status.capabilities, Capabilities::NONE);
    assert!(status.no_new_privs);
    assert!(socket.is_err(), "socket(AF_XDP) wants CAP_NET_RAW");
    let (accepted, _) = listener.accept().unwrap();
    let peer = rustix::net::sockopt::socket_peercred(&accepted).unwrap();
    assert_eq!(peer.uid.as_raw(), uid.number());
    drop(connected);

    let ours = Status::of_this_thread().unwrap();
    assert_eq!(ours.uids, [0; 4]);
    assert!(!ours.no_new_privs);
}

#[test]
fn uids_are_given_once() {
    let uids: Vec<Uid> = (0..50).map(|_| Uid::take().unwrap()).collect();
    let numbers: BTreeSet<u32> = uids.iter().map(Uid::number).collect();
    assert_eq!(numbers.len(), 50);
    assert!(
        numbers
            .iter()
            .all(|number| (uids::FIRST..uids::FIRST + uids::COUNT).contains(number))
    );
}

#[test]
fn a_process_dies_with_the_value_that_stands_for_it() {
    let world = World::new().unwrap();
    let uid = Uid::take().unwrap();
    let holder = Holder::body(&world, Side::PEER, &uid.user(), "sleep_long", &[]).unwrap();
    holder.wait_line("asleep", PATIENCE).unwrap();
    let path = format!("/proc/{}", holder.pid());
    assert!(std::path::Path::new(&path).exists());
    drop(holder);
    assert!(!std::path::Path::new(&path).exists());
}
