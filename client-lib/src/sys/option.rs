//! Socket options that rustix does not have.

#![expect(unsafe_code, reason = "setsockopt(2)")]

use std::ffi::c_void;
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::ptr;

use libc::c_int;
use rustix::io::Errno;

/// Confines an unbound socket to one device of its network namespace: a bind to any other is then EINVAL
/// (`xsk_bind`, net/xdp/xsk.c), and whoever lacks CAP_NET_RAW cannot change or clear it
/// (`sock_bindtoindex_locked`, net/core/sock.c). It does not confine the queue.
///
/// By index, not by name: a device renamed in the meantime is still the same one. From Linux 5.0.
///
/// # Errors
///
/// EPERM where the socket is confined already and the caller lacks the capability.
pub fn confine_to_device(socket: impl AsFd, interface_index: u32) -> io::Result<()> {
    let index = c_int::try_from(interface_index).map_err(|_| Errno::INVAL)?;
    set(socket, libc::SO_BINDTOIFINDEX, index)
}

/// Has a socket poll its device from its own system calls: it prefers that to interrupts (`SO_PREFER_BUSY_POLL`), for so
/// many microseconds (`SO_BUSY_POLL`) and packets (`SO_BUSY_POLL_BUDGET`). The preference, and a budget above what the
/// socket has (8 at first), need CAP_NET_ADMIN (`sk_setsockopt`, net/core/sock.c); without it they can be lowered. From
/// Linux 5.11.
///
/// # Errors
///
/// EPERM without the capability, ENOPROTOOPT where the kernel was built without CONFIG_NET_RX_BUSY_POLL.
pub fn set_busy_poll(socket: impl AsFd, budget: u16, usecs: u32) -> io::Result<()> {
    let usecs = c_int::try_from(usecs).map_err(|_| Errno::INVAL)?;
    set(&socket, libc::SO_PREFER_BUSY_POLL, 1)?;
    set(&socket, libc::SO_BUSY_POLL, usecs)?;
    set(&socket, libc::SO_BUSY_POLL_BUDGET, budget.into())
}

/// Lowers how a socket polls its device: for so many microseconds (`SO_BUSY_POLL`) and packets (`SO_BUSY_POLL_BUDGET`) a
/// call. Who made the socket sets what it may have at most. From Linux 5.11.
///
/// # Errors
///
/// EPERM for more than it has, without CAP_NET_ADMIN (`sk_setsockopt`, net/core/sock.c).
pub fn lower_busy_poll(socket: impl AsFd, budget: u16, usecs: u32) -> io::Result<()> {
    let usecs = c_int::try_from(usecs).map_err(|_| Errno::INVAL)?;
    set(&socket, libc::SO_BUSY_POLL, usecs)?;
    set(&socket, libc::SO_BUSY_POLL_BUDGET, budget.into())
}

/// How many frames one call sends at most in copy mode: 32 at first (`XDP_MAX_TX_SKB_BUDGET`, include/uapi/linux/if_xdp.h,
/// Linux 6.17).
///
/// # Errors
///
/// EACCES for fewer than 32 or more than the TX ring has, and without such a ring; ENOPROTOOPT where the kernel does not
/// know it (`xsk_setsockopt`, net/xdp/xsk.c).
pub fn set_tx_budget(socket: impl AsFd, frames: u32) -> io::Result<()> {
    const XDP_MAX_TX_SKB_BUDGET: c_int = 9;
    let frames = c_int::try_from(frames).map_err(|_| Errno::INVAL)?;
    set_at(socket, libc::SOL_XDP, XDP_MAX_TX_SKB_BUDGET, frames)
}

fn set(socket: impl AsFd, option: c_int, value: c_int) -> io::Result<()> {
    set_at(socket, libc::SOL_SOCKET, option, value)
}

fn set_at(socket: impl AsFd, level: c_int, option: c_int, value: c_int) -> io::Result<()> {
    let length = libc::socklen_t::try_from(size_of::<c_int>()).map_err(|_| Errno::INVAL)?;
    let value = ptr::from_ref(&value).cast::<c_void>();
    // SAFETY: the fd is borrowed and so open; `value` points to `length` bytes of a live local.
    let result = unsafe { libc::setsockopt(socket.as_fd().as_raw_fd(), level, option, value, length) };
    match result {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
