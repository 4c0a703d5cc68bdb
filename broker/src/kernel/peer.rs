//! Socket options of a connection that rustix does not have: who is at the other end, and what they may send.
//!
//! Linux, include/uapi/asm-generic/socket.h; `sk_getsockopt` and `sk_setsockopt` in net/core/sock.c.

#![expect(
    unsafe_code,
    reason = "getsockopt, setsockopt and ioctl that rustix does not offer"
)]

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::net::UnixStream;

/// Linux 6.5. Fails with ENOPROTOOPT before; with EINVAL or ESRCH for a peer that was reaped, until 6.16.
const SO_PEERPIDFD: libc::c_int = 77;
/// Linux 6.16. Fails with ENOPROTOOPT before.
const SO_PASSRIGHTS: libc::c_int = 83;

/// The peer's supplementary groups when it connected (`SO_PEERGROUPS`, Linux 4.13).
///
/// # Errors
///
/// As getsockopt(2).
pub fn peer_groups(socket: BorrowedFd<'_>) -> io::Result<Vec<u32>> {
    // NGROUPS_MAX is 65536: one try with that many would do, but most peers have a handful.
    let mut groups = vec![0u32; 64];
    loop {
        let mut bytes =
            libc::socklen_t::try_from(size_of_val(groups.as_slice())).map_err(io::Error::other)?;
        // SAFETY: pointer and length are those of `groups`, which lives across the call.
        let result = unsafe {
            libc::getsockopt(
                socket.as_raw_fd(),
                libc::SOL_SOCKET,
                libc::SO_PEERGROUPS,
                groups.as_mut_ptr().cast(),
                &raw mut bytes,
            )
        };
        let entries = usize::try_from(bytes).map_err(io::Error::other)? / size_of::<u32>();
        if result == 0 {
            groups.truncate(entries);
            return Ok(groups);
        }
        let error = io::Error::last_os_error();
        // ERANGE: too small, and `bytes` is what it takes.
        if error.raw_os_error() != Some(libc::ERANGE) || entries <= groups.len() {
            return Err(error);
        }
        groups.resize(entries, 0);
    }
}

/// A pidfd of the process that connected (`SO_PEERPIDFD`).
///
/// # Errors
///
/// As getsockopt(2); ENOPROTOOPT before Linux 6.5.
pub fn peer_pidfd(socket: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    let mut fd: libc::c_int = -1;
    let mut bytes = libc::socklen_t::try_from(size_of::<libc::c_int>()).map_err(io::Error::other)?;
    // SAFETY: pointer and length are those of `fd`, which lives across the call.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            SO_PEERPIDFD,
            (&raw mut fd).cast(),
            &raw mut bytes,
        )
    };
    if result != 0 || fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just made this fd for us (`sk_getsockopt`: pidfd_prepare, fd_install), CLOEXEC as
    // every pidfd; nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Has the kernel refuse fds that are sent to this socket, for a listener and what it accepts (`SO_PASSRIGHTS`).
///
/// # Errors
///
/// As setsockopt(2); ENOPROTOOPT before Linux 6.16, where plain read(2) drops such fds all the same.
pub fn refuse_passed_fds(socket: BorrowedFd<'_>) -> io::Result<()> {
    let off: libc::c_int = 0;
    let bytes = libc::socklen_t::try_from(size_of::<libc::c_int>()).map_err(io::Error::other)?;
    // SAFETY: pointer and length are those of `off`, which lives across the call.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            SO_PASSRIGHTS,
            (&raw const off).cast(),
            bytes,
        )
    };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// Whether the kernel knows [`peer_pidfd`].
pub fn has_peer_pidfd() -> bool {
    UnixStream::pair().is_ok_and(|(ours, _theirs)| peer_pidfd(ours.as_fd()).is_ok())
}

/// Whether the kernel knows [`refuse_passed_fds`].
pub fn has_passrights() -> bool {
    UnixStream::pair().is_ok_and(|(ours, _theirs)| refuse_passed_fds(ours.as_fd()).is_ok())
}

/// Bytes that we sent and the peer has not read yet (`SIOCOUTQ`, unix(7)).
///
/// # Errors
///
/// As ioctl(2).
pub fn unread_bytes(socket: BorrowedFd<'_>) -> io::Result<u64> {
    let mut bytes: libc::c_int = 0;
    // SAFETY: TIOCOUTQ, which is SIOCOUTQ by another name, writes one int to the pointer (`unix_ioctl`).
    let result = unsafe { libc::ioctl(socket.as_raw_fd(), libc::TIOCOUTQ, &raw mut bytes) };
    if result == 0 {
        Ok(u64::try_from(bytes).unwrap_or(0))
    } else {
        Err(io::Error::last_os_error())
    }
}
