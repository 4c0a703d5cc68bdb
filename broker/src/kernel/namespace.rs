//! A network namespace of one's own: where `revoke --cut-device` moves a device for a moment. The daemon never comes here.

#![expect(unsafe_code, reason = "unshare(2), which may share too little of a process")]

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::thread;

use rustix::thread::{LinkNameSpaceType, UnshareFlags, move_into_link_name_space};

/// The network namespace of the calling thread.
///
/// # Errors
///
/// As open(2) of `/proc/thread-self/ns/net`.
pub fn here() -> io::Result<OwnedFd> {
    File::open("/proc/thread-self/ns/net").map(OwnedFd::from)
}

/// A fresh one, which lives as long as the fd, and what is in it. Needs CAP_SYS_ADMIN.
///
/// # Errors
///
/// As unshare(2).
pub fn fresh() -> io::Result<OwnedFd> {
    on_a_thread(|| {
        // SAFETY: CLONE_NEWNET alone: this thread, which ends with this closure, gets another network namespace and goes
        // on sharing everything else; CLONE_FILES, after which fds would be others than they seem, is not asked for.
        unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNET) }?;
        here()
    })
}

/// Does something on a thread of its own in that namespace.
///
/// # Errors
///
/// As setns(2), and as `action`.
pub fn inside<T: Send>(namespace: &OwnedFd, action: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
    on_a_thread(|| {
        move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))?;
        action()
    })
}

fn on_a_thread<T: Send>(action: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
    thread::scope(|scope| {
        let done = scope.spawn(action).join();
        done.unwrap_or_else(|_| {
            Err(io::Error::other(
                "the thread in another network namespace panicked",
            ))
        })
    })
}
