//! From paths to texts: which files make up a policy, who may have written them, and how much of them is read.
//!
//! A policy is a few small files that are root's. What else may lie at those paths (a FIFO that would block the
//! start, a device, a file without end, one that another user may write) is refused before it is read, and
//! nothing is executed, expanded or included.

use std::collections::BTreeSet;
use std::fs::{File, Metadata, OpenOptions};
use std::io::{self, Read};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use super::diagnostic::{Findings, Place, Severity, Source};
use super::mistake::Mistake;

/// At most this many bytes in a file.
const MAX_FILE_BYTES: u64 = 1 << 20;

/// At most this many files in `policy.d`.
const MAX_FILES: usize = 256;

/// What is demanded of the owner and the mode of the files and their directories.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ownership {
    /// Root's, and written by nobody else: for a policy that is to be in force.
    Demand,
    /// The same, but as warnings: for looking at a file, wherever it lies.
    Warn,
}

impl Ownership {
    fn severity(self) -> Severity {
        match self {
            Self::Demand => Severity::Error,
            Self::Warn => Severity::Warning,
        }
    }
}

/// Reads the main file and those of the directory beside it (`policy.toml`, then `policy.d/*.toml` by name).
pub(super) fn read_all(main: &Path, ownership: Ownership, findings: &mut Findings) -> Vec<Source> {
    let mut paths = vec![main.to_owned()];
    let mut directories = BTreeSet::new();
    let beside = main.with_extension("d");
    if beside != main {
        match list(&beside) {
            Ok(Some(more)) => {
                directories.insert(beside.clone());
                if more.len() > MAX_FILES {
                    findings.file(Severity::Error, &beside, Mistake::TooManyFiles(MAX_FILES));
                }
                paths.extend(more.into_iter().take(MAX_FILES));
            }
            Ok(None) => {}
            Err(error) => findings.file(Severity::Error, &beside, Mistake::Unreadable(error)),
        }
    }

    let mut sources = Vec::with_capacity(paths.len());
    for path in &paths {
        directories.insert(parent(path));
        // Where a link leads elsewhere, whoever can write that directory can replace the file.
        directories.extend(path.canonicalize().ok().map(|target| parent(&target)));
        match read(path, ownership, findings) {
            Ok(bytes) => sources.push(decode(path, bytes, sources.len(), findings)),
            Err(mistake) => findings.file(Severity::Error, path, mistake),
        }
    }
    let mut seen = BTreeSet::new();
    for directory in &directories {
        match directory.metadata() {
            // The same directory by another path is one finding.
            Ok(metadata) if seen.insert((metadata.dev(), metadata.ino())) => {
                check_owner(directory, &metadata, ownership, findings);
            }
            Ok(_) => {}
            Err(error) => findings.file(ownership.severity(), directory, Mistake::Unreadable(error)),
        }
    }
    sources
}

/// A text of which only the name is given, or the bytes of a file. Never fails: what is no text is a mistake, and
/// what stands before it is still read.
pub(super) fn decode(path: &Path, bytes: Vec<u8>, index: usize, findings: &mut Findings) -> Source {
    match String::from_utf8(bytes) {
        Ok(text) => Source::new(path, text),
        Err(error) => {
            let valid = error.utf8_error().valid_up_to();
            let place = Place {
                file: index,
                span: valid..valid,
            };
            findings.error(&place, Mistake::NotUtf8);
            let mut bytes = error.into_bytes();
            bytes.truncate(valid);
            let mut source = Source::new(path, String::from_utf8(bytes).unwrap_or_default());
            source.cut = true;
            source
        }
    }
}

/// The `*.toml` of a directory by name, without hidden ones; `None` where there is no such directory.
fn list(directory: &Path) -> io::Result<Option<Vec<PathBuf>>> {
    let entries = match std::fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let mut names = BTreeSet::new();
    for entry in entries {
        let name = entry?.file_name();
        if name.as_bytes().ends_with(b".toml") && !name.as_bytes().starts_with(b".") {
            names.insert(name);
        }
    }
    Ok(Some(names.into_iter().map(|name| directory.join(name)).collect()))
}

fn parent(path: &Path) -> PathBuf {
    match path.parent() {
        Some(parent) if parent.as_os_str().is_empty() => PathBuf::from("."),
        Some(parent) => parent.to_owned(),
        None => PathBuf::from("/"),
    }
}

fn read(path: &Path, ownership: Ownership, findings: &mut Findings) -> Result<Vec<u8>, Mistake> {
    // Looked at before it is opened, since opening a device may do something, and once more through the open file,
    // since it may have been another by then.
    refuse_special(&path.metadata().map_err(Mistake::Unreadable)?)?;
    let open = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY)
        .open(path);
    let file: File = open.map_err(Mistake::Unreadable)?;
    let metadata = file.metadata().map_err(Mistake::Unreadable)?;
    refuse_special(&metadata)?;
    check_owner(path, &metadata, ownership, findings);

    let mut bytes = Vec::new();
    let read = file.take(MAX_FILE_BYTES + 1).read_to_end(&mut bytes);
    read.map_err(Mistake::Unreadable)?;
    match u64::try_from(bytes.len()) {
        Ok(length) if length <= MAX_FILE_BYTES => Ok(bytes),
        _ => Err(Mistake::TooLarge(MAX_FILE_BYTES)),
    }
}

fn refuse_special(metadata: &Metadata) -> Result<(), Mistake> {
    let kind = metadata.file_type();
    match kind {
        _ if kind.is_file() => Ok(()),
        _ if kind.is_dir() => Err(Mistake::NotAFile("a directory")),
        _ if kind.is_fifo() => Err(Mistake::NotAFile("a FIFO")),
        _ if kind.is_socket() => Err(Mistake::NotAFile("a socket")),
        _ => Err(Mistake::NotAFile("a device")),
    }
}

fn check_owner(path: &Path, metadata: &Metadata, ownership: Ownership, findings: &mut Findings) {
    let mode = match metadata.is_dir() {
        true => "0755",
        false => "0644",
    };
    let severity = ownership.severity();
    if let Some(mistake) = owner_mistake(path, metadata.uid(), metadata.mode(), mode) {
        findings.file(severity, path, mistake);
    }
    // The start looks for itself, as the user that it has become.
    if ownership == Ownership::Warn && is_roots_alone(metadata.gid(), metadata.mode()) {
        let mistake = Mistake::RootsAlone(metadata.mode() & 0o7777);
        findings.file(Severity::Warning, path, mistake);
    }
}

fn owner_mistake(path: &Path, uid: u32, found: u32, mode: &'static str) -> Option<Mistake> {
    let path = path.to_owned();
    if uid != 0 {
        return Some(Mistake::NotRoots { path, uid, mode });
    }
    let who = match (found & 0o020, found & 0o002) {
        (0, 0) => return None,
        (_, 0) => "its group",
        (0, _) => "everybody",
        (_, _) => "its group and everybody",
    };
    let mode = found & 0o7777;
    Some(Mistake::WritableByOthers { path, who, mode })
}

/// Whether no broker can read it, which ends as another user than root and in another group.
fn is_roots_alone(gid: u32, mode: u32) -> bool {
    let by_group = mode & 0o040 != 0 && gid != 0;
    mode & 0o004 == 0 && !by_group
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn owners_and_modes() {
        let verdict = |uid, found, mode| {
            let mistake = owner_mistake(Path::new("/srv/a b/p.toml"), uid, found, mode)?;
            Some((mistake.to_string(), mistake.help().unwrap()))
        };
        assert_eq!(verdict(0, 0o100_644, "0644"), None);
        assert_eq!(verdict(0, 0o100_600, "0644"), None);
        let (message, help) = verdict(1001, 0o100_644, "0644").unwrap();
        assert_eq!(
            message,
            "belongs to uid 1001, not to root: who can write it can hand out queues"
        );
        assert_eq!(
            help,
            "run: chown root:root '/srv/a b/p.toml' && chmod 0644 '/srv/a b/p.toml'\n\
             or put a copy in place: install -D -o root -g root -m 0644 '/srv/a b/p.toml' /etc/xsk-broker/policy.toml"
        );
        let (message, help) = verdict(0, 0o040_775, "0755").unwrap();
        assert_eq!(
            message,
            "can be written by its group (mode 0775): who can write it can hand out queues"
        );
        assert_eq!(help, "run: chmod go-w '/srv/a b/p.toml'");
        assert!(
            verdict(0, 0o100_646, "0644")
                .unwrap()
                .0
                .contains("by everybody (mode 0646)")
        );
    }

    #[test]
    fn what_no_broker_can_read() {
        assert!(is_roots_alone(0, 0o100_640) && is_roots_alone(7, 0o100_600));
        assert!(!is_roots_alone(7, 0o100_640) && !is_roots_alone(0, 0o100_604));
    }

    #[test]
    fn what_is_no_policy_file() {
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name);
        let message = |path: &Path| {
            let read = read(path, Ownership::Warn, &mut Findings::default());
            read.map(|bytes| bytes.len())
                .map_err(|mistake| mistake.to_string())
        };
        std::fs::write(path("full"), vec![b'#'; 1 << 20]).unwrap();
        assert_eq!(message(&path("full")), Ok(1 << 20));
        std::fs::write(path("large"), vec![b'#'; (1 << 20) + 1]).unwrap();
        assert_eq!(message(&path("large")), Err("has more than 1048576 bytes".into()));
        std::os::unix::fs::symlink("large", path("link")).unwrap();
        assert_eq!(message(&path("link")), Err("has more than 1048576 bytes".into()));
        rustix::fs::mkfifoat(rustix::fs::CWD, path("fifo"), rustix::fs::Mode::RUSR).unwrap();
        assert_eq!(message(&path("fifo")), Err("is a FIFO, not a file".into()));
        assert_eq!(
            message(directory.path()),
            Err("is a directory, not a file".into())
        );
        assert_eq!(
            message(Path::new("/dev/zero")),
            Err("is a device, not a file".into())
        );
        assert!(
            message(&path("missing"))
                .unwrap_err()
                .starts_with("cannot be read: No such file")
        );
    }
}
