//! Fds that a client receives have an owner from the first moment: whatever is wrong with a reply, they are closed.

use std::fs;
use std::io::{ErrorKind, Read};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::thread;
use std::time::Duration;

use e2e::holder::Holder;
use e2e::raw_client::RawClient;
use e2e::uids::Uid;
use e2e::world::{Side, World};
use sendfd::RecvWithFd;
use xsk_client::sys::{ReceiveError, receive_with_fds};
use xsk_client::{Broker, CallError, Grant, Request};

const PATIENCE: Duration = Duration::from_secs(20);

/// Two sockets, indexes 0 and 1.
const ACQUIRED: &str = r#"{"parameters":{"lease":7,"interface":"eth0","interfaceIndex":3,"rule":"r","queueLock":"none","xdp":"native","rings":{"fill":64,"completion":64,"rx":64,"tx":64},"activateWithinMs":5000,"sockets":[{"queue":2,"socketFileDescriptor":0},{"queue":3,"socketFileDescriptor":1}]}}"#;

/// Has a client acquire queues 2 and 3 from a broker that answers with these parts, each with so many copies of one
/// fd. Returns what the client got, and whether all copies are closed once that is dropped.
fn answered(world: &World, parts: &[(Vec<u8>, usize)]) -> Result<(), CallError> {
    let path = world.path("false-broker.sock");
    if let Err(error) = fs::remove_file(&path) {
        assert_eq!(error.kind(), ErrorKind::NotFound);
    }
    let listener = UnixListener::bind(&path).unwrap();
    let (mut witness, sent) = UnixStream::pair().unwrap();
    let result = thread::scope(|scope| {
        scope.spawn(move || {
            let (stream, _) = listener.accept().unwrap();
            let mut server = RawClient::over(stream).unwrap();
            server.receive().unwrap().unwrap();
            for (bytes, copies) in parts {
                let fds = vec![sent.as_fd(); *copies];
                // The client may have hung up over the part before.
                let done = match fds.as_slice() {
                    [] => server.send(bytes),
                    fds => server.send_with_fds(bytes, fds),
                };
                if done.is_err() || server.wait_read().is_err() {
                    break;
                }
            }
            // `sent` and the connection are closed here.
        });
        let mut broker = Broker::connect_to(&path).unwrap();
        let result = Grant::acquire(&mut broker, Request::new("eth0:2-3".parse().unwrap()));
        if let Ok(grant) = &result {
            for socket in grant.sockets() {
                assert!(is_close_on_exec(socket.as_raw_fd()));
            }
        }
        result
    });
    let result = match result {
        Ok(_grant) => Ok(()),
        Err(xsk_client::Error::Call(error)) => Err(error),
        Err(other) => panic!("{other}"),
    };
    // The end of the stream comes when the last copy is closed, and not before.
    witness.set_read_timeout(Some(PATIENCE)).unwrap();
    assert_eq!(witness.read(&mut [0]).unwrap(), 0, "a copy is still open");
    result
}

fn is_close_on_exec(fd: i32) -> bool {
    let info = fs::read_to_string(format!("/proc/self/fdinfo/{fd}")).unwrap();
    let flags = info.lines().find_map(|line| line.strip_prefix("flags:")).unwrap();
    let flags = i32::from_str_radix(flags.trim(), 8).unwrap();
    flags & libc::O_CLOEXEC != 0
}

#[test]
fn whatever_is_wrong_with_a_reply_no_fd_stays_open() {
    let world = World::new().unwrap();
    let whole = |text: &str, fds| vec![(format!("{text}\0").into_bytes(), fds)];
    let good = || format!("{ACQUIRED}\0").into_bytes();
    let index = |index: &str| {
        let last = "\"socketFileDescriptor\":1";
        ACQUIRED.replace(last, &format!("\"socketFileDescriptor\":{index}"))
    };
    answered(&world, &whole(ACQUIRED, 2)).unwrap();

    let denied = r#"{"error":"org.xskbroker.Broker.Denied","parameters":{"interface":"eth0","queues":[2],"message":"no"}}"#;
    let cases = [
        ("too few", whole(ACQUIRED, 1), "protocol"),
        ("none", whole(ACQUIRED, 0), "protocol"),
        ("one more than named", whole(ACQUIRED, 3), "protocol"),
        ("more than any reply has", whole(ACQUIRED, 65), "protocol"),
        (
            "as many as fit into one message",
            whole(ACQUIRED, 253),
            "protocol",
        ),
        ("an index twice", whole(&index("0"), 2), "protocol"),
        ("an index beyond", whole(&index("2"), 2), "protocol"),
        ("a negative index", whole(&index("-1"), 2), "protocol"),
        ("a huge index", whole(&index("4294967296"), 2), "protocol"),
        ("an error", whole(denied, 2), "refused"),
        ("no JSON", whole("{", 2), "protocol"),
        ("an array", whole("[]", 2), "protocol"),
        ("an unknown error", whole(r#"{"error":"a.b.C"}"#, 2), "protocol"),
        ("half a reply", vec![(good()[..40].to_vec(), 2)], "protocol"),
        (
            "fds with both halves",
            vec![(good()[..40].to_vec(), 40), (good()[40..].to_vec(), 40)],
            "protocol",
        ),
        ("two replies", vec![([good(), good()].concat(), 2)], "protocol"),
    ];
    for (name, parts, expected) in cases {
        let error = answered(&world, &parts).unwrap_err();
        let kind = match &error {
            CallError::Protocol { .. } => "protocol",
            CallError::Refused { .. } => "refused",
            _ => "another",
        };
        assert_eq!(kind, expected, "{name}: {error}");
    }
}

#[test]
fn the_client_does_not_receive_with_sendfd() {
    let world = World::new().unwrap();
    let uid = Uid::take().unwrap();
    let mut body = Holder::body(&world, Side::Host, &uid.user(), "receive_both_ways", &[]).unwrap();
    assert!(
        body.wait(PATIENCE).unwrap().success(),
        "{}",
        body.process().last_words()
    );
}

/// A process of its own: what is shown here leaks fds into whatever the process starts.
pub(crate) fn receive_both_ways(_arguments: &[String]) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let mut sender = RawClient::over(theirs.try_clone().unwrap()).unwrap();
    let mut send = |copies| {
        let fds = vec![theirs.as_fd(); copies];
        sender.send_with_fds(b"x", &fds).unwrap();
    };

    // sendfd: the third fd is dropped by the kernel, which says so in a flag (MSG_CTRUNC) that is not looked at; and
    // the others pass to every program that this process starts.
    send(3);
    let mut received = [-1; 2];
    assert_eq!(ours.recv_with_fd(&mut [0; 8], &mut received).unwrap(), (1, 2));
    assert!(received.iter().all(|fd| !is_close_on_exec(*fd)));

    // The library: an error that says how many came, or fds that are close-on-exec.
    send(3);
    let refused = receive_with_fds(ours.as_fd(), &mut [0; 8], 2).unwrap_err();
    assert!(
        matches!(
            refused,
            ReceiveError::TooManyFds {
                received: 3,
                limit: 2
            }
        ),
        "{refused}"
    );
    send(2);
    let (bytes, fds) = receive_with_fds(ours.as_fd(), &mut [0; 8], 2).unwrap();
    assert_eq!((bytes, fds.len()), (1, 2));
    assert!(fds.iter().all(|fd| is_close_on_exec(fd.as_raw_fd())));
}
