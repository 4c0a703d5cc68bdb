//! Anonymous namespaces: kept alive by file descriptors alone, so that nothing of them outlives the process, be it
//! killed. They have no name in `/run/netns`, and their mounts are seen from nowhere else.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::thread;

use anyhow::{Context, Result, anyhow};
use rustix::fs::{Mode, OFlags};
use rustix::mount::{MountPropagationFlags, mount_change};
use rustix::thread::{LinkNameSpaceType, UnshareFlags, move_into_link_name_space};

use crate::sys;

/// A network namespace, and the mount namespace that goes with it. A clone is the same namespaces.
#[derive(Debug, Clone)]
pub struct Namespace {
    net: Arc<OwnedFd>,
    mount: Arc<OwnedFd>,
}

impl Namespace {
    /// A fresh network namespace and a fresh mount namespace. `mounts` runs inside, before anybody can enter.
    pub fn new(mounts: impl FnOnce() -> Result<()> + Send) -> Result<Self> {
        on_a_thread(|| {
            sys::unshare(UnshareFlags::NEWNET | UnshareFlags::NEWNS).context("unshare(net, mnt)")?;
            // Else what is mounted here would appear in the namespace that this one was cloned from.
            mount_change("/", MountPropagationFlags::REC | MountPropagationFlags::PRIVATE)
                .context("making all mounts private")?;
            mounts()?;
            Ok(Self {
                net: Arc::new(open("net")?),
                mount: Arc::new(open("mnt")?),
            })
        })
    }

    /// A fresh network namespace that shares this one's mounts.
    pub fn sibling(&self) -> Result<Self> {
        let net = on_a_thread(|| {
            sys::unshare(UnshareFlags::NEWNET).context("unshare(net)")?;
            open("net")
        })?;
        Ok(Self {
            net: Arc::new(net),
            mount: Arc::clone(&self.mount),
        })
    }

    /// Moves the calling thread in for good; system calls only, so that it may run between fork and exec.
    ///
    /// The working directory becomes `/`.
    pub fn enter(&self) -> io::Result<()> {
        use std::os::fd::AsFd;
        // A thread shares its root and working directory with the others of its process; setns(mnt) wants them
        // alone.
        sys::unshare(UnshareFlags::FS)?;
        move_into_link_name_space(self.mount.as_fd(), Some(LinkNameSpaceType::Mount))?;
        move_into_link_name_space(self.net.as_fd(), Some(LinkNameSpaceType::Network))?;
        Ok(())
    }

    /// Runs `f` on a thread of its own inside. A panic there goes on in the caller.
    ///
    /// Sockets made inside stay there, and may be used from anywhere.
    pub fn run<T: Send>(&self, f: impl FnOnce() -> T + Send) -> Result<T> {
        on_a_thread(|| {
            self.enter().context("entering the namespace")?;
            Ok(f())
        })
    }

    /// The network namespace's fd: for moving devices into it.
    pub fn net(&self) -> &OwnedFd {
        &self.net
    }

    /// The inode numbers of both namespaces, by which `/proc` names them.
    pub fn inodes(&self) -> Result<[u64; 2]> {
        Ok([
            rustix::fs::fstat(&*self.net)?.st_ino,
            rustix::fs::fstat(&*self.mount)?.st_ino,
        ])
    }
}

/// Runs `f` on a thread named like this one, so that what it prints and how it panics belongs to the same test.
pub(crate) fn on_a_thread<T: Send>(f: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    let name = thread::current().name().unwrap_or("e2e").to_owned();
    thread::scope(|scope| {
        let running = thread::Builder::new()
            .name(name)
            .spawn_scoped(scope, f)
            .map_err(|e| anyhow!(e))?;
        match running.join() {
            Ok(result) => result,
            Err(panic) => std::panic::resume_unwind(panic),
        }
    })
}

fn open(kind: &str) -> Result<OwnedFd> {
    let path = format!("/proc/thread-self/ns/{kind}");
    rustix::fs::open(&path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).with_context(|| path)
}
