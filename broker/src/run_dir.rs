//! The run directory, as who keeps small files there sees it: by its fd, taken while still root.
//!
//! **Invariant**: a file is there whole or not at all, wherever the broker is killed: it is written under another name
//! first, then renamed. It is not synced to a disk: what it says is true of one boot of the machine alone.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, Dir, Mode, OFlags, openat, renameat, statat, unlinkat};

use crate::error::{Failure, chain};

/// What a name ends with while its file is being written.
const NEW: &str = ".new";

/// The open directory.
#[derive(Debug)]
pub struct RunDirectory {
    fd: OwnedFd,
    path: PathBuf,
}

/// A file that was read.
#[derive(Debug)]
pub struct SmallFile {
    /// What is in it.
    pub text: Vec<u8>,
    /// Whose it is.
    pub owner: u32,
    /// Its mode, without the type.
    pub mode: u32,
}

impl RunDirectory {
    /// Opens it.
    ///
    /// # Errors
    ///
    /// What open(2) says.
    pub fn open(path: &Path) -> Result<Self, Failure> {
        let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::RDONLY;
        let fd = rustix::fs::open(path, flags, Mode::empty())
            .map_err(|errno| Failure::kernel("open", path.display(), errno))?;
        Ok(Self {
            fd,
            path: path.to_owned(),
        })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The names of its files that begin so, sorted.
    ///
    /// # Errors
    ///
    /// What getdents(2) says.
    pub fn names(&self, beginning: &str) -> Result<Vec<String>, Failure> {
        let failed = |errno| Failure::kernel("readdir", self.path.display(), errno);
        let mut names = Vec::new();
        for entry in Dir::read_from(&self.fd).map_err(failed)? {
            let name = entry.map_err(failed)?.file_name().to_string_lossy().into_owned();
            if name.starts_with(beginning) {
                names.push(name);
            }
        }
        names.sort_unstable();
        Ok(names)
    }

    /// Reads a file of at most so many bytes; of a longer one no more than one byte beyond.
    ///
    /// # Errors
    ///
    /// What open(2) and read(2) say; ELOOP for a symbolic link, EINVAL for what is no file.
    pub fn read(&self, name: &str, most_bytes: u64) -> io::Result<SmallFile> {
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let file = File::from(openat(&self.fd, name, flags, Mode::empty())?);
        let metadata = file.metadata()?;
        if !metadata.is_file() {
            return Err(rustix::io::Errno::INVAL.into());
        }
        let mut text = Vec::new();
        file.take(most_bytes + 1).read_to_end(&mut text)?;
        Ok(SmallFile {
            text,
            owner: metadata.uid(),
            mode: metadata.mode() & 0o7777,
        })
    }

    /// Writes a file, in place of the one of that name.
    ///
    /// # Errors
    ///
    /// What the kernel says; the old one is as it was, and nothing is left of the new one.
    pub fn write(&self, name: &str, text: &[u8]) -> Result<(), Failure> {
        let failed = |call, source: io::Error| Failure::kernel(call, self.path.join(name).display(), source);
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let new = format!("{name}{NEW}");
        let file = openat(&self.fd, &new, flags, Mode::RUSR | Mode::WUSR)
            .map_err(|errno| failed("open", errno.into()))?;
        let written = File::from(file)
            .write_all(text)
            .map_err(|source| failed("write", source))
            .and_then(|()| {
                renameat(&self.fd, &new, &self.fd, name).map_err(|errno| failed("rename", errno.into()))
            });
        if written.is_err() {
            self.remove(&new);
        }
        written
    }

    /// Gives a file another name, in place of what had that.
    ///
    /// # Errors
    ///
    /// What rename(2) says.
    pub fn rename(&self, from: &str, to: &str) -> Result<(), Failure> {
        renameat(&self.fd, from, &self.fd, to)
            .map_err(|errno| Failure::kernel("rename", self.path.join(from).display(), errno))
    }

    /// Whether there is a file of that name.
    pub fn has(&self, name: &str) -> bool {
        // Where that cannot be told, it may be there.
        !matches!(
            statat(&self.fd, name, AtFlags::SYMLINK_NOFOLLOW),
            Err(rustix::io::Errno::NOENT)
        )
    }

    /// Removes a file. What cannot be removed is told in the log; one that is not there is no news.
    pub fn remove(&self, name: &str) {
        match unlinkat(&self.fd, name, AtFlags::empty()) {
            Ok(()) | Err(rustix::io::Errno::NOENT) => {}
            Err(errno) => {
                let failure = Failure::kernel("unlink", self.path.join(name).display(), errno);
                tracing::warn!("{}", chain(&failure));
            }
        }
    }

    /// Whether that is the name of a file which a broker was about to write when it was killed.
    pub fn is_unfinished(name: &str) -> bool {
        name.ends_with(NEW)
    }
}

/// Of /proc/sys/kernel/random/boot_id: ids of processes, devices and BPF objects begin anew with each boot, the directory
/// may not.
///
/// # Errors
///
/// What read(2) says.
pub fn boot_id() -> Result<String, Failure> {
    const PATH: &str = "/proc/sys/kernel/random/boot_id";

    let text = std::fs::read_to_string(PATH).map_err(|source| Failure::kernel("read", PATH, source))?;
    Ok(text.trim().to_owned())
}
