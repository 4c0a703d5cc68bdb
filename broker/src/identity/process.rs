//! A process, pinned so that another one that has its pid is never mistaken for it.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use xsk_client::sys::start_ticks;
use xsk_client::wire::{BrokerError, Transfer};

use super::{IdentityError, hung_up};

/// A process, pinned by a pidfd.
#[derive(Debug)]
pub struct Process {
    pid: u32,
    /// None of one that was gone before it could be pinned.
    pidfd: Option<OwnedFd>,
    inode: u64,
    start_ticks: u64,
}

impl Process {
    /// The process that a client names, if it is that one: the pid may have been given to another meanwhile, or be a
    /// lie. From Linux 6.9 the inode of its pidfd decides, before that the time of its start.
    ///
    /// # Errors
    ///
    /// [`BrokerError::NoSuchProcess`], [`BrokerError::InvalidRequest`] where what decides was not given.
    pub fn named(call: &Transfer) -> Result<Self, BrokerError> {
        let no_such = |message| BrokerError::NoSuchProcess {
            pid: call.pid,
            message,
        };
        let gone = || {
            no_such(format!(
                "there is no process {} in the broker's pid namespace, or it has exited",
                call.pid
            ))
        };
        let pid = i32::try_from(call.pid)
            .ok()
            .and_then(Pid::from_raw)
            .ok_or_else(gone)?;
        let pidfd = pidfd_open(pid, PidfdFlags::empty()).map_err(|_| gone())?;
        let told_apart = ToldApart::by(&pidfd);
        let process = Self::new(pid, pidfd).map_err(|_| gone())?;
        process.check_named(call, told_apart)?;
        Ok(process)
    }

    /// Whether it is the process that a client means.
    pub(super) fn check_named(&self, call: &Transfer, told_apart: ToldApart) -> Result<(), BrokerError> {
        let (told, needed) = match told_apart {
            ToldApart::ByInode => (call.pidfd_inode, "pidfdInode"),
            ToldApart::ByStart => (call.start_ticks, "startTicks"),
        };
        if told.is_none() {
            return Err(BrokerError::InvalidRequest {
                message: format!(
                    "parameters of Transfer: on this kernel {needed} tells a process from another, give it"
                ),
            });
        }
        let same_inode = told_apart == ToldApart::ByStart || call.pidfd_inode == Some(self.inode);
        let same_start = call.start_ticks.is_none_or(|ticks| ticks == self.start_ticks);
        match same_inode && same_start {
            true => Ok(()),
            false => Err(BrokerError::NoSuchProcess {
                pid: call.pid,
                message: format!(
                    "process {} is another one than was named: {needed} differs",
                    call.pid
                ),
            }),
        }
    }

    pub(super) fn new(pid: Pid, pidfd: OwnedFd) -> Result<Self, IdentityError> {
        let stat = rustix::fs::fstat(&pidfd).map_err(|source| IdentityError::Ask {
            option: "fstat of the pidfd",
            source: source.into(),
        })?;
        let pid = u32::try_from(pid.as_raw_nonzero().get()).map_err(|_| IdentityError::Gone)?;
        let start_ticks = start_ticks(pid);
        // The start time was read by pid: it is this process's only if the process still is.
        if ready(pidfd.as_fd(), PollFlags::IN) {
            return Err(IdentityError::Gone);
        }
        let start_ticks = start_ticks.map_err(|source| IdentityError::Ask {
            option: "/proc/PID/stat",
            source,
        })?;
        Ok(Self {
            pid,
            pidfd: Some(pidfd),
            inode: stat.st_ino,
            start_ticks,
        })
    }

    /// Where there is no SO_PEERPIDFD (before Linux 6.5): open the pid, then make sure that it is still the one
    /// that connected. A pid that was reused in between belongs to another uid or to a process whose start is
    /// later than the connection; that it died at all shows as the end of the connection.
    pub(super) fn by_pid(pid: Pid, uid: u32, socket: BorrowedFd<'_>) -> Result<Self, IdentityError> {
        let now = boot_ticks();
        let pidfd = pidfd_open(pid, PidfdFlags::empty()).map_err(|_| IdentityError::Gone)?;
        let process = Self::new(pid, pidfd)?;
        let [_, effective, _] = uids(process.pid)?;
        let same_user = effective == uid;
        if !same_user || process.start_ticks > now || hung_up(socket) || process.has_exited() {
            return Err(IdentityError::Gone);
        }
        Ok(process)
    }

    /// The process of that id that started then (field 22 of proc_pid_stat(5)); `None` where it is no more.
    ///
    /// # Errors
    ///
    /// Where that cannot be told: it may be there.
    pub fn find(pid: u32, start_ticks: u64) -> io::Result<Option<Self>> {
        let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) else {
            return Ok(None);
        };
        let pidfd = match pidfd_open(pid, PidfdFlags::empty()) {
            Ok(pidfd) => pidfd,
            // Nobody's, or a thread's of another process (EINVAL, from Linux 6.15 ENOENT).
            Err(Errno::SRCH | Errno::INVAL | Errno::NOENT) => return Ok(None),
            Err(errno) => return Err(errno.into()),
        };
        match Self::new(pid, pidfd) {
            Ok(process) => Ok((process.start_ticks == start_ticks).then_some(process)),
            Err(IdentityError::Gone) => Ok(None),
            Err(IdentityError::Ask { source, .. }) => Err(source),
        }
    }

    /// The process that was written down so; `None` where it is no more. The inode of its pidfd decides where it is its own.
    ///
    /// # Errors
    ///
    /// As [`Self::find`].
    pub fn find_same(pid: u32, inode: u64, start_ticks: u64) -> io::Result<Option<Self>> {
        let is_same = |found: &Self| {
            let told_apart = found.pidfd.as_ref().map(ToldApart::by);
            told_apart != Some(ToldApart::ByInode) || found.inode == inode
        };
        Ok(Self::find(pid, start_ticks)?.filter(is_same))
    }

    /// A process that was written down so and is no more.
    pub fn gone(pid: u32, inode: u64, start_ticks: u64) -> Self {
        Self {
            pid,
            pidfd: None,
            inode,
            start_ticks,
        }
    }

    /// When it started, in clock ticks since boot: for who wants to [`Process::find`] it again.
    pub fn start_ticks(&self) -> u64 {
        self.start_ticks
    }

    /// Its id in our pid namespace.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// The inode number of its pidfd: unique for each process from Linux 6.9 (pidfs), the same for all before.
    pub fn inode(&self) -> u64 {
        self.inode
    }

    /// Its real, effective and saved uid now.
    ///
    /// # Errors
    ///
    /// [`IdentityError::Gone`]: it has exited, or its `/proc/PID/status` cannot be read.
    pub fn uids(&self) -> Result<[u32; 3], IdentityError> {
        let uids = uids(self.pid)?;
        // They were read by pid, which is its own for as long as it runs.
        match self.has_exited() {
            true => Err(IdentityError::Gone),
            false => Ok(uids),
        }
    }

    /// Whether it may have been of that user at some time. A process keeps one of its uids for ever, unless it becomes root: of
    /// the machine, or of a user namespace.
    pub fn may_have_been_of(&self, uid: u32) -> bool {
        const ROOT: u32 = 0;

        let Ok(now) = self.uids() else { return true };
        uid == ROOT || now.contains(&ROOT) || now.contains(&uid) || !self.is_of_our_user_namespace()
    }

    fn is_of_our_user_namespace(&self) -> bool {
        let of = |process: &str| std::fs::read_link(format!("/proc/{process}/ns/user")).ok();
        of(&self.pid.to_string()).is_some_and(|namespace| of("self") == Some(namespace))
    }

    /// Its pidfd, readable once it has exited (pidfd_open(2)). `None` where it had exited before it could be pinned.
    pub fn pidfd(&self) -> Option<BorrowedFd<'_>> {
        self.pidfd.as_ref().map(AsFd::as_fd)
    }

    /// Whether it is no more.
    pub fn has_exited(&self) -> bool {
        self.pidfd().is_none_or(|pidfd| ready(pidfd, PollFlags::IN))
    }

    /// Whether both are one process. The inode alone decides from Linux 6.9; before it is one and the same for
    /// all pidfds, and pid with start time decide.
    pub fn is(&self, other: &Self) -> bool {
        (self.inode, self.pid, self.start_ticks) == (other.inode, other.pid, other.start_ticks)
    }
}

fn ready(fd: BorrowedFd<'_>, flags: PollFlags) -> bool {
    let mut fds = [PollFd::from_borrowed_fd(fd, flags)];
    let at_once = Timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // EINTR cannot be: a poll that does not wait is not interrupted. Any other error means a broken fd, and then
    // it is right to say that nothing keeps the process.
    poll(&mut fds, Some(&at_once)).map_or(true, |count| count > 0)
}

/// The first three numbers of the line Uid of /proc/PID/status (proc_pid_status(5)): real, effective, saved. The owner of
/// /proc/PID itself is root for a process that has changed its uid.
fn uids(pid: u32) -> Result<[u32; 3], IdentityError> {
    let status = std::fs::read(format!("/proc/{pid}/status")).map_err(|_| IdentityError::Gone)?;
    // What a process is called is its own choice, and need not be UTF-8.
    let status = String::from_utf8_lossy(&status);
    let line = status.lines().find_map(|line| line.strip_prefix("Uid:"));
    let mut uids = line.unwrap_or_default().split_whitespace().map(str::parse);
    let mut next = || uids.next()?.ok();
    match (next(), next(), next()) {
        (Some(real), Some(effective), Some(saved)) => Ok([real, effective, saved]),
        _ => Err(IdentityError::Gone),
    }
}

/// What tells a process from another one that has its pid.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ToldApart {
    /// The inode number of its pidfd: from Linux 6.9 these are files of pidfs (`pidfs_alloc_file`, fs/pidfs.c).
    ByInode,
    /// The time of its start: before, all pidfds share one anonymous inode.
    ByStart,
}

impl ToldApart {
    fn by(pidfd: &OwnedFd) -> Self {
        /// include/uapi/linux/magic.h.
        const PID_FS_MAGIC: rustix::fs::FsWord = 0x5049_4446;

        match rustix::fs::fstatfs(pidfd) {
            Ok(file_system) if file_system.f_type == PID_FS_MAGIC => Self::ByInode,
            _ => Self::ByStart,
        }
    }
}

/// Now, in the same unit.
fn boot_ticks() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    let per_second = rustix::param::clock_ticks_per_second();
    let seconds = u64::try_from(now.tv_sec).unwrap_or(0);
    let nanos = u64::try_from(now.tv_nsec).unwrap_or(0);
    seconds * per_second + nanos * per_second / 1_000_000_000
}
