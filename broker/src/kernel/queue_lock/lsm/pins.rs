//! What keeps the lock in force without the broker: its maps and links, pinned in the private directory in bpffs beside
//! the links of XDP programs, under names of their own.

use std::path::PathBuf;

use crate::error::{Failure, chain};
use crate::kernel::pins::PinDirectory;

/// What all names begin with: of the lock, and of the layout of its maps. Another version's stay where they are, and in
/// force, until the machine is started again.
const PREFIX: &str = "lsm1-";

/// Whether a name in the directory belongs to a queue lock, of whatever layout.
pub(super) fn is_pin(name: &str) -> bool {
    name.starts_with("lsm")
}

/// What is the lock's in the directory.
#[derive(Debug)]
pub(super) struct Pins(PinDirectory);

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
    pub(super) fn new(directory: PinDirectory) -> Self {
        Self(directory)
    }

    /// As this process may reach it, whatever it may do on the way there.
    pub(super) fn path(&self, pin: Pin) -> PathBuf {
        self.0.path_for(&pin.name())
    }

    /// Names of this layout.
    pub(super) fn names(&self) -> Result<Vec<String>, Failure> {
        let mut names = self.0.names()?;
        names.retain(|name| name.starts_with(PREFIX));
        Ok(names)
    }

    /// Removes the links of earlier brokers: those of this one are pinned.
    pub(super) fn remove_links_but(&self, broker: u64) -> Result<(), Failure> {
        let kept = [Pin::Sockets, Pin::Leases, Pin::Bind(broker), Pin::Option(broker)].map(Pin::name);
        self.remove(|name| !kept.iter().any(|kept| kept == name))
    }

    /// Removes all, which ends the lock when the last fd is closed.
    pub(super) fn remove_all(&self) {
        if let Err(failure) = self.remove(|_| true) {
            tracing::warn!("cannot remove a pin of the queue lock: {}", chain(&failure));
        }
    }

    fn remove(&self, wanted: impl Fn(&str) -> bool) -> Result<(), Failure> {
        for name in self.names()?.iter().filter(|name| wanted(name)) {
            self.0
                .remove(name)
                .map_err(|source| Failure::kernel("unlink", self.0.path().join(name).display(), source))?;
        }
        Ok(())
    }
}
