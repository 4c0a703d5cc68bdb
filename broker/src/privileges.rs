//! What the broker may do, and when.
//!
//! **Invariant**: after [`drop_to`] the process is an ordinary uid with [`KEPT`] permitted and nothing effective,
//! inheritable or ambient, its bounding set empty, no_new_privs set. Threads that need none of it call
//! [`renounce`]; the engine raises one capability around one call with [`with`].

use std::fs;

use caps::{CapSet, Capability, CapsHashSet};
use rustix::process::{Gid, Uid};

use crate::error::Failure;

/// The permitted set of the engine, each with its why.
pub const KEPT: [(Capability, &str); 4] = [
    (
        Capability::CAP_NET_RAW,
        "socket(AF_XDP), net/xdp/xsk.c xsk_create",
    ),
    (
        Capability::CAP_NET_ADMIN,
        "loading and attaching XDP; the larger busy-poll options of later versions",
    ),
    (Capability::CAP_BPF, "BPF_MAP_CREATE of an XSKMAP, BPF_PROG_LOAD"),
    (
        Capability::CAP_IPC_LOCK,
        "the one-page umem of a probe socket, whatever RLIMIT_MEMLOCK says",
    ),
];

/// The account that the daemon ends as.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Account {
    /// Never 0.
    pub uid: u32,
    /// Its primary group.
    pub gid: u32,
}

/// Gives up root for good, on the only thread that there is.
///
/// # Errors
///
/// Any step that the kernel refuses, and any set that reads back other than it was set. The process must not go on
/// then.
pub fn drop_to(account: Account) -> Result<(), Failure> {
    // uid, groups and capabilities are each thread's own in Linux: with a second thread this would be a lie.
    let threads = fs::read_dir("/proc/self/task")
        .map_err(|source| Failure::kernel("read", "/proc/self/task", source))?
        .count();
    if threads != 1 || account.uid == 0 {
        return Err(Failure::kernel(
            "drop privileges",
            "one thread, to a uid above 0",
            rustix::io::Errno::INVAL,
        ));
    }

    let kept: CapsHashSet = KEPT.iter().map(|(capability, _)| *capability).collect();
    let failed = |step| move |source| Failure::Capabilities { step, source };

    // The bounding set first: cutting it takes CAP_SETPCAP.
    for capability in caps::runtime::thread_all_supported() {
        caps::drop(None, CapSet::Bounding, capability).map_err(failed("cut the bounding set"))?;
    }
    caps::securebits::set_keepcaps(true).map_err(failed("prctl(PR_SET_KEEPCAPS)"))?;

    let object = format!("uid {}, gid {}", account.uid, account.gid);
    let (uid, gid) = (Uid::from_raw(account.uid), Gid::from_raw(account.gid));
    rustix::thread::set_thread_groups(&[]).map_err(|source| Failure::kernel("setgroups", &object, source))?;
    rustix::thread::set_thread_res_gid(gid, gid, gid)
        .map_err(|source| Failure::kernel("setresgid", &object, source))?;
    rustix::thread::set_thread_res_uid(uid, uid, uid)
        .map_err(|source| Failure::kernel("setresuid", &object, source))?;

    caps::clear(None, CapSet::Effective).map_err(failed("clear the effective set"))?;
    caps::clear(None, CapSet::Inheritable).map_err(failed("clear the inheritable set"))?;
    caps::clear(None, CapSet::Ambient).map_err(failed("clear the ambient set"))?;
    caps::set(None, CapSet::Permitted, &kept).map_err(failed("cut the permitted set"))?;
    caps::securebits::set_keepcaps(false).map_err(failed("prctl(PR_SET_KEEPCAPS, 0)"))?;
    rustix::thread::set_no_new_privs(true)
        .map_err(|source| Failure::kernel("prctl(PR_SET_NO_NEW_PRIVS)", &object, source))?;

    let uids = [rustix::process::getuid(), rustix::process::geteuid()];
    if uids.iter().any(|now| *now != uid) {
        return Err(Failure::kernel(
            "drop privileges",
            &object,
            rustix::io::Errno::PERM,
        ));
    }
    verify(&kept)
}

/// Gives up the permitted set too: for threads that never raise anything.
///
/// # Errors
///
/// What capset(2) says.
pub fn renounce() -> Result<(), Failure> {
    let failed = |step| move |source| Failure::Capabilities { step, source };
    caps::clear(None, CapSet::Effective).map_err(failed("clear the effective set"))?;
    caps::clear(None, CapSet::Permitted).map_err(failed("clear the permitted set"))?;
    verify(&CapsHashSet::new())
}

/// Does one thing with these capabilities effective, on this thread only.
///
/// # Errors
///
/// Where a capability cannot be raised: `action` was not done.
pub fn with<T>(capabilities: &[Capability], action: impl FnOnce() -> T) -> Result<T, Failure> {
    struct Lower;

    impl Drop for Lower {
        fn drop(&mut self) {
            if let Err(error) = caps::clear(None, CapSet::Effective) {
                // Going on with a raised capability would break the one promise of this file.
                tracing::error!(%error, "cannot lower capabilities, the broker ends");
                std::process::abort();
            }
        }
    }

    let lower = Lower;
    for capability in capabilities {
        caps::raise(None, CapSet::Effective, *capability).map_err(|source| Failure::Capabilities {
            step: "raise a capability",
            source,
        })?;
    }
    let result = action();
    drop(lower);
    Ok(result)
}

/// The names of this thread's permitted capabilities, sorted.
pub fn permitted() -> Vec<String> {
    let permitted = caps::read(None, CapSet::Permitted).unwrap_or_default();
    let mut names: Vec<String> = permitted.iter().map(ToString::to_string).collect();
    names.sort();
    names
}

fn verify(permitted: &CapsHashSet) -> Result<(), Failure> {
    let empty = CapsHashSet::new();
    let expected = [
        (CapSet::Permitted, permitted),
        (CapSet::Effective, &empty),
        (CapSet::Inheritable, &empty),
        (CapSet::Ambient, &empty),
        (CapSet::Bounding, &empty),
    ];
    for (set, expected) in expected {
        let found = caps::read(None, set).map_err(|source| Failure::Capabilities {
            step: "read the sets back",
            source,
        })?;
        if found != *expected {
            return Err(Failure::kernel(
                "drop privileges",
                format!("{set:?} set"),
                rustix::io::Errno::PERM,
            ));
        }
    }
    Ok(())
}
