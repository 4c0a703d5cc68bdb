//! RLIMIT_NOFILE as the daemon wants it: each lease takes fds, and a start that ran short half way would lose some.

use std::io;
use std::os::fd::OwnedFd;

use anyhow::{Context, ensure};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::quota::open_files_for;

/// Takes as many fds as the limit that only root can raise lets us have, and says how many.
///
/// # Errors
///
/// Where that is less than any broker wants: one would start or not as its threads happen to meet, and serve nobody.
pub(super) fn raise() -> anyhow::Result<u64> {
    let limit = getrlimit(Resource::Nofile);
    let most = limit.maximum.unwrap_or(u64::MAX);
    ensure!(most >= open_files_for(0), "{}", too_few());
    setrlimit(
        Resource::Nofile,
        Rlimit {
            current: limit.maximum,
            ..limit
        },
    )
    .context("cannot raise RLIMIT_NOFILE")?;
    Ok(most)
}

/// Asks for as many more as taking over so many leases needs, and serving.
///
/// # Errors
///
/// EMFILE: nothing has been changed yet, and nothing must be.
pub(super) fn demand_for(leases: usize) -> anyhow::Result<()> {
    /// What is opened from the heritage on to the first client, and some clients.
    const SERVING: usize = 64;

    // Its holder has a pidfd by now, which is watched by another.
    let dup = || rustix::io::fcntl_dupfd_cloexec(io::stdin(), 0).map_err(io::Error::from);
    let spare: io::Result<Vec<OwnedFd>> = (0..leases + SERVING).map(|_| dup()).collect();
    spare.map(drop).with_context(|| {
        format!("there are no fds for {leases} leases that are to be taken over and {SERVING} more")
    })
}

/// What to do where the kernel gives no more fds: it does not say whose limit that is.
pub(super) fn hint(error: &anyhow::Error) -> String {
    let errno = |cause: &(dyn std::error::Error + 'static)| {
        let io = cause
            .downcast_ref::<io::Error>()
            .and_then(io::Error::raw_os_error);
        io.or_else(|| Some(cause.downcast_ref::<rustix::io::Errno>()?.raw_os_error()))
    };
    match error.chain().any(|cause| errno(cause) == Some(libc::EMFILE)) {
        true => format!("\n{}", too_few()),
        false => String::new(),
    }
}

fn too_few() -> String {
    let most = getrlimit(Resource::Nofile).maximum;
    format!(
        "RLIMIT_NOFILE is {} here. A broker wants {} at least, one more for each queue that it grants, two for each lease, and more \
         for clients and placeholders: LimitNOFILE=131072 in its unit, or `ulimit -n 131072` before it is started",
        most.map_or_else(|| "unlimited".to_owned(), |most| most.to_string()),
        open_files_for(0)
    )
}
