//! Where a broker has its things: that it is root's or the broker's own, that one broker at a time uses it, and that a start
//! which comes to nothing leaves nothing behind.

use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, OpenOptionsExt, chown};
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use rustix::fs::OFlags;

use crate::exclusive;
use crate::kernel::pins::PinDirectory;
#[cfg(doc)]
use crate::kernel::pins::PinDirectoryError;
use crate::numbers::LOCK_FILE;
use crate::privileges::Account;

/// Only root can do this.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(super) struct NotRoot(pub(super) &'static str);

/// A broker runs there.
#[derive(Debug, thiserror::Error)]
#[error("a broker is running on {} already: stop it, or name other directories with --run-dir and --bpf-dir", .0.display())]
pub(super) struct InUse(PathBuf);

/// It is something else than a directory.
#[derive(Debug, thiserror::Error)]
#[error("{} is no directory: name another one with --run-dir", .0.display())]
pub(super) struct NoDirectory(PathBuf);

/// Goes on only as root.
///
/// # Errors
///
/// [`NotRoot`] with these words.
pub(super) fn demand_root(words: &'static str) -> Result<(), NotRoot> {
    match rustix::process::geteuid().is_root() {
        true => Ok(()),
        false => Err(NotRoot(words)),
    }
}

/// The run directory of a broker that starts, and what it has made of directories, which go again unless it is kept.
#[derive(Debug)]
pub(super) struct Place {
    run_dir: PathBuf,
    made: Vec<PathBuf>,
    lock: Option<fs::File>,
}

impl Place {
    /// Makes the run directory, or finds that it may be used, and locks it.
    ///
    /// # Errors
    ///
    /// [`InUse`]; whose it is else, and what the kernel says.
    pub(super) fn take(run_dir: &Path, account: Account) -> anyhow::Result<Self> {
        let mut place = Self {
            run_dir: run_dir.to_owned(),
            made: Vec::new(),
            lock: None,
        };
        place.will_make(run_dir);
        match fs::DirBuilder::new().mode(0o755).create(run_dir) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => check_owner(run_dir, account)?,
            Err(error) => return Err(error).with_context(|| format!("cannot make {}", run_dir.display())),
        }
        // The daemon removes its sockets there when it ends.
        chown(run_dir, Some(account.uid), Some(account.gid))
            .with_context(|| format!("cannot chown {}", run_dir.display()))?;
        place.lock = Some(lock(run_dir)?);
        Ok(place)
    }

    /// A directory is about to be made, unless it is there.
    pub(super) fn will_make(&mut self, directory: &Path) {
        let found = fs::symlink_metadata(directory);
        if found.is_err_and(|error| error.kind() == io::ErrorKind::NotFound) {
            self.made.push(directory.to_owned());
        }
    }

    /// The same file by another fd, to write to.
    ///
    /// # Errors
    ///
    /// EMFILE.
    pub(super) fn lock_file(&self) -> anyhow::Result<fs::File> {
        let lock = self.lock.as_ref().context("the run directory is not locked")?;
        lock.try_clone().context("cannot dup the lock file")
    }

    /// The broker serves: what was made stays. Locked until this is closed.
    pub(super) fn keep(mut self) -> Option<fs::File> {
        self.made.clear();
        self.lock.take()
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        // Still locked, so that nobody else has anything there.
        for directory in self.made.iter().rev() {
            if *directory == self.run_dir && self.lock.is_some() {
                remove_own_files(directory);
            }
            // One that is not empty is somebody's by now.
            if let Err(error) = fs::remove_dir(directory) {
                tracing::debug!(%error, "{} stays", directory.display());
            }
        }
    }
}

/// The lock file and sockets: there is nothing else yet in a run directory that was just made.
fn remove_own_files(run_dir: &Path) {
    for entry in fs::read_dir(run_dir).into_iter().flatten().flatten() {
        let is_socket = entry.file_type().is_ok_and(|kind| kind.is_socket());
        if (is_socket || entry.file_name() == LOCK_FILE)
            && let Err(error) = fs::remove_file(entry.path())
        {
            tracing::debug!(%error, "{} stays", entry.path().display());
        }
    }
}

/// Sees that a run directory is root's or the broker's own.
///
/// # Errors
///
/// That it is not.
pub(super) fn check_owner(run_dir: &Path, account: Account) -> anyhow::Result<()> {
    let found =
        fs::symlink_metadata(run_dir).with_context(|| format!("cannot look at {}", run_dir.display()))?;
    let owner = found.uid();
    if !found.is_dir() || (owner != 0 && owner != account.uid) {
        bail!(
            "{} is no directory of root's or of uid {}: name another one with --run-dir",
            run_dir.display(),
            account.uid
        );
    }
    Ok(())
}

/// Sees that a run directory could be made, without making it.
///
/// # Errors
///
/// That there is nothing to make it in.
pub(super) fn check_parent(run_dir: &Path) -> anyhow::Result<()> {
    let parent = run_dir.parent().filter(|parent| !parent.as_os_str().is_empty());
    let parent = parent.unwrap_or(Path::new("."));
    let found = fs::metadata(parent).and_then(|found| match found.is_dir() {
        true => Ok(()),
        false => Err(io::ErrorKind::NotADirectory.into()),
    });
    found.with_context(|| format!("cannot make {}", run_dir.display()))
}

/// Keeps every other broker, and `purge`, from a run directory until the file is closed.
///
/// # Errors
///
/// [`InUse`], and what the kernel says.
pub(super) fn lock(run_dir: &Path) -> anyhow::Result<fs::File> {
    let path = run_dir.join(LOCK_FILE);
    let file = open_lock(&path, fs::OpenOptions::new().write(true).create(true))
        .with_context(|| format!("cannot open {}", path.display()))?;
    let is_ours = exclusive::take(&file).with_context(|| format!("cannot lock {}", path.display()))?;
    let here = fs::symlink_metadata(&path).map(|found| found.ino()).ok();
    // Another one's start came to nothing just now, and it has removed the file that this has locked.
    let is_there = file.metadata().is_ok_and(|locked| Some(locked.ino()) == here);
    match is_ours && is_there {
        true => Ok(file),
        false => Err(InUse(run_dir.to_owned()).into()),
    }
}

/// Sees that no broker runs on these directories, without keeping any from it.
///
/// # Errors
///
/// [`InUse`], [`PinDirectoryError::InUse`], and what the kernel says.
pub(super) fn check_unused(run_dir: &Path, pins: Option<&PinDirectory>) -> anyhow::Result<()> {
    check_unlocked(run_dir)?;
    Ok(pins.map_or(Ok(()), PinDirectory::check_unused)?)
}

fn check_unlocked(run_dir: &Path) -> anyhow::Result<()> {
    let path = run_dir.join(LOCK_FILE);
    let file = match open_lock(&path, fs::OpenOptions::new().read(true)) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error).with_context(|| format!("cannot open {}", path.display())),
    };
    match exclusive::is_taken(&file).with_context(|| format!("cannot lock {}", path.display()))? {
        true => Err(InUse(run_dir.to_owned()).into()),
        false => Ok(()),
    }
}

/// Whether there is a run directory.
///
/// # Errors
///
/// [`NoDirectory`], and what the kernel says.
pub(super) fn is_there(run_dir: &Path) -> anyhow::Result<bool> {
    match fs::symlink_metadata(run_dir) {
        Ok(found) if found.is_dir() => Ok(true),
        Ok(_) => Err(NoDirectory(run_dir.to_owned()).into()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error).with_context(|| format!("cannot look at {}", run_dir.display())),
    }
}

fn open_lock(path: &Path, options: &mut fs::OpenOptions) -> io::Result<fs::File> {
    let flags = OFlags::NOFOLLOW.bits();
    options
        .truncate(false)
        .mode(0o600)
        .custom_flags(i32::try_from(flags).map_err(io::Error::other)?)
        .open(path)
}
