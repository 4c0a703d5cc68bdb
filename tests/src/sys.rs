//! The few system calls that neither std nor rustix has as safe functions. Nothing here decides anything.

#![expect(
    unsafe_code,
    reason = "unshare, pre_exec, inherited fds, setsockopt by bytes, mmap, SIOCOUTQ and sockaddr_ll have no safe wrapper"
)]

use std::collections::BTreeSet;
use std::io;
use std::mem::size_of;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::sync::{Mutex, PoisonError};

use rustix::mm::{MapFlags, ProtFlags, mmap};
use rustix::thread::UnshareFlags;

/// `unshare(2)` for the calling thread.
pub(crate) fn unshare(flags: UnshareFlags) -> io::Result<()> {
    if flags.contains(UnshareFlags::FILES) {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    // SAFETY: the one dangerous flag, CLONE_FILES, was just refused.
    unsafe { rustix::thread::unshare_unsafe(flags) }.map_err(io::Error::from)
}

/// Runs `f` in the child, between fork and exec. It must make system calls only: no allocation, no lock.
pub(crate) fn before_exec(
    command: &mut Command,
    f: impl FnMut() -> io::Result<()> + Send + Sync + 'static,
) -> &mut Command {
    // SAFETY: every caller is in this crate and passes a closure that only makes system calls on values that were
    // prepared before the fork, which is async-signal-safe.
    unsafe { command.pre_exec(f) }
}

/// In the child, between fork and exec: makes this its standard output.
pub(crate) fn become_stdout(fd: &OwnedFd) -> io::Result<()> {
    // SAFETY: dup2(2) takes numbers; what was open as 1 is closed by it, and std knows of that number only as a number.
    match unsafe { libc::dup2(fd.as_raw_fd(), libc::STDOUT_FILENO) } {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}

/// An fd that this process inherited, and that nothing else in it knows of: each number once.
pub(crate) fn take_inherited(number: RawFd) -> io::Result<OwnedFd> {
    static TAKEN: Mutex<BTreeSet<RawFd>> = Mutex::new(BTreeSet::new());
    let first = TAKEN
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .insert(number);
    // std never leaves the first three to anybody; and whatever it opens is close-on-exec, as an inherited fd cannot be.
    if number < 3 || !first {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    // SAFETY: a call that only asks, which is harmless on any number.
    let flags = unsafe { libc::fcntl(number, libc::F_GETFD) };
    if flags != 0 {
        return Err(io::ErrorKind::NotFound.into());
    }
    // SAFETY: open, inherited, and taken by nobody before: see above.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

/// `setsockopt(2)` with a value of any size.
pub(crate) fn set_socket_option(fd: impl AsFd, level: i32, name: i32, value: &[u8]) -> io::Result<()> {
    let len = u32::try_from(value.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
    // SAFETY: the kernel reads at most `len` bytes from `value`, which lives through the call.
    let result = unsafe { libc::setsockopt(fd.as_fd().as_raw_fd(), level, name, value.as_ptr().cast(), len) };
    check(result)
}

/// `getsockopt(2)` of an option that is an int.
pub(crate) fn socket_option(fd: impl AsFd, level: i32, name: i32) -> io::Result<i32> {
    let mut value: libc::c_int = 0;
    let mut len = u32::try_from(size_of::<libc::c_int>()).map_err(|_| io::ErrorKind::InvalidInput)?;
    // SAFETY: the kernel writes at most `len` bytes to `value`, and what it wrote to `len`; both live through the call.
    let result = unsafe {
        libc::getsockopt(
            fd.as_fd().as_raw_fd(),
            level,
            name,
            (&raw mut value).cast(),
            &raw mut len,
        )
    };
    check(result)?;
    Ok(value)
}

/// `getsockopt(2)` of an option that gives a new fd.
pub(crate) fn get_fd_option(fd: impl AsFd, level: i32, name: i32) -> io::Result<OwnedFd> {
    let mut got: libc::c_int = -1;
    let mut len = libc::socklen_t::try_from(size_of_val(&got)).map_err(|_| io::ErrorKind::InvalidInput)?;
    let value = (&raw mut got).cast();
    // SAFETY: the kernel writes at most `len` bytes to `got`, which lives through the call.
    let result = unsafe { libc::getsockopt(fd.as_fd().as_raw_fd(), level, name, value, &raw mut len) };
    check(result)?;
    // SAFETY: the kernel has just made this fd for us, and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(got) })
}

/// Bytes that were sent over a unix socket and not read yet (`SIOCOUTQ`, which is `TIOCOUTQ` by another name).
pub(crate) fn unread_bytes(fd: impl AsFd) -> io::Result<i32> {
    let mut bytes: libc::c_int = 0;
    // SAFETY: `unix_ioctl` writes one int to the pointer, which is that of `bytes`.
    let result = unsafe { libc::ioctl(fd.as_fd().as_raw_fd(), libc::TIOCOUTQ, &raw mut bytes) };
    check(result)?;
    Ok(bytes)
}

/// Binds an `AF_PACKET` socket to one device, for frames of every protocol.
pub(crate) fn bind_packet(fd: impl AsFd, interface_index: u32) -> io::Result<()> {
    let address = libc::sockaddr_ll {
        sll_family: u16::try_from(libc::AF_PACKET).map_err(|_| io::ErrorKind::InvalidInput)?,
        sll_protocol: ETH_P_ALL.to_be(),
        sll_ifindex: i32::try_from(interface_index).map_err(|_| io::ErrorKind::InvalidInput)?,
        sll_hatype: 0,
        sll_pkttype: 0,
        sll_halen: 0,
        sll_addr: [0; 8],
    };
    let len = u32::try_from(size_of::<libc::sockaddr_ll>()).map_err(|_| io::ErrorKind::InvalidInput)?;
    // SAFETY: the pointer is to a whole sockaddr_ll of that length, which lives through the call.
    let result = unsafe { libc::bind(fd.as_fd().as_raw_fd(), (&raw const address).cast(), len) };
    check(result)
}

/// Maps a file privately, for good, and gives the address: for the kernel to be told of, since nothing here reads there.
pub(crate) fn map_privately(file: impl AsFd, bytes: usize) -> io::Result<u64> {
    let protection = ProtFlags::READ | ProtFlags::WRITE;
    // SAFETY: a fresh mapping, at an address of the kernel's choice, which nothing refers to and which is never unmapped.
    let address = unsafe {
        mmap(
            std::ptr::null_mut(),
            bytes,
            protection,
            MapFlags::PRIVATE,
            file,
            0,
        )
    }?;
    Ok(address.expose_provenance() as u64)
}

/// `ETH_P_ALL`, in host order.
pub(crate) const ETH_P_ALL: u16 = 0x0003;

fn check(result: libc::c_int) -> io::Result<()> {
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}
