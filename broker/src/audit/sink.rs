//! Where the audit log goes: standard output, or a file, which may be renamed and made anew while the broker runs.
//!
//! The file is opened by root, at the start. To find another one under its name later takes what the broker's own user may:
//! its directory, of which an fd is kept, has to let that user in, and the file has to be that user's to write to, as whoever
//! rotates logs can make it; or the directory is.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, FileType, Mode, OFlags};
use rustix::io::Errno;

use crate::error::Failure;

/// Unbuffered: what is written is there, and at the end of what others have written.
#[derive(Debug)]
pub struct Sink {
    file: File,
    /// Where it was found, if it has a name.
    place: Option<Place>,
}

#[derive(Debug)]
struct Place {
    path: PathBuf,
    directory: OwnedFd,
    name: OsString,
}

/// What became of a wish to open it anew.
#[derive(Debug, PartialEq, Eq)]
pub enum Reopened {
    /// There is another file of its name, to which lines go from now on.
    Another,
    /// It is the same one still, or has no name.
    Same,
}

impl Sink {
    /// Standard output.
    ///
    /// # Errors
    ///
    /// EMFILE.
    pub fn stdout() -> io::Result<Self> {
        Ok(io::stdout().as_fd().try_clone_to_owned()?.into())
    }

    /// A file, made where there is none.
    ///
    /// # Errors
    ///
    /// As open(2).
    pub fn open(path: &Path) -> Result<Self, Failure> {
        let failed =
            |errno: Errno| Failure::kernel("open", format!("the audit log {}", path.display()), errno);
        let name = path.file_name().ok_or_else(|| failed(Errno::ISDIR))?;
        let directory = match path.parent() {
            Some(parent) if parent != Path::new("") => parent,
            _ => Path::new("."),
        };
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let directory = rustix::fs::open(directory, flags, Mode::empty()).map_err(failed)?;
        let place = Place {
            path: path.to_owned(),
            directory,
            name: name.to_owned(),
        };
        let file = place.open(OFlags::CREATE).map_err(failed)?;
        Ok(Self {
            file,
            place: Some(place),
        })
    }

    /// Opens it anew, if its name leads to another file by now, or to none. With an error it goes on where it was.
    ///
    /// # Errors
    ///
    /// As stat(2) and open(2) for the calling user, and where it is no regular file.
    pub fn reopen(&mut self) -> Result<Reopened, Failure> {
        let Some(place) = &self.place else {
            return Ok(Reopened::Same);
        };
        let failed =
            |errno: Errno| Failure::kernel("open", format!("the audit log {}", place.path.display()), errno);
        let now = match rustix::fs::statat(&place.directory, &place.name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(now) => Some((now.st_dev, now.st_ino)),
            Err(Errno::NOENT) => None,
            Err(errno) => return Err(failed(errno)),
        };
        let own = rustix::fs::fstat(&self.file).map_err(failed)?;
        let more = match now {
            Some(now) if now == (own.st_dev, own.st_ino) => return Ok(Reopened::Same),
            // Where anybody may make files, the kernel opens nobody's with O_CREAT.
            Some(_) => OFlags::empty(),
            None => OFlags::CREATE,
        };
        // Nobody is waited for, as one would be behind a FIFO.
        let file = place
            .open(more | OFlags::NONBLOCK | OFlags::NOCTTY)
            .map_err(failed)?;
        let found = rustix::fs::fstat(&file).map_err(failed)?;
        if FileType::from_raw_mode(found.st_mode) != FileType::RegularFile {
            return Err(failed(Errno::INVAL));
        }
        self.file = file;
        Ok(Reopened::Another)
    }
}

impl Place {
    fn open(&self, more: OFlags) -> Result<File, Errno> {
        let flags = OFlags::WRONLY | OFlags::APPEND | OFlags::NOFOLLOW | OFlags::CLOEXEC | more;
        let mode = Mode::RUSR | Mode::WUSR | Mode::RGRP;
        rustix::fs::openat(&self.directory, &self.name, flags, mode).map(File::from)
    }
}

impl From<OwnedFd> for Sink {
    fn from(fd: OwnedFd) -> Self {
        Self {
            file: fd.into(),
            place: None,
        }
    }
}

impl Write for Sink {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.file.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}
