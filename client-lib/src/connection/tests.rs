//! A broker of a few lines at the other end of a pair: what it sends is what the connection has to withstand.

use std::io::{self, Read};
use std::mem::MaybeUninit;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::thread;

use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags};

use super::*;
use crate::wire;

const ACQUIRED: &str = r#"{"parameters":{"lease":7,"interface":"eth0","interfaceIndex":3,"rule":"r","queueLock":"none","xdp":"native","rings":{"fill":64,"completion":64,"rx":64,"tx":64},"activateWithinMs":5000,"later":true,"sockets":[{"queue":2,"socketFileDescriptor":1},{"queue":3,"socketFileDescriptor":0}]}}"#;

/// A broker that answers each call with the next reply, and `fds` copies of its own end with the first byte.
fn broker(replies: Vec<(Vec<u8>, usize)>) -> Broker {
    let (ours, mut theirs) = UnixStream::pair().unwrap();
    thread::spawn(move || {
        for (reply, fds) in replies {
            let mut call = Vec::new();
            while call.last() != Some(&0) {
                let mut byte = [0];
                theirs.read_exact(&mut byte).unwrap();
                call.push(byte[0]);
            }
            let copies = vec![theirs.as_fd(); fds];
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(80))];
            let mut control = SendAncillaryBuffer::new(&mut space);
            if fds > 0 {
                assert!(control.push(SendAncillaryMessage::ScmRights(&copies)));
            }
            let parts = [io::IoSlice::new(&reply)];
            rustix::net::sendmsg(&theirs, &parts, &mut control, SendFlags::empty()).unwrap();
        }
        thread::sleep(Duration::from_millis(300));
    });
    Broker::over(ours)
}

fn reply(text: &str) -> Vec<u8> {
    let mut bytes = text.as_bytes().to_vec();
    bytes.push(0);
    bytes
}

fn acquire(text: &str, fds: usize) -> Result<(Acquired, Vec<OwnedFd>), CallError> {
    let request = Acquire::new("eth0:2-3".parse().unwrap(), wire::SocketKind::Prepared);
    broker(vec![(reply(text), fds)]).acquire(&request)
}

#[test]
fn fds_come_in_the_order_of_the_sockets_and_unknown_members_are_ignored() {
    let (acquired, fds) = acquire(ACQUIRED, 2).unwrap();
    assert_eq!(acquired.lease, 7);
    assert_eq!(fds.len(), 2);
}

#[test]
fn a_umem_comes_in_place_of_sockets() {
    let bound = ACQUIRED
        .replace("\"rule\"", "\"kind\":\"bound\",\"umemFileDescriptor\":0,\"rule\"")
        .split_once("\"sockets\"")
        .map(|(before, _)| format!("{before}\"sockets\":[]}}}}"))
        .unwrap();
    let (acquired, fds) = acquire(&bound, 1).unwrap();
    assert_eq!((acquired.kind, fds.len()), (wire::SocketKind::Bound, 1));
    for (text, fds) in [
        (bound.clone(), 0),
        (bound.clone(), 2),
        (bound.replace("Descriptor\":0", "Descriptor\":1"), 1),
        (bound.replace("\"umemFileDescriptor\":0,", ""), 1),
    ] {
        assert!(matches!(
            acquire(&text, fds),
            Err(CallError::Protocol {
                cause: ProtocolError::Fds { .. },
                ..
            })
        ));
    }
}

#[test]
fn fds_that_do_not_match_are_errors() {
    let twice = ACQUIRED.replace("\"socketFileDescriptor\":0", "\"socketFileDescriptor\":1");
    let beyond = ACQUIRED.replace("\"socketFileDescriptor\":0", "\"socketFileDescriptor\":2");
    for (text, fds) in [
        (ACQUIRED, 1),
        (ACQUIRED, 3),
        (ACQUIRED, 0),
        (&twice, 2),
        (&beyond, 2),
    ] {
        let error = acquire(text, fds).unwrap_err();
        assert!(
            matches!(
                error,
                CallError::Protocol {
                    cause: ProtocolError::Fds { .. },
                    ..
                }
            ),
            "{error}"
        );
    }
    let error = acquire(ACQUIRED, 70).unwrap_err();
    assert!(error.to_string().contains("70 file descriptors came"), "{error}");
}

#[test]
fn fds_where_none_belong_break_the_connection() {
    let mut broker = broker(vec![(reply(r#"{"parameters":{"leases":[]}}"#), 1)]);
    assert!(matches!(broker.list_leases(), Err(CallError::Protocol { .. })));
    let again = broker.list_leases().unwrap_err();
    assert!(
        matches!(
            again,
            CallError::Protocol {
                cause: ProtocolError::Broken,
                ..
            }
        ),
        "{again}"
    );
}

#[test]
fn refusals_are_data() {
    let busy = r#"{"error":"org.xskbroker.Broker.QueueBusy","parameters":{"interface":"eth0","queue":2,"retryAfterMs":20,"message":"queue 2 of eth0 is held by lease 7"}}"#;
    let denied = r#"{"error":"org.varlink.service.PermissionDenied","parameters":{}}"#;
    let unknown = r#"{"error":"org.xskbroker.Broker.Later","parameters":{}}"#;
    let mut broker = broker(vec![(reply(busy), 0), (reply(denied), 0), (reply(unknown), 0)]);
    let error = broker.activate(1).unwrap_err();
    assert_eq!(error.to_string(), "Activate: queue 2 of eth0 is held by lease 7");
    assert_eq!(error.retry_after(), Some(Duration::from_millis(20)));
    assert!(matches!(broker.get_status(), Err(CallError::Service { .. })));
    assert!(
        broker
            .release(1)
            .unwrap_err()
            .to_string()
            .contains("Broker.Later")
    );
}

#[test]
fn nobody_waits_for_ever() {
    let mut broker = broker(vec![(b"{\"par".to_vec(), 0)]);
    broker.set_timeout(Duration::from_millis(50));
    assert!(matches!(broker.list_leases(), Err(CallError::Timeout { .. })));
}

#[test]
fn a_broker_that_goes_again_and_again_is_asked_until_one_answers() {
    const GONE: usize = 3;
    let path = std::env::temp_dir().join(format!("xsk-client-{}.sock", std::process::id()));
    let listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
    let served = thread::spawn(move || {
        for _ in 0..GONE {
            let (mut stream, _) = listener.accept().unwrap();
            // It takes the first bytes of a call, and dies.
            stream.read_exact(&mut [0; 8]).unwrap();
        }
        let (mut stream, _) = listener.accept().unwrap();
        stream.read_exact(&mut [0; 8]).unwrap();
        io::Write::write_all(&mut stream, &reply(r#"{"parameters":{"leases":[]}}"#)).unwrap();
        // What may not be done twice is not.
        stream.read_exact(&mut [0; 64]).unwrap();
        drop(stream);
        listener
    });
    let mut broker = Broker::connect_to(&path).unwrap();
    assert_eq!(broker.list_leases().unwrap().leases, []);
    let request = Acquire::new("eth0:2".parse().unwrap(), wire::SocketKind::Prepared);
    let error = broker.acquire(&request).unwrap_err();
    assert!(
        matches!(error, CallError::Connection { .. } | CallError::Protocol { .. }),
        "{error}"
    );
    drop(served.join().unwrap());
    std::fs::remove_file(&path).unwrap();
}

#[test]
fn what_a_broker_says_before_it_hangs_up_is_heard() {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let words = r#"{"error":"org.xskbroker.Broker.QuotaExceeded","parameters":{"resource":"connections","limit":3,"inUse":3,"message":"too many"}}"#;
    rustix::net::send(&theirs, &reply(words), SendFlags::empty()).unwrap();
    drop(theirs);
    match Broker::over(ours).list_leases() {
        Err(CallError::Refused { cause, .. }) => assert_eq!(cause.to_string(), "too many"),
        other => panic!("{other:?}"),
    }
}
