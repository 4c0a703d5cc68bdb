//! The private directory in bpffs where the links of our XDP programs are pinned.
//!
//! A pinned link outlives the broker's process: if the broker crashes, holders go on receiving. In this version the
//! next broker takes such links down when it starts; a later one will adopt them. An orderly stop leaves none.
//!
//! The directory is 0700 and the broker's uid owns it. Its fd is taken while the process is root, and every path
//! goes through that fd: the way there may be closed to the uid that the daemon ends as (F40).

use std::fs;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Duration;

use rustix::fs::{AtFlags, Mode, OFlags, open, unlinkat};

use super::netlink::link_of;
use crate::error::Failure;
use crate::privileges::Account;

/// BPF_FS_MAGIC, include/uapi/linux/magic.h.
const BPF_FS_MAGIC: rustix::fs::FsWord = 0xcafe_4a11;

/// What the names of pinned links begin with; the device's index follows. bpffs takes no dots.
const LINK: &str = "link-";

/// The open directory.
#[derive(Debug)]
pub struct PinDirectory {
    directory: OwnedFd,
    path: PathBuf,
}

/// Why there is no such directory.
#[derive(Debug, thiserror::Error)]
pub enum PinDirectoryError {
    /// Its parent is no bpffs.
    #[error("{} is not on a BPF file system: mount one with `mount -t bpf bpf /sys/fs/bpf`, or name another directory with --bpf-dir", .0.display())]
    NoBpffs(PathBuf),
    /// It is there and somebody else's.
    #[error("{} belongs to uid {owner}: another broker's? Name another directory with --bpf-dir", path.display())]
    Foreign {
        /// The directory.
        path: PathBuf,
        /// Whose it is.
        owner: u32,
    },
    /// A system call.
    #[error(transparent)]
    Failed(#[from] Failure),
}

impl PinDirectory {
    /// Makes the directory and gives it to the daemon's account. To be called as root.
    ///
    /// # Errors
    ///
    /// [`PinDirectoryError`] says what to do.
    pub fn create(path: &Path, account: Account) -> Result<Self, PinDirectoryError> {
        let failed = |call, source: io::Error| Failure::kernel(call, path.display(), source);
        match fs::DirBuilder::new().mode(0o700).create(path) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(failed("mkdir", error).into()),
        }
        let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::RDONLY;
        let directory = open(path, flags, Mode::empty()).map_err(|source| failed("open", source.into()))?;
        let file_system =
            rustix::fs::fstatfs(&directory).map_err(|source| failed("fstatfs", source.into()))?;
        if file_system.f_type != BPF_FS_MAGIC {
            return Err(PinDirectoryError::NoBpffs(path.to_owned()));
        }
        let owner = fs::File::from(directory.try_clone().map_err(|source| failed("dup", source))?)
            .metadata()
            .map_err(|source| failed("fstat", source))?
            .uid();
        if owner != 0 && owner != account.uid {
            return Err(PinDirectoryError::Foreign {
                path: path.to_owned(),
                owner,
            });
        }
        let this = Self {
            directory,
            path: path.to_owned(),
        };
        this.hand_to(account)?;
        Ok(this)
    }

    fn hand_to(&self, account: Account) -> Result<(), Failure> {
        let failed = |source: rustix::io::Errno| Failure::kernel("fchown", self.path.display(), source);
        let (uid, gid) = (
            rustix::fs::Uid::from_raw(account.uid),
            rustix::fs::Gid::from_raw(account.gid),
        );
        rustix::fs::fchown(&self.directory, Some(uid), Some(gid)).map_err(failed)?;
        rustix::fs::fchmod(&self.directory, Mode::RWXU).map_err(failed)
    }

    /// Removes what a broker that crashed has left, and says what it was. Its XDP programs are detached by this.
    ///
    /// # Errors
    ///
    /// What readdir and unlink say.
    pub fn remove_leftovers(&self) -> Result<Vec<String>, Failure> {
        let failed = |call, source: io::Error| Failure::kernel(call, self.path.display(), source);
        let mut names = Vec::new();
        for entry in fs::read_dir(&self.path).map_err(|source| failed("readdir", source))? {
            let name = entry.map_err(|source| failed("readdir", source))?.file_name();
            let name = name.to_string_lossy().into_owned();
            self.remove(&name).map_err(|source| failed("unlink", source))?;
            names.push(name);
        }
        for index in names
            .iter()
            .filter_map(|name| name.strip_prefix(LINK)?.parse().ok())
        {
            wait_until_detached(index);
        }
        Ok(names)
    }

    /// Where to pin something under this name, as this process may reach it.
    pub fn path_for(&self, name: &str) -> PathBuf {
        PathBuf::from(format!("/proc/self/fd/{}/{name}", self.directory.as_raw_fd()))
    }

    /// The name under which the link to a device's program is pinned.
    pub fn link_name(index: u32) -> String {
        format!("{LINK}{index}")
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        Ok(unlinkat(&self.directory, name, AtFlags::empty())?)
    }
}

/// The kernel detaches a program whose link was unpinned from a work queue (`bpf_link_put`, kernel/bpf/syscall.c):
/// until then it would look like a foreign one. Where it takes longer than this, it is told so when it matters.
fn wait_until_detached(index: u32) {
    const LOOKS: u32 = 100;
    const PAUSE: Duration = Duration::from_millis(10);

    for _ in 0..LOOKS {
        if !link_of(index).is_ok_and(|link| link.xdp.is_some()) {
            return;
        }
        std::thread::sleep(PAUSE);
    }
}

/// A name in the directory, removed when dropped.
#[derive(Debug)]
pub struct Pin {
    directory: Rc<PinDirectory>,
    name: String,
}

impl Pin {
    /// Takes care of what was just pinned under this name.
    pub fn new(directory: &Rc<PinDirectory>, name: String) -> Self {
        Self {
            directory: Rc::clone(directory),
            name,
        }
    }
}

impl Drop for Pin {
    fn drop(&mut self) {
        if let Err(error) = self.directory.remove(&self.name) {
            tracing::warn!(name = self.name, %error, "cannot remove a pin");
        }
    }
}
