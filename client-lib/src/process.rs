//! A process named so that no other one with the same pid is mistaken for it: where a lease is to move to.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::process::Child;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use crate::sys::start_ticks;
use crate::wire::Transfer;

/// Which process, by what the kernel says of it: its pid with the inode of its pidfd and the time of its start.
///
/// ```no_run
/// use xsk_client::{Broker, ProcessId};
///
/// let mut broker = Broker::connect()?;
/// let vmm = std::process::Command::new("vmm").spawn()?;
/// // Of the sockets that were handed to it before.
/// broker.transfer(7, &ProcessId::of_child(&vmm)?)?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ProcessId {
    pid: u32,
    pidfd_inode: u64,
    start_ticks: u64,
}

impl ProcessId {
    /// A child of this process. It was not waited for, so that its pid is still its own.
    ///
    /// # Errors
    ///
    /// As pidfd_open(2) (Linux 5.3); [`io::ErrorKind::NotFound`] where it has exited.
    pub fn of_child(child: &Child) -> io::Result<Self> {
        Self::of(pidfd_open(Pid::from_child(child), PidfdFlags::empty())?.as_fd())
    }

    /// The process that a pidfd is for, however that came.
    ///
    /// # Errors
    ///
    /// [`io::ErrorKind::NotFound`] where it has exited, or is in no pid namespace of ours; those of reading
    /// `/proc/self/fdinfo` and `/proc/PID/stat`.
    pub fn of(pidfd: BorrowedFd<'_>) -> io::Result<Self> {
        let gone = || {
            io::Error::new(
                io::ErrorKind::NotFound,
                "the process has exited, or is not of this pid namespace",
            )
        };
        let pid = pid_of(pidfd)?.ok_or_else(gone)?;
        let start_ticks = match start_ticks(pid) {
            Ok(ticks) => ticks,
            Err(_) if has_exited(pidfd)? => return Err(gone()),
            // Of any kind but the one that says that it is gone.
            Err(error) => return Err(io::Error::other(format!("/proc/{pid}/stat: {error}"))),
        };
        let process = Self {
            pid,
            pidfd_inode: rustix::fs::fstat(pidfd)?.st_ino,
            start_ticks,
        };
        // What was read by pid is this process's only if it still runs.
        match has_exited(pidfd)? {
            true => Err(gone()),
            false => Ok(process),
        }
    }

    /// Its pid, in this process's pid namespace.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// The same as a request.
    pub fn transfer_of(&self, lease: u64) -> Transfer {
        Transfer {
            lease,
            pid: self.pid,
            pidfd_inode: Some(self.pidfd_inode),
            start_ticks: Some(self.start_ticks),
        }
    }

    /// A pidfd of the process that is meant by a holder's pid and inode (or time of start, before Linux 6.9), to watch it
    /// or to send it a signal. `None`: it is gone.
    ///
    /// # Errors
    ///
    /// Other failures of pidfd_open(2) than that there is no such process.
    pub fn open(holder: &crate::wire::Holder) -> io::Result<Option<OwnedFd>> {
        let Some(pid) = i32::try_from(holder.pid).ok().and_then(Pid::from_raw) else {
            return Ok(None);
        };
        let pidfd = match pidfd_open(pid, PidfdFlags::empty()) {
            Ok(pidfd) => pidfd,
            Err(rustix::io::Errno::SRCH) => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        let same = match Self::of(pidfd.as_fd()) {
            Ok(process) => {
                (process.pidfd_inode, process.start_ticks) == (holder.pidfd_inode, holder.start_ticks)
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => false,
            Err(error) => return Err(error),
        };
        Ok(same.then_some(pidfd))
    }
}

/// The line Pid of /proc/self/fdinfo/FD (proc_pid_fdinfo(5)): -1 once it has been waited for, 0 for a process of another
/// pid namespace.
fn pid_of(pidfd: BorrowedFd<'_>) -> io::Result<Option<u32>> {
    use std::os::fd::AsRawFd;
    let info = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", pidfd.as_raw_fd()))?;
    let pid = info.lines().find_map(|line| line.strip_prefix("Pid:"));
    let pid =
        pid.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "the file descriptor is no pidfd"))?;
    Ok(pid.trim().parse().ok().filter(|pid| *pid > 0))
}

fn has_exited(pidfd: BorrowedFd<'_>) -> io::Result<bool> {
    let at_once = Timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    Ok(poll(
        &mut [PollFd::from_borrowed_fd(pidfd, PollFlags::IN)],
        Some(&at_once),
    )? > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_child_is_named_until_it_exits() {
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let process = ProcessId::of_child(&child).unwrap();
        assert_eq!(process.pid(), child.id());
        assert_eq!(ProcessId::of_child(&child).unwrap(), process);
        let transfer = process.transfer_of(7);
        let mut holder = crate::wire::Holder {
            pid: transfer.pid,
            uid: 0,
            pidfd_inode: transfer.pidfd_inode.unwrap(),
            start_ticks: transfer.start_ticks.unwrap(),
            alive: true,
        };
        assert!(ProcessId::open(&holder).unwrap().is_some());
        holder.start_ticks += 1;
        assert!(ProcessId::open(&holder).unwrap().is_none());
        child.kill().unwrap();
        // A zombie is no process to move a lease to.
        while ProcessId::of_child(&child).is_ok() {
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
        let error = ProcessId::of_child(&child).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
        child.wait().unwrap();
    }

    #[test]
    fn what_is_no_pidfd_is_no_process() {
        let (ours, _theirs) = std::os::unix::net::UnixStream::pair().unwrap();
        let error = ProcessId::of(ours.as_fd()).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
    }
}
