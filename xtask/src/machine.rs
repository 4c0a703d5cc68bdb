//! What this machine can do for demo and tests: found out by trying, completed where that is possible.

use std::fs;

use anyhow::Result;
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};
use rustix::process::geteuid;

use crate::{debian, shell};

/// A machine that was looked at and completed.
pub(crate) struct Machine {
    /// Why what needs root and AF_XDP cannot run, if it cannot.
    pub(crate) unfit: Option<String>,
}

impl Machine {
    /// Looks at kernel and tools before anything is built: what is missing should not show after minutes.
    pub(crate) fn prepare(without_root: bool) -> Result<Self> {
        let unfit = if without_root {
            Some("--without-root was given".to_owned())
        } else {
            missing_rights().or_else(missing_in_kernel)
        };
        // The Python client that the papers show is run by a test.
        if unfit.is_none() && shell::find("python3").is_none() {
            debian::install(&["python3"], "one test runs the Python client of the papers")?;
        }
        Ok(Self { unfit })
    }
}

/// Asks for root once, at the start, where somebody may be there to type a password.
fn missing_rights() -> Option<String> {
    if geteuid().is_root() {
        return None;
    }
    eprintln!("network namespaces and AF_XDP need root: asking sudo");
    match shell::as_root("true").and_then(|mut command| shell::run(&mut command)) {
        Ok(()) => None,
        Err(error) => Some(format!("they need root, and {error:#}")),
    }
}

fn missing_in_kernel() -> Option<String> {
    // The kernel looks for the family before it looks at rights, so this asks the right question of any uid:
    // without CAP_NET_RAW the answer is EPERM where AF_XDP exists (xsk_create, net/xdp/xsk.c).
    let socket = socket_with(AddressFamily::XDP, SocketType::RAW, SocketFlags::CLOEXEC, None);
    if let Err(Errno::AFNOSUPPORT) = socket {
        return Some("this kernel has no AF_XDP sockets (CONFIG_XDP_SOCKETS)".to_owned());
    }
    let filesystems = fs::read_to_string("/proc/filesystems").unwrap_or_default();
    let has_bpffs = filesystems
        .lines()
        .any(|line| line.split_whitespace().last() == Some("bpf"));
    if !has_bpffs {
        return Some("this kernel has no bpf file system (CONFIG_BPF_SYSCALL)".to_owned());
    }
    None
}
