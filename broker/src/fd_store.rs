//! The service manager's fd store (sd_pid_notify_with_fds(3)): it keeps another fd of each leased socket, and of each
//! placeholder, while the broker is killed and started again. So the next broker can ask a socket what the holder's own
//! could tell, a lease that was not active yet can be activated by it, and meanwhile placeholders go on to stand.
//!
//! **Invariants**: an fd is kept for as long as what it stands for has it, and no longer: [`Kept`] has it removed when
//! dropped, since a socket that nobody has but the store would keep its queue (F13). What leaves the broker unbound leaves
//! when the manager was sent everything that the next broker needs of it ([`Keeper::sent`]). The manager is told not to
//! poll it, which would transmit (F16). The engine never waits for the manager (`manager.rs`); one that takes no fds in time, again
//! and again, is given none any more.

mod passed;

use std::cell::Cell;
use std::collections::BTreeMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::rc::Rc;

use xsk_client::sys;

use crate::kernel::xsk::Xsk;
use crate::lease::LeaseId;
use crate::manager::{Manager, Sent};
use crate::record::Record;

pub use passed::{Name, Passed};
use passed::{is_socket, is_socket_of};

/// The store as the engine finds it at its start. Without a manager that has one it is empty, and keeps nothing.
#[derive(Debug)]
pub struct FdStore {
    passed: Passed,
    keeper: Keeper,
}

/// Who keeps fds. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Keeper(Option<Store>);

#[derive(Debug, Clone)]
struct Store {
    manager: Manager,
    /// How many more it takes.
    room: Rc<Cell<usize>>,
}

/// An fd that the manager keeps. Dropped, it is removed.
#[derive(Debug)]
pub struct Kept {
    name: Name,
    store: Store,
}

impl Drop for Kept {
    fn drop(&mut self) {
        self.store.remove(self.name.to_string());
    }
}

impl FdStore {
    /// Looks whether the manager has a store (`FDSTORE`, systemd 254), and takes what it has kept.
    pub fn new(passed: Passed, manager: Manager) -> Self {
        let most = std::env::var("FDSTORE").ok().and_then(|most| most.parse().ok());
        let most: usize = most.unwrap_or(0);
        let is_there = manager.is_there() && (most > 0 || passed.len() > 0);
        let store = is_there.then(|| Store {
            manager,
            room: Rc::new(Cell::new(most.saturating_sub(passed.len()))),
        });
        Self {
            passed,
            keeper: Keeper(store),
        }
    }

    /// Who keeps fds from now on.
    pub fn keeper(&self) -> &Keeper {
        &self.keeper
    }

    /// Takes the socket of a lease's queue back, if it was kept: what is written down of the lease says which that is.
    pub fn take(&mut self, record: &Record, queue: u32) -> Option<(Xsk, Kept)> {
        let lease = record.lease;
        let (fd, kept) = self.take_by(Name::Socket { lease, queue })?;
        if is_socket_of(&fd, record, queue) {
            return Some((Xsk::kept(fd, queue), kept));
        }
        tracing::warn!(
            lease,
            queue,
            "what the service manager has kept by the name {} is not the socket of that lease: it is closed",
            kept.name
        );
        None
    }

    /// Takes the placeholders of a device back, by their queues. Whether they are on these shows when a guard is raised of them.
    pub fn take_placeholders(&mut self, interface_index: u32) -> BTreeMap<u32, (OwnedFd, Kept)> {
        let is_of_device = |name: &Name| match name {
            Name::Placeholder {
                interface_index: index,
                queue,
            } if *index == interface_index => Some((*name, *queue)),
            _ => None,
        };
        let names: Vec<(Name, u32)> = self.passed.fds.keys().filter_map(is_of_device).collect();
        let take = |(name, queue)| {
            let (fd, kept) = self.take_by(name)?;
            // What is bound to nothing keeps no queue; another takes its place.
            let stands = is_socket(&fd) && sys::is_bound(&fd).unwrap_or(false);
            if !stands {
                tracing::warn!(
                    "what the service manager has kept by the name {name} is no placeholder: it is closed"
                );
            }
            stands.then_some((queue, (fd, kept)))
        };
        names.into_iter().filter_map(take).collect()
    }

    fn take_by(&mut self, name: Name) -> Option<(OwnedFd, Kept)> {
        let store = self.keeper.0.clone()?;
        let fd = self.passed.fds.remove(&name)?;
        Some((fd, Kept { name, store }))
    }

    /// Closes what nobody has taken, has the manager remove it, and tells of it: of leases that are no more, placeholders
    /// that no lease needs, and what is none of ours. What `is_left` as it is, another broker will want: the manager goes on
    /// to keep it.
    pub fn remove_others(&mut self, is_left: impl Fn(&Name) -> bool) {
        let Passed { fds, strange } = std::mem::take(&mut self.passed);
        let Keeper(Some(store)) = &self.keeper else {
            return;
        };
        for name in fds.into_keys().filter(|name| !is_left(name)) {
            tracing::info!("the service manager had kept {name}, which nothing needs any more: it is closed");
            store.remove(name.to_string());
        }
        for name in strange {
            tracing::warn!(
                "the service manager had kept {name:?}, which is nothing of this broker's: it is closed"
            );
            store.remove(name);
        }
    }
}

impl Keeper {
    /// Has the manager keep another fd of this, if it has room and takes any.
    pub fn keep(&self, name: Name, fd: BorrowedFd<'_>) -> Option<Kept> {
        let store = self.0.as_ref()?;
        if store.manager.trouble().is_some() {
            return None;
        }
        if store.room.get() == 0 {
            tracing::warn!(
                "the service manager has no room to keep {name}: what it stands for is lost if the broker is restarted now \
                 (FileDescriptorStoreMax=)"
            );
            return None;
        }
        let fd = match fd.try_clone_to_owned() {
            Ok(fd) => fd,
            Err(error) => {
                tracing::warn!(%error, "{name} is not kept by the service manager: fcntl(F_DUPFD_CLOEXEC)");
                return None;
            }
        };
        store.manager.keep(name.to_string(), fd);
        store.room.set(store.room.get() - 1);
        Some(Kept {
            name,
            store: store.clone(),
        })
    }

    /// The same for the socket of a lease's queue.
    pub fn keep_socket(&self, lease: LeaseId, socket: &Xsk) -> Option<Kept> {
        let (lease, queue) = (lease.0, socket.queue());
        self.keep(Name::Socket { lease, queue }, socket.as_fd())
    }

    /// Resolves when the manager was sent all that was ordered up to here: from then on it is there for the next broker,
    /// whatever becomes of this one. `None`: there is no manager that keeps anything.
    pub fn sent(&self) -> Option<Sent> {
        let store = self.0.as_ref()?;
        match store.manager.trouble() {
            None => store.manager.sent(),
            Some(_) => None,
        }
    }
}

impl Store {
    fn remove(&self, name: String) {
        self.room.set(self.room.get() + 1);
        self.manager.remove(name);
    }
}
