//! The service manager's fd store (sd_pid_notify_with_fds(3)): it keeps another fd of each leased socket, and of each
//! placeholder, while the broker is killed and started again. So the next broker can ask a socket what the holder's own
//! could tell, a lease that was not active yet can be activated by it, and meanwhile placeholders go on to stand.
//!
//! **Invariants**: an fd is kept for as long as what it stands for has it, and no longer: [`Kept`] has it removed when
//! dropped, since a socket that nobody has but the store would keep its queue (F13). What leaves the broker unbound leaves
//! when the manager was sent everything that the next broker needs of it ([`Keeper::sent`]). The manager is told not to
//! poll it, which would transmit (F16). The engine never waits for the manager: a thread of its own talks to it.

mod passed;

use std::cell::Cell;
use std::collections::BTreeMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::rc::Rc;
use std::sync::mpsc::{self, Receiver, Sender};
use std::time::{Duration, Instant};

use sd_notify::NotifyState;
use tokio::sync::oneshot;
use xsk_client::sys;

use crate::kernel::xsk::Xsk;
use crate::lease::LeaseId;
use crate::privileges;

use passed::is_socket;
pub use passed::{Name, Passed};

/// The store as the engine finds it at its start. Without a manager that has one it is empty, and keeps nothing.
#[derive(Debug)]
pub struct FdStore {
    passed: Passed,
    keeper: Keeper,
}

/// Who keeps fds. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Keeper(Option<Manager>);

#[derive(Debug, Clone)]
struct Manager {
    orders: Sender<Order>,
    /// How many more it takes.
    room: Rc<Cell<usize>>,
}

#[derive(Debug)]
enum Order {
    Keep(Name, OwnedFd),
    Remove(String),
    /// To be told when all orders before this one were sent.
    Tell(oneshot::Sender<()>),
}

/// An fd that the manager keeps. Dropped, it is removed.
#[derive(Debug)]
pub struct Kept {
    name: Name,
    manager: Manager,
}

impl Drop for Kept {
    fn drop(&mut self) {
        self.manager.remove(self.name.to_string());
    }
}

impl FdStore {
    /// Looks whether the manager has a store (`FDSTORE`, systemd 254), and takes what it has kept.
    pub fn new(passed: Passed) -> Self {
        let most = std::env::var("FDSTORE").ok().and_then(|most| most.parse().ok());
        let most: usize = most.unwrap_or(0);
        let manager = (most > 0 || passed.len() > 0)
            .then(|| Manager::start(most.saturating_sub(passed.len())))
            .flatten();
        Self {
            passed,
            keeper: Keeper(manager),
        }
    }

    /// Who keeps fds from now on.
    pub fn keeper(&self) -> &Keeper {
        &self.keeper
    }

    /// Takes the socket of a lease's queue back, if it was kept; `inode` is what was written down of it.
    pub fn take(&mut self, lease: LeaseId, queue: u32, inode: Option<u64>) -> Option<(Xsk, Kept)> {
        let (fd, kept) = self.take_by(Name::Socket {
            lease: lease.0,
            queue,
        })?;
        if is_socket(&fd, inode) {
            return Some((Xsk::kept(fd, queue), kept));
        }
        tracing::warn!(
            lease = lease.0,
            queue,
            "what the service manager has kept by the name {} is not the socket of that lease",
            kept.name
        );
        None
    }

    /// Takes the placeholders of a device back, by their queues.
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
            let stands = is_socket(&fd, None) && sys::is_bound(&fd).unwrap_or(false);
            stands.then_some((queue, (fd, kept)))
        };
        names.into_iter().filter_map(take).collect()
    }

    fn take_by(&mut self, name: Name) -> Option<(OwnedFd, Kept)> {
        let manager = self.keeper.0.clone()?;
        let fd = self.passed.fds.remove(&name)?;
        Some((fd, Kept { name, manager }))
    }

    /// Closes what nobody has taken, has the manager remove it, and tells of it: of leases that are no more, placeholders
    /// that no lease needs, and what is none of ours.
    pub fn remove_others(&mut self) {
        let Passed { fds, strange } = std::mem::take(&mut self.passed);
        let Keeper(Some(manager)) = &self.keeper else {
            return;
        };
        for name in fds.into_keys() {
            tracing::info!("the service manager had kept {name}, which nothing needs any more: it is closed");
            manager.remove(name.to_string());
        }
        for name in strange {
            tracing::warn!(
                "the service manager had kept {name:?}, which is nothing of this broker's: it is closed"
            );
            manager.remove(name);
        }
    }
}

impl Keeper {
    /// Has the manager keep another fd of this, if it has room.
    pub fn keep(&self, name: Name, fd: BorrowedFd<'_>) -> Option<Kept> {
        let manager = self.0.as_ref()?;
        if manager.room.get() == 0 {
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
        manager.orders.send(Order::Keep(name, fd)).ok()?;
        manager.room.set(manager.room.get() - 1);
        Some(Kept {
            name,
            manager: manager.clone(),
        })
    }

    /// The same for the socket of a lease's queue.
    pub fn keep_socket(&self, lease: LeaseId, socket: &Xsk) -> Option<Kept> {
        let (lease, queue) = (lease.0, socket.queue());
        self.keep(Name::Socket { lease, queue }, socket.as_fd())
    }

    /// Resolves when the manager was sent all that was ordered up to here: from then on it is there for the next broker,
    /// whatever becomes of this one. `None`: there is no manager that keeps anything.
    pub fn sent(&self) -> Option<oneshot::Receiver<()>> {
        let (tell, sent) = oneshot::channel();
        self.0.as_ref()?.orders.send(Order::Tell(tell)).ok()?;
        Some(sent)
    }

    /// Waits for the same, for the end of the broker alone.
    pub fn wait_sent(&self, give_up: Instant) {
        const LOOK: Duration = Duration::from_millis(2);

        let Some(mut sent) = self.sent() else { return };
        while sent.try_recv() == Err(oneshot::error::TryRecvError::Empty) && Instant::now() < give_up {
            std::thread::sleep(LOOK);
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

    fn remove(&self, name: String) {
        self.room.set(self.room.get() + 1);
        // An error is the thread's end, of which it has told.
        drop(self.orders.send(Order::Remove(name)));
    }
}

fn talk(orders: &Receiver<Order>) {
    if let Err(error) = privileges::renounce() {
        tracing::error!(%error, "the thread that talks to the fd store ends");
        return;
    }
    for order in orders {
        let told = match &order {
            Order::Keep(name, fd) => {
                let name = name.to_string();
                let states = [
                    NotifyState::FdStore,
                    NotifyState::FdName(&name),
                    NotifyState::Custom("FDPOLL=0"),
                ];
                sd_notify::notify_with_fds(&states, &[fd.as_fd()])
            }
            Order::Remove(name) => {
                sd_notify::notify(&[NotifyState::FdStoreRemove, NotifyState::FdName(name)])
            }
            Order::Tell(_) => Ok(()),
        };
        if let Err(error) = told {
            tracing::warn!(%error, ?order, "cannot tell the service manager (NOTIFY_SOCKET)");
        }
        if let Order::Tell(tell) = order
            && tell.send(()).is_err()
        {
            tracing::debug!("who wanted to know what the service manager was sent has given up");
        }
    }
}
