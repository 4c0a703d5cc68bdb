//! What keeps the lock in force without the broker: its maps and links, pinned in the private directory in bpffs beside
//! the links of XDP programs, under names of their own.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::PathBuf;

use rustix::fs::{AtFlags, Dir, unlinkat};

/// What all names begin with: of the lock, and of the layout of its maps. Another version's stay where they are, and in
/// force, until the machine is started again.
const PREFIX: &str = "lsm1-";

/// Whether a name in the directory belongs to a queue lock, of whatever layout.
pub(super) fn is_pin(name: &str) -> bool {
    name.starts_with("lsm")
}

/// The directory.
#[derive(Debug)]
pub(super) struct Pins(OwnedFd);

/// The names that stand.
#[derive(Debug, Clone, Copy)]
pub(super) enum Pin {
    Sockets,
    Leases,
    /// The link of a program, of the broker that began then.
    Bind(u64),
    Option(u64),
}

impl Pin {
    fn name(self) -> String {
        match self {
            Self::Sockets => format!("{PREFIX}sockets"),
            Self::Leases => format!("{PREFIX}leases"),
            Self::Bind(broker) => format!("{PREFIX}bind-{broker:x}"),
            Self::Option(broker) => format!("{PREFIX}option-{broker:x}"),
        }
    }
}

impl Pins {
    pub(super) fn new(directory: OwnedFd) -> Self {
        Self(directory)
    }

    /// As this process may reach it, whatever it may do on the way there.
    pub(super) fn path(&self, pin: Pin) -> PathBuf {
        PathBuf::from(format!("/proc/self/fd/{}/{}", self.0.as_raw_fd(), pin.name()))
    }

    /// Names of this layout.
    pub(super) fn names(&self) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in Dir::read_from(&self.0)? {
            let name = entry?.file_name().to_string_lossy().into_owned();
            if name.starts_with(PREFIX) {
                names.push(name);
            }
        }
        Ok(names)
    }

    /// Removes the links of earlier brokers: those of this one are pinned.
    pub(super) fn remove_links_but(&self, broker: u64) -> io::Result<()> {
        let kept = [Pin::Sockets, Pin::Leases, Pin::Bind(broker), Pin::Option(broker)].map(Pin::name);
        for name in self.names()?.iter().filter(|name| !kept.contains(name)) {
            unlinkat(&self.0, name.as_str(), AtFlags::empty())?;
        }
        Ok(())
    }

    /// Removes all, which ends the lock when the last fd is closed.
    pub(super) fn remove_all(&self) {
        let removed = self.names().and_then(|names| {
            for name in names {
                unlinkat(&self.0, name.as_str(), AtFlags::empty())?;
            }
            Ok(())
        });
        if let Err(error) = removed {
            tracing::warn!(%error, "cannot remove a pin of the queue lock");
        }
    }
}
