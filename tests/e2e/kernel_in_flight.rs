//! What the kernel does about fds that were sent and are not read: why the broker charges them to who does not read.

use std::io::{IoSlice, Read};
use std::mem::MaybeUninit;
use std::net::Shutdown;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use e2e::holder::Holder;
use e2e::uids::Uid;
use e2e::world::{Side, World};
use rustix::io::Errno;
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use rustix::process::{Resource, Rlimit, setrlimit};

/// RLIMIT_NOFILE of the sender.
const OPEN_FILES: u64 = 40;
/// fds in each message.
const AT_ONCE: usize = 8;

/// `too_many_unix_fds` (net/unix/scm.c) counts for the uid, over all of its sockets, and has no mercy before they are read.
#[test]
fn fds_that_nobody_reads_use_up_their_senders_limit() {
    let world = World::new().unwrap();
    let sender = Uid::take().unwrap();
    let body = Holder::body(&world, Side::Host, &sender.user(), "send_to_nobody", &[]).unwrap();
    body.wait_line("as told", Duration::from_secs(20)).unwrap();
}

pub(crate) fn send_to_nobody(_: &[String]) {
    let limit = Rlimit {
        current: Some(OPEN_FILES),
        maximum: Some(OPEN_FILES),
    };
    setrlimit(Resource::Nofile, limit).unwrap();
    let pair = || UnixStream::pair().unwrap();
    let (ours, mut theirs) = pair();
    let mut sent = 0;
    while send(&ours) == Ok(()) {
        sent += AT_ONCE;
        assert!(sent < 1000, "there is no limit");
    }
    // As many as the limit, and what the message that reached it had more.
    assert_eq!(sent, 48);

    // Whoever is sent something by the same uid gets nothing: by another socket, with nothing unread.
    let (others, _their_end) = pair();
    assert_eq!(send(&others), Err(Errno::TOOMANYREFS));
    // Not by ending one direction, from either side, nor by closing the sender's end.
    theirs.shutdown(Shutdown::Write).unwrap();
    ours.shutdown(Shutdown::Write).unwrap();
    theirs.shutdown(Shutdown::Read).unwrap();
    assert_eq!(send(&others), Err(Errno::TOOMANYREFS));
    drop(ours);
    assert_eq!(send(&others), Err(Errno::TOOMANYREFS));
    // By reading, be it without a place for fds, or by closing the receiver's end.
    theirs.read_exact(&mut [0; 1]).unwrap();
    assert_eq!(send(&others), Ok(()));
    assert_eq!(send(&others), Err(Errno::TOOMANYREFS));
    drop(theirs);
    assert_eq!(send(&others), Ok(()));
    println!("as told");
}

/// One byte, with fds beside it.
fn send(stream: &UnixStream) -> Result<(), Errno> {
    let fds: Vec<BorrowedFd<'_>> = vec![stream.as_fd(); AT_ONCE];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(AT_ONCE))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    assert!(control.push(SendAncillaryMessage::ScmRights(&fds)));
    sendmsg(stream, &[IoSlice::new(b"x")], &mut control, SendFlags::NOSIGNAL).map(drop)
}
