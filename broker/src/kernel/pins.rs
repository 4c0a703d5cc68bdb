//! The private directory in bpffs where our XDP programs are pinned: for each device its link, its program and both maps.
//!
//! What is pinned outlives the broker's process: holders go on receiving, and the next broker takes over what it finds
//! (`pinned.rs`). The link is pinned last and removed first, so that where there is one the rest is there too.
//!
//! The directory is 0700 and the broker's uid owns it. Its fd is taken while the process is root, and every path
//! goes through that fd: the way there may be closed to the uid that the daemon ends as (F40).

use std::fs;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Duration;

use rustix::fs::{AtFlags, Dir, Mode, OFlags, open, renameat, unlinkat};

use super::netlink::link_of;
use crate::error::Failure;
use crate::exclusive;
use crate::privileges::Account;

/// BPF_FS_MAGIC, include/uapi/linux/magic.h.
const BPF_FS_MAGIC: rustix::fs::FsWord = 0xcafe_4a11;

/// What is pinned for a device. Names are these with the device's index; bpffs takes no dots.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Pinned {
    /// The link that attaches the program.
    Link,
    /// The program.
    Program,
    /// The program that is about to take its place.
    NewProgram,
    /// The map of sockets.
    Sockets,
    /// The map of counters.
    Counters,
}

impl Pinned {
    /// All of them, in the order in which they are removed.
    pub const ALL: [Self; 5] = [
        Self::Link,
        Self::NewProgram,
        Self::Program,
        Self::Sockets,
        Self::Counters,
    ];

    /// The name for a device.
    pub fn name(self, index: u32) -> String {
        format!("{}{index}", self.beginning())
    }

    /// What a name says; `None`: it is none of ours.
    pub fn parse(name: &str) -> Option<(Self, u32)> {
        Self::ALL.iter().find_map(|pinned| {
            let index = name.strip_prefix(pinned.beginning())?.parse().ok()?;
            (pinned.name(index) == name).then_some((*pinned, index))
        })
    }

    const fn beginning(self) -> &'static str {
        match self {
            Self::Link => "link-",
            Self::Program => "program-",
            Self::NewProgram => "new-program-",
            Self::Sockets => "xsks-",
            Self::Counters => "counters-",
        }
    }
}

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
    #[error("{} is not on a BPF file system: mount one with `{}`, or name another directory with --bpf-dir", .0.display(), mount_for(.0))]
    NoBpffs(PathBuf),
    /// It is there and somebody else's.
    #[error("{} belongs to uid {owner}: another broker's? Name another directory with --bpf-dir", path.display())]
    Foreign {
        /// The directory.
        path: PathBuf,
        /// Whose it is.
        owner: u32,
    },
    /// Another broker has it, and its holders receive by what is pinned there.
    #[error("{} is used by a broker that runs: each needs a directory of its own, name another one with --bpf-dir", .0.display())]
    InUse(PathBuf),
    /// A system call.
    #[error(transparent)]
    Failed(#[from] Failure),
}

/// What makes a BPF file system for it. Elsewhere than in its usual place nothing may be hidden by that but the directory itself.
fn mount_for(path: &Path) -> String {
    const USUAL: &str = "/sys/fs/bpf";
    match path.starts_with(USUAL) {
        true => format!("mount -t bpf bpf {USUAL}"),
        false => format!("mkdir -p {0} && mount -t bpf bpf {0}", path.display()),
    }
}

impl PinDirectory {
    /// Makes the directory and gives it to the daemon's account, locked for as long as an fd of it is open: what is pinned
    /// there would look to a second broker like what a dead one had left. To be called as root.
    ///
    /// # Errors
    ///
    /// [`PinDirectoryError`] says what to do.
    pub fn create(path: &Path, account: Account) -> Result<Self, PinDirectoryError> {
        let failed = |call, source: io::Error| Failure::kernel(call, path.display(), source);
        match fs::DirBuilder::new().mode(0o700).create(path) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            // Nothing is mounted on what should be its parent.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(PinDirectoryError::NoBpffs(path.to_owned()));
            }
            // sysfs has no directories but its own.
            Err(error) if error.raw_os_error() == Some(libc::EPERM) => {
                return Err(PinDirectoryError::NoBpffs(path.to_owned()));
            }
            Err(error) => return Err(failed("mkdir", error).into()),
        }
        let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::RDONLY;
        let directory = open(path, flags, Mode::empty()).map_err(|source| failed("open", source.into()))?;
        let file_system =
            rustix::fs::fstatfs(&directory).map_err(|source| failed("fstatfs", source.into()))?;
        if file_system.f_type != BPF_FS_MAGIC {
            return Err(PinDirectoryError::NoBpffs(path.to_owned()));
        }
        let this = Self {
            directory,
            path: path.to_owned(),
        };
        this.check_owner(account)?;
        this.lock()?;
        this.hand_to(account)?;
        Ok(this)
    }

    /// Keeps every other broker, and `purge`, from it for as long as an fd of it is open.
    ///
    /// # Errors
    ///
    /// [`PinDirectoryError::InUse`].
    pub fn lock(&self) -> Result<(), PinDirectoryError> {
        match exclusive::take(&self.directory) {
            Ok(true) => Ok(()),
            Ok(false) => Err(PinDirectoryError::InUse(self.path.clone())),
            Err(source) => Err(Failure::kernel("flock", self.path.display(), source).into()),
        }
    }

    /// Sees that no broker has it, without keeping any from it.
    ///
    /// # Errors
    ///
    /// [`PinDirectoryError::InUse`].
    pub fn check_unused(&self) -> Result<(), PinDirectoryError> {
        match exclusive::is_taken(&self.directory) {
            Ok(false) => Ok(()),
            Ok(true) => Err(PinDirectoryError::InUse(self.path.clone())),
            Err(source) => Err(Failure::kernel("flock", self.path.display(), source).into()),
        }
    }

    /// Sees that it is root's or the broker's own.
    ///
    /// # Errors
    ///
    /// [`PinDirectoryError::Foreign`].
    pub fn check_owner(&self, account: Account) -> Result<(), PinDirectoryError> {
        let owner = rustix::fs::fstat(&self.directory)
            .map_err(|errno| Failure::kernel("fstat", self.path.display(), errno))?
            .st_uid;
        match owner == 0 || owner == account.uid {
            true => Ok(()),
            false => Err(PinDirectoryError::Foreign {
                path: self.path.clone(),
                owner,
            }),
        }
    }

    fn hand_to(&self, account: Account) -> Result<(), Failure> {
        let failed =
            |call| move |source: rustix::io::Errno| Failure::kernel(call, self.path.display(), source);
        let (uid, gid) = (
            rustix::fs::Uid::from_raw(account.uid),
            rustix::fs::Gid::from_raw(account.gid),
        );
        rustix::fs::fchown(&self.directory, Some(uid), Some(gid)).map_err(failed("fchown"))?;
        rustix::fs::fchmod(&self.directory, Mode::RWXU).map_err(failed("fchmod"))?;
        // What is pinned there by root would be closed to the account.
        for name in self.names()?.iter().filter(|name| Pinned::parse(name).is_some()) {
            let flags = AtFlags::SYMLINK_NOFOLLOW;
            rustix::fs::chownat(&self.directory, name, Some(uid), Some(gid), flags)
                .map_err(failed("fchownat"))?;
        }
        Ok(())
    }

    /// Opens one that is there. `None`: there is none.
    ///
    /// # Errors
    ///
    /// [`PinDirectoryError`].
    pub fn open(path: &Path) -> Result<Option<Self>, PinDirectoryError> {
        let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::RDONLY;
        let failed = |call, errno: rustix::io::Errno| Failure::kernel(call, path.display(), errno);
        let directory = match open(path, flags, Mode::empty()) {
            Ok(directory) => directory,
            Err(rustix::io::Errno::NOENT) => return Ok(None),
            Err(errno) => return Err(failed("open", errno).into()),
        };
        let file_system = rustix::fs::fstatfs(&directory).map_err(|errno| failed("fstatfs", errno))?;
        match file_system.f_type == BPF_FS_MAGIC {
            true => Ok(Some(Self {
                directory,
                path: path.to_owned(),
            })),
            false => Err(PinDirectoryError::NoBpffs(path.to_owned())),
        }
    }

    /// Sees that one could be made there, without making it.
    ///
    /// # Errors
    ///
    /// [`PinDirectoryError::NoBpffs`].
    pub fn check_parent(path: &Path) -> Result<(), PinDirectoryError> {
        let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
        let parent = parent.unwrap_or(Path::new("."));
        match rustix::fs::statfs(parent) {
            Ok(file_system) if file_system.f_type == BPF_FS_MAGIC => Ok(()),
            Ok(_) | Err(rustix::io::Errno::NOENT) => Err(PinDirectoryError::NoBpffs(path.to_owned())),
            Err(errno) => Err(Failure::kernel("statfs", parent.display(), errno).into()),
        }
    }

    /// The names in it, sorted.
    ///
    /// # Errors
    ///
    /// What getdents(2) says.
    pub fn names(&self) -> Result<Vec<String>, Failure> {
        let failed = |errno| Failure::kernel("readdir", self.path.display(), errno);
        let mut names = Vec::new();
        for entry in Dir::read_from(&self.directory).map_err(failed)? {
            let name = entry.map_err(failed)?.file_name().to_string_lossy().into_owned();
            if name != "." && name != ".." {
                names.push(name);
            }
        }
        names.sort_unstable();
        Ok(names)
    }

    /// Takes down what is pinned for a device: its program is detached by this, unless another fd holds the link.
    ///
    /// # Errors
    ///
    /// What unlink(2) says.
    pub fn take_down(&self, index: u32) -> Result<(), Failure> {
        let mut had_link = false;
        for pinned in Pinned::ALL {
            match self.remove(&pinned.name(index)) {
                Ok(()) => had_link |= pinned == Pinned::Link,
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(Failure::kernel("unlink", self.path.display(), error)),
            }
        }
        if had_link {
            wait_until_detached(index);
        }
        Ok(())
    }

    /// Whether anything is pinned for a device.
    ///
    /// # Errors
    ///
    /// What getdents(2) says.
    pub fn has(&self, index: u32) -> Result<bool, Failure> {
        let of_device = |name: &String| Pinned::parse(name).is_some_and(|(_, it)| it == index);
        Ok(self.names()?.iter().any(of_device))
    }

    /// The same directory by another fd.
    ///
    /// # Errors
    ///
    /// EMFILE.
    pub fn duplicate(&self) -> io::Result<Self> {
        Ok(Self {
            directory: self.directory.try_clone()?,
            path: self.path.clone(),
        })
    }

    /// Where to pin something under this name, as this process may reach it.
    pub fn path_for(&self, name: &str) -> PathBuf {
        PathBuf::from(format!("/proc/self/fd/{}/{name}", self.directory.as_raw_fd()))
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Gives what is pinned under a name another one, in place of what was pinned there.
    ///
    /// # Errors
    ///
    /// What rename(2) says.
    pub fn rename(&self, from: &str, to: &str) -> Result<(), Failure> {
        renameat(&self.directory, from, &self.directory, to)
            .map_err(|errno| Failure::kernel("rename", self.path.join(from).display(), errno))
    }

    /// Removes a name.
    ///
    /// # Errors
    ///
    /// What unlink(2) says.
    pub fn remove(&self, name: &str) -> io::Result<()> {
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

/// What is pinned for one device, removed when dropped.
#[derive(Debug)]
pub struct Pins {
    directory: Rc<PinDirectory>,
    index: u32,
}

impl Pins {
    /// Takes care of what is about to be pinned for a device, or is already.
    pub fn of(directory: &Rc<PinDirectory>, index: u32) -> Self {
        Self {
            directory: Rc::clone(directory),
            index,
        }
    }

    /// Where something is pinned, as this process may reach it.
    pub fn path(&self, pinned: Pinned) -> PathBuf {
        self.directory.path_for(&pinned.name(self.index))
    }

    /// Removes what a broker had pinned that was killed before it could put it in place.
    ///
    /// # Errors
    ///
    /// What unlink(2) says.
    pub fn discard_new_program(&self) -> Result<(), Failure> {
        let name = Pinned::NewProgram.name(self.index);
        match self.directory.remove(&name) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(Failure::kernel(
                "unlink",
                self.directory.path.join(name).display(),
                error,
            )),
            _ => Ok(()),
        }
    }

    /// The new program is the program now.
    ///
    /// # Errors
    ///
    /// What rename(2) says.
    pub fn settle_program(&self) -> Result<(), Failure> {
        let [from, to] = [Pinned::NewProgram, Pinned::Program].map(|pinned| pinned.name(self.index));
        self.directory.rename(&from, &to)
    }
}

impl Drop for Pins {
    fn drop(&mut self) {
        for name in Pinned::ALL.map(|pinned| pinned.name(self.index)) {
            match self.directory.remove(&name) {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => tracing::warn!(name, %error, "cannot remove a pin"),
            }
        }
    }
}
