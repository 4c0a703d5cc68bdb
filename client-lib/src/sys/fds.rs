//! fds that come over a unix socket: close-on-exec from the first moment, each with an owner that closes it, and
//! none lost in silence.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{BorrowedFd, OwnedFd};

use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags};

/// The most fds in one message (`SCM_MAX_FD`, include/net/scm.h).
pub const MAX_FDS: usize = 253;

/// Why a message with fds was not taken. Every fd that came with it has been closed.
#[derive(Debug, thiserror::Error)]
pub enum ReceiveError {
    /// The call itself failed.
    #[error("recvmsg: {0}")]
    Io(#[from] io::Error),
    /// The kernel had to drop fds: too many, or this process may open no more (RLIMIT_NOFILE).
    #[error("file descriptors were lost on the way: check this process's limit of open files (ulimit -n)")]
    Truncated,
    /// More than the caller expects at all.
    #[error("{received} file descriptors came, at most {limit} were expected")]
    TooManyFds {
        /// How many came.
        received: usize,
        /// How many would have been fine.
        limit: usize,
    },
}

/// Reads from a stream socket and takes the fds that come with the bytes, close-on-exec, at most `limit`.
/// Zero bytes: the other side has closed.
///
/// # Errors
///
/// [`ReceiveError`]; no fd stays open then.
pub fn receive_with_fds(
    socket: BorrowedFd<'_>,
    buffer: &mut [u8],
    limit: usize,
) -> Result<(usize, Vec<OwnedFd>), ReceiveError> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut parts = [io::IoSliceMut::new(buffer)];
    let message = rustix::net::recvmsg(socket, &mut parts, &mut control, RecvFlags::CMSG_CLOEXEC)
        .map_err(io::Error::from)?;
    // Taken before anything is judged, so that every fd has an owner that closes it.
    let fds: Vec<OwnedFd> = control
        .drain()
        .filter_map(|message| match message {
            RecvAncillaryMessage::ScmRights(fds) => Some(fds),
            _ => None,
        })
        .flatten()
        .collect();
    if message.flags.contains(ReturnFlags::CTRUNC) {
        return Err(ReceiveError::Truncated);
    }
    if fds.len() > limit {
        return Err(ReceiveError::TooManyFds {
            received: fds.len(),
            limit,
        });
    }
    Ok((message.bytes, fds))
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;
    use std::os::unix::net::UnixStream;

    use rustix::io::FdFlags;
    use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags};

    use super::*;

    fn send_copies(stream: &UnixStream, count: usize) {
        let fds = vec![stream.as_fd(); count];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        assert!(control.push(SendAncillaryMessage::ScmRights(&fds)));
        rustix::net::sendmsg(
            stream,
            &[io::IoSlice::new(b"x")],
            &mut control,
            SendFlags::empty(),
        )
        .unwrap();
    }

    #[test]
    fn fds_come_close_on_exec() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        send_copies(&theirs, 3);
        let (bytes, fds) = receive_with_fds(ours.as_fd(), &mut [0; 8], 3).unwrap();
        assert_eq!((bytes, fds.len()), (1, 3));
        for fd in fds {
            assert!(rustix::io::fcntl_getfd(&fd).unwrap().contains(FdFlags::CLOEXEC));
        }
    }

    #[test]
    fn unexpected_fds_are_refused_and_closed() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        send_copies(&theirs, 2);
        drop(theirs);
        let refused = receive_with_fds(ours.as_fd(), &mut [0; 8], 1);
        assert!(matches!(
            refused,
            Err(ReceiveError::TooManyFds {
                received: 2,
                limit: 1
            })
        ));
        // The fds were the other end itself: its last copies are closed, so we read the end of the stream.
        assert_eq!(receive_with_fds(ours.as_fd(), &mut [0; 8], 1).unwrap().0, 0);
    }
}
