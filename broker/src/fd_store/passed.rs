//! What the service manager has passed to this process of what an earlier one had it keep, each by its name.

use std::collections::BTreeMap;
use std::fmt;
use std::os::fd::OwnedFd;

use rustix::net::{AddressFamily, sockopt};

use crate::kernel::{origin, queue_lock};
use crate::record::{Record, RecordedSocket, Stage};

/// What an fd is, which its name in the store says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Name {
    /// The socket of a lease for one of its queues.
    Socket { lease: u64, queue: u32 },
    /// A socket of the broker's own that keeps a queue of a device busy.
    Placeholder { interface_index: u32, queue: u32 },
}

/// What the names begin with; two numbers follow.
const SOCKET: &str = "xsk";
const PLACEHOLDER: &str = "placeholder";

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Socket { lease, queue } => write!(f, "{SOCKET}-{lease}-{queue}"),
            Self::Placeholder {
                interface_index,
                queue,
            } => write!(f, "{PLACEHOLDER}-{interface_index}-{queue}"),
        }
    }
}

impl Name {
    /// Reads one: as it is written here, and no other way.
    pub fn read(text: &str) -> Option<Self> {
        let (kind, numbers) = text.split_once('-')?;
        let (of, queue) = numbers.split_once('-')?;
        let queue = queue.parse().ok()?;
        let name = match kind {
            SOCKET => Self::Socket {
                lease: of.parse().ok()?,
                queue,
            },
            PLACEHOLDER => Self::Placeholder {
                interface_index: of.parse().ok()?,
                queue,
            },
            _ => return None,
        };
        (name.to_string() == text).then_some(name)
    }
}

/// What was passed, and is kept still.
#[derive(Debug, Default)]
pub struct Passed {
    pub(super) fds: BTreeMap<Name, OwnedFd>,
    /// Names of what nobody here knows; it is closed already.
    pub(super) strange: Vec<String>,
}

impl Passed {
    /// Takes an fd. What has not the name of anything of ours is closed, and removed from the store later.
    pub fn add(&mut self, name: &str, fd: OwnedFd) {
        match Name::read(name) {
            Some(name) => drop(self.fds.insert(name, fd)),
            None => self.strange.push(name.to_owned()),
        }
    }

    /// Whether nothing of ours was passed; what is none of ours may have been.
    pub fn has_nothing_of_ours(&self) -> bool {
        self.fds.is_empty()
    }

    /// How many the manager keeps.
    pub(super) fn len(&self) -> usize {
        self.fds.len() + self.strange.len()
    }

    /// A queue of a lease for which another socket of its device was passed than was written down.
    pub fn other_than_recorded(&self, record: &Record) -> Option<u32> {
        let is_other = |socket: &&RecordedSocket| {
            let (lease, queue) = (record.lease, socket.queue);
            let passed = self.fds.get(&Name::Socket { lease, queue });
            passed.is_some_and(|fd| is_confined(fd, record) && !is_socket_of(fd, record, queue))
        };
        record.sockets.iter().find(is_other).map(|socket| socket.queue)
    }

    /// Whether all sockets of a lease are there.
    pub fn has_all_of(&self, record: &Record) -> bool {
        record.terms.queues().iter().all(|queue| {
            let lease = record.lease;
            let fd = self.fds.get(&Name::Socket { lease, queue });
            fd.is_some_and(|fd| is_socket_of(fd, record, queue))
        })
    }
}

/// Whether this is the socket of a lease's queue, as far as it was written down and the kernel tells: an AF_XDP socket of this
/// network namespace, confined to the lease's device, or to the scratch device where it was retired after the lease had ended;
/// its inode is not known of one that was not seen bound.
pub(super) fn is_socket_of(fd: &OwnedFd, record: &Record, queue: u32) -> bool {
    let recorded = record.sockets.iter().find(|socket| socket.queue == queue);
    let inode = recorded.and_then(|socket| socket.inode);
    let found = rustix::fs::fstat(fd).ok().map(|stat| stat.st_ino);
    is_confined(fd, record) && inode.is_none_or(|inode| found == Some(inode))
}

fn is_confined(fd: &OwnedFd, record: &Record) -> bool {
    let may_be_retired = record.stage == Stage::Ended;
    is_socket(fd)
        && origin::confined_to(fd).is_ok_and(|index| {
            index == record.interface_index || (may_be_retired && queue_lock::was_scratch(index))
        })
}

/// Whether this is an AF_XDP socket of this network namespace.
pub(super) fn is_socket(fd: &OwnedFd) -> bool {
    let is_xdp = sockopt::socket_domain(fd).is_ok_and(|domain| domain == AddressFamily::XDP);
    let is_of_here = || match (origin::network_namespace(fd), origin::own_network_namespace()) {
        (Ok(of_socket), Ok(own)) => of_socket == own,
        _ => false,
    };
    is_xdp && is_of_here()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_as_they_are_written() {
        let socket = Name::Socket { lease: 7, queue: 3 };
        let placeholder = Name::Placeholder {
            interface_index: 2,
            queue: 5,
        };
        for (name, text) in [(socket, "xsk-7-3"), (placeholder, "placeholder-2-5")] {
            assert_eq!(name.to_string(), text);
            assert_eq!(Name::read(text), Some(name));
        }
        for other in [
            "xsk-7",
            "xsk-07-3",
            "xsk-7-3-1",
            "xsk-7-x",
            "placeholder-2",
            "placeholders-2-5",
            "broker",
            "xsk-+7-3",
            "",
        ] {
            assert_eq!(Name::read(other), None, "{other}");
        }
    }
}
