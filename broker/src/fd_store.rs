//! The service manager's fd store (sd_pid_notify_with_fds(3)): it keeps another fd of each leased socket while the broker
//! is killed and started again. So the next broker can ask a socket what the holder's own could tell, and a lease that was
//! not active yet can be activated by it.
//!
//! **Invariants**: an fd is kept for as long as its lease has the socket, and no longer: [`Kept`] has it removed when
//! dropped, since a socket that nobody has but the store would keep its queue (F13). The manager is told not to poll it,
//! which would transmit (F16). The engine never waits for the manager: a thread of its own talks to it.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::os::fd::{AsFd, OwnedFd};
use std::rc::Rc;
use std::sync::mpsc::{self, Receiver, Sender};

use rustix::net::{AddressFamily, sockopt};
use sd_notify::NotifyState;

use crate::error::chain;
use crate::kernel::xsk::Xsk;
use crate::lease::LeaseId;
use crate::privileges;
use crate::record::Record;

/// What the names of such fds begin with; the lease's number and the queue follow.
const BEGINNING: &str = "xsk-";

/// Which socket of which lease.
type Key = (u64, u32);

/// What the manager has passed to this process, and keeps still.
#[derive(Debug, Default)]
pub struct Passed(BTreeMap<Key, OwnedFd>);

impl Passed {
    /// Takes an fd by its name. `Err`: it has not the name of a leased socket.
    ///
    /// # Errors
    ///
    /// The fd, unchanged.
    pub fn add(&mut self, name: &str, fd: OwnedFd) -> Result<(), OwnedFd> {
        match key_of(name) {
            Some(key) => {
                self.0.insert(key, fd);
                Ok(())
            }
            None => Err(fd),
        }
    }

    /// Whether all sockets of a lease are there.
    pub fn has_all_of(&self, record: &Record) -> bool {
        record.terms.queues().iter().all(|queue| {
            let recorded = record.sockets.iter().find(|socket| socket.queue == queue);
            let inode = recorded.and_then(|socket| socket.inode);
            let fd = self.0.get(&(record.lease, queue));
            fd.is_some_and(|fd| is_socket(fd, inode))
        })
    }
}

/// Whether a name is that of a leased socket.
pub fn is_name(name: &str) -> bool {
    key_of(name).is_some()
}

fn name_of((lease, queue): Key) -> String {
    format!("{BEGINNING}{lease}-{queue}")
}

fn key_of(name: &str) -> Option<Key> {
    let (lease, queue) = name.strip_prefix(BEGINNING)?.split_once('-')?;
    let key = (lease.parse().ok()?, queue.parse().ok()?);
    // As it is written here, and no other way.
    (name_of(key) == name).then_some(key)
}

/// Whether this is an AF_XDP socket, and the one that was written down.
fn is_socket(fd: &OwnedFd, inode: Option<u64>) -> bool {
    let is_xdp = sockopt::socket_domain(fd).is_ok_and(|domain| domain == AddressFamily::XDP);
    let found = rustix::fs::fstat(fd).ok().map(|stat| stat.st_ino);
    is_xdp && inode.is_none_or(|inode| found == Some(inode))
}

/// The store, as the engine sees it. Without a manager that has one it keeps nothing.
#[derive(Debug)]
pub struct FdStore {
    passed: BTreeMap<Key, OwnedFd>,
    manager: Option<Manager>,
}

#[derive(Debug, Clone)]
struct Manager {
    orders: Sender<Order>,
    /// How many more it takes.
    room: Rc<Cell<usize>>,
}

#[derive(Debug)]
enum Order {
    Keep(Key, OwnedFd),
    Remove(Key),
}

/// An fd that the manager keeps. Dropped, it is removed.
#[derive(Debug)]
pub struct Kept {
    key: Key,
    manager: Manager,
}

impl Drop for Kept {
    fn drop(&mut self) {
        let room = &self.manager.room;
        room.set(room.get() + 1);
        // An error is the thread's end, of which it has told.
        drop(self.manager.orders.send(Order::Remove(self.key)));
    }
}

impl FdStore {
    /// Looks whether the manager has a store (`FDSTORE`, systemd 254), and takes what it has kept.
    pub fn new(passed: Passed) -> Self {
        let most = std::env::var("FDSTORE").ok().and_then(|most| most.parse().ok());
        let most: usize = most.unwrap_or(0);
        let manager = (most > 0 || !passed.0.is_empty())
            .then(|| Manager::start(most.saturating_sub(passed.0.len())))
            .flatten();
        Self {
            passed: passed.0,
            manager,
        }
    }

    /// Has the manager keep another fd of a socket, if it has room.
    pub fn keep(&self, lease: LeaseId, socket: &Xsk) -> Option<Kept> {
        let manager = self.manager.as_ref().filter(|manager| manager.room.get() > 0)?;
        let fd = match socket.duplicate() {
            Ok(fd) => fd,
            Err(failure) => {
                tracing::warn!("a socket is not kept by the service manager: {}", chain(&failure));
                return None;
            }
        };
        let key = (lease.0, socket.queue());
        manager.orders.send(Order::Keep(key, fd)).ok()?;
        manager.room.set(manager.room.get() - 1);
        Some(Kept {
            key,
            manager: manager.clone(),
        })
    }

    /// Takes the socket of a lease's queue back, if it was kept; `inode` is what was written down of it.
    pub fn take(&mut self, lease: LeaseId, queue: u32, inode: Option<u64>) -> Option<(Xsk, Kept)> {
        let key = (lease.0, queue);
        let manager = self.manager.clone()?;
        let fd = self.passed.remove(&key)?;
        let kept = Kept { key, manager };
        if is_socket(&fd, inode) {
            return Some((Xsk::kept(fd, queue), kept));
        }
        tracing::warn!(
            lease = lease.0,
            queue,
            "what the service manager has kept by the name {} is not the socket of that lease",
            name_of(key)
        );
        None
    }

    /// Has the manager remove what it kept for leases that are no more.
    pub fn remove_others(&mut self) {
        let Some(manager) = &self.manager else {
            return;
        };
        for key in std::mem::take(&mut self.passed).into_keys() {
            let manager = manager.clone();
            drop(Kept { key, manager });
        }
    }
}

impl Manager {
    fn start(room: usize) -> Option<Self> {
        let (orders, received) = mpsc::channel();
        let talker = std::thread::Builder::new().name("fd-store".into());
        if let Err(error) = talker.spawn(move || talk(&received)) {
            tracing::warn!(%error, "no thread for the service manager's fd store: it keeps nothing");
            return None;
        }
        Some(Self {
            orders,
            room: Rc::new(Cell::new(room)),
        })
    }
}

fn talk(orders: &Receiver<Order>) {
    if let Err(error) = privileges::renounce() {
        tracing::error!(%error, "the thread that talks to the fd store ends");
        return;
    }
    for order in orders {
        let told = match &order {
            Order::Keep(key, fd) => {
                let name = name_of(*key);
                let states = [
                    NotifyState::FdStore,
                    NotifyState::FdName(&name),
                    NotifyState::Custom("FDPOLL=0"),
                ];
                sd_notify::notify_with_fds(&states, &[fd.as_fd()])
            }
            Order::Remove(key) => {
                let name = name_of(*key);
                sd_notify::notify(&[NotifyState::FdStoreRemove, NotifyState::FdName(&name)])
            }
        };
        if let Err(error) = told {
            tracing::warn!(%error, ?order, "cannot tell the service manager (NOTIFY_SOCKET)");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_as_they_are_written() {
        assert_eq!(name_of((7, 3)), "xsk-7-3");
        assert_eq!(key_of("xsk-7-3"), Some((7, 3)));
        for other in [
            "xsk-7",
            "xsk-07-3",
            "xsk-7-3-1",
            "xsk-7-x",
            "broker",
            "xsk-+7-3",
            "",
        ] {
            assert_eq!(key_of(other), None, "{other}");
        }
    }
}
