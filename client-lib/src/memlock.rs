//! RLIMIT_MEMLOCK, before it is needed: whether a process may pin a umem of a given size.
//!
//! The kernel counts a umem against the limit of the process that registers it, together with what all processes of
//! that uid have registered (`xdp_umem_account_pages`, net/xdp/xdp_umem.c). How much that is nobody can ask: a limit
//! that is too low for this umem alone is surely too low, one that is high enough may still be used up.

use std::fmt;
use std::io;

use rustix::process::{Resource, getrlimit, getuid};
use rustix::thread::CapabilitySet;

/// A umem is larger than the limit of the process that is to register it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "{}, which uid {uid} shares over its processes; at least {least} bytes are needed: LimitMEMLOCK={least} of its systemd \
     service, `prlimit --memlock={least} COMMAND` as root, or `:{uid} - memlock {}` in /etc/security/limits.conf for its \
     next login; or less memory",
    Excess(self), self.least_bytes().div_ceil(1024), least = self.least_bytes()
)]
pub struct MemlockTooLow {
    /// What is to be pinned.
    pub needed_bytes: u64,
    /// The soft limit of the process.
    pub limit_bytes: u64,
    /// Whose pinned pages are counted together: the real uid.
    pub uid: u32,
}

/// Which of the two it is: too much by itself, or together with what the uid has pinned already.
struct Excess<'a>(&'a MemlockTooLow);

impl fmt::Display for Excess<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let MemlockTooLow {
            needed_bytes,
            limit_bytes,
            ..
        } = *self.0;
        let (umem, limit) = (Bytes(needed_bytes), Bytes(limit_bytes));
        match needed_bytes > limit_bytes {
            true => write!(f, "a umem of {umem} is above RLIMIT_MEMLOCK {limit}"),
            false => write!(
                f,
                "a umem of {umem} and what is pinned already are above RLIMIT_MEMLOCK {limit}"
            ),
        }
    }
}

impl MemlockTooLow {
    /// The least limit that could do: where the umem alone is not too much, more than the present limit is used or asked
    /// for.
    fn least_bytes(&self) -> u64 {
        match self.needed_bytes > self.limit_bytes {
            true => self.needed_bytes,
            false => self.limit_bytes.saturating_add(self.needed_bytes),
        }
    }

    /// Looks whether this process, or what it becomes by exec, may pin so many bytes.
    ///
    /// # Errors
    ///
    /// [`MemlockTooLow`].
    pub fn check(needed_bytes: u64) -> Result<(), Self> {
        let limit_bytes = getrlimit(Resource::Memlock).current.unwrap_or(u64::MAX);
        let capabilities = rustix::thread::capabilities(None);
        let may_exceed = capabilities.is_ok_and(|sets| sets.effective.contains(CapabilitySet::IPC_LOCK));
        let too_low = Self {
            needed_bytes,
            limit_bytes,
            uid: getuid().as_raw(),
        };
        too_low.unless(may_exceed && is_whole_user_namespace("self"))
    }

    /// The same of another process, as of a virtual machine that is to be given sockets.
    ///
    /// # Errors
    ///
    /// What reading `/proc/PID` says; the inner one is [`MemlockTooLow`].
    pub fn check_process(pid: u32, needed_bytes: u64) -> io::Result<Result<(), Self>> {
        let read = |file| std::fs::read_to_string(format!("/proc/{pid}/{file}"));
        let (limits, status) = (read("limits")?, read("status")?);
        let malformed = || io::Error::from(io::ErrorKind::InvalidData);
        let limit_bytes = soft_memlock(&limits).ok_or_else(malformed)?;
        let uid = field(&status, "Uid:").and_then(|uid| uid.parse().ok());
        let effective = field(&status, "CapEff:").and_then(|set| u64::from_str_radix(set, 16).ok());
        let effective = CapabilitySet::from_bits_retain(effective.ok_or_else(malformed)?);
        let too_low = Self {
            needed_bytes,
            limit_bytes,
            uid: uid.ok_or_else(malformed)?,
        };
        let may_exceed = effective.contains(CapabilitySet::IPC_LOCK);
        Ok(too_low.unless(may_exceed && is_whole_user_namespace(&pid.to_string())))
    }

    fn unless(self, may_exceed: bool) -> Result<(), Self> {
        match may_exceed || self.needed_bytes <= self.limit_bytes {
            true => Ok(()),
            false => Err(self),
        }
    }
}

/// CAP_IPC_LOCK counts in the initial user namespace only (`capable`), which maps all uids to themselves.
fn is_whole_user_namespace(process: &str) -> bool {
    std::fs::read_to_string(format!("/proc/{process}/uid_map"))
        .is_ok_and(|map| map.split_whitespace().eq(["0", "0", "4294967295"]))
}

/// The soft limit of `/proc/PID/limits`.
fn soft_memlock(limits: &str) -> Option<u64> {
    let values = limits
        .lines()
        .find_map(|line| line.strip_prefix("Max locked memory"))?;
    match values.split_whitespace().next()? {
        "unlimited" => Some(u64::MAX),
        bytes => bytes.parse().ok(),
    }
}

/// The first word of a line of `/proc/PID/status`.
fn field<'a>(status: &'a str, name: &str) -> Option<&'a str> {
    let line = status.lines().find_map(|line| line.strip_prefix(name))?;
    line.split_whitespace().next()
}

/// Bytes as people write them.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Bytes(pub(crate) u64);

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const KIB: u64 = 1 << 10;
        const MIB: u64 = 1 << 20;
        match self.0 {
            bytes if bytes >= MIB && bytes.is_multiple_of(MIB) => write!(f, "{} MiB", bytes / MIB),
            bytes if bytes >= KIB && bytes.is_multiple_of(KIB) => write!(f, "{} KiB", bytes / KIB),
            bytes => write!(f, "{bytes} bytes"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_told_in_words() {
        let error = MemlockTooLow {
            needed_bytes: 32 << 20,
            limit_bytes: 8 << 20,
            uid: 1001,
        };
        let text = error.to_string();
        let begin =
            "a umem of 32 MiB is above RLIMIT_MEMLOCK 8 MiB, which uid 1001 shares over its processes";
        assert!(text.starts_with(begin), "{text}");
        for way in [
            "LimitMEMLOCK=33554432",
            "prlimit --memlock=33554432",
            "`:1001 - memlock 32768`",
        ] {
            assert!(text.contains(way), "{text}");
        }
    }

    #[test]
    fn what_would_fit_alone_is_told_to_be_too_much_together() {
        let error = MemlockTooLow {
            needed_bytes: 4 << 20,
            limit_bytes: 8 << 20,
            uid: 1001,
        };
        let text = error.to_string();
        let begin =
            "a umem of 4 MiB and what is pinned already are above RLIMIT_MEMLOCK 8 MiB, which uid 1001";
        assert!(text.starts_with(begin), "{text}");
        assert!(text.contains("prlimit --memlock=12582912"), "{text}");
    }

    #[test]
    fn this_process_is_judged_alike_by_both() {
        let pid = std::process::id();
        for bytes in [0, 1 << 40, u64::MAX] {
            let own = MemlockTooLow::check(bytes);
            assert_eq!(own, MemlockTooLow::check_process(pid, bytes).unwrap());
        }
        MemlockTooLow::check(0).unwrap();
        assert!(MemlockTooLow::check_process(u32::MAX, 0).is_err());
    }

    #[test]
    fn limits_are_read() {
        let line =
            |value| format!("Max processes 1 1 processes\nMax locked memory         {value}   9   bytes\n");
        assert_eq!(soft_memlock(&line("8388608")), Some(8 << 20));
        assert_eq!(soft_memlock(&line("unlimited")), Some(u64::MAX));
        assert_eq!(soft_memlock("Max processes 1"), None);
    }
}
