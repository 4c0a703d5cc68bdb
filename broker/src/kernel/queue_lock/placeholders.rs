//! Placeholders: sockets of the broker's own that keep queues busy while somebody else's is unbound (F5).
//!
//! **Invariants**: on one device the unbound sockets of at most one lease are out. From before they leave until each was
//! seen bound or is retired, a [`Guard`] stands: every other queue that can be bound to has a socket on it, ours or a
//! holder's, of which we have an fd too and do not close it meanwhile. So whatever its holder does, such a socket can be
//! bound to its own lease's queues, and to nothing else.
//!
//! A service manager that keeps fds has another one of each of these sockets while the guard stands. So they go on to keep
//! their queues when the broker is killed, until the next one has raised the guard anew of them ([`Placeholders::guard`]).
//!
//! Without a guard there are no placeholders: they would be in the way of whoever sets the number of queues, and the
//! kernel takes its time to let go of one (F12). While it does, the next guard waits, and nobody else.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::os::fd::{AsFd, OwnedFd};
use std::rc::Rc;
use std::time::{Duration, Instant};

use caps::Capability;
use xsk_client::sys::{self, BindFlags};

use super::closer::Closer;
use super::room::{self, NoRoom};
use crate::device::Device;
use crate::error::Failure;
use crate::fd_store::{Keeper, Kept, Name};
use crate::kernel::queue_probe::{self, QueueProbe, QueueUse};
use crate::kernel::xsk::Xsk;
use crate::lease::LeaseId;
use crate::privileges;

/// How long a queue counts as on its way to be free. The kernel takes 10 to 50 ms; what takes longer has another holder,
/// and nobody knows when that will let go.
const LEAVING: Duration = Duration::from_millis(250);
/// Where it cannot be seen without touching the queue, this is how long it is given.
const LEAVING_UNSEEN: Duration = Duration::from_millis(80);
/// How often a guarded device is looked at: queues may have been added, or a stranger's socket be gone.
const LOOK: Duration = Duration::from_millis(20);

/// All guards of the broker.
#[derive(Debug)]
pub(super) struct Placeholders {
    devices: Rc<RefCell<Devices>>,
    keeper: Keeper,
}

/// By index.
#[derive(Debug, Default)]
struct Devices {
    guarded: HashMap<u32, Guarded>,
    closer: Rc<Closer>,
}

/// A socket that keeps a queue, and that the service manager may keep as well.
pub type KeptSocket = (OwnedFd, Option<Kept>);

#[derive(Debug, Default)]
struct Guarded {
    guard: Option<Standing>,
    /// Since when the kernel was asked to let go of these queues.
    leaving: BTreeMap<u32, Instant>,
    /// A lease of kind `bound` whose queue the broker could not bind for placeholders, and until when it has the next turn.
    next: Option<(LeaseId, Instant)>,
}

#[derive(Debug)]
struct Standing {
    lease: LeaseId,
    /// What the lease's sockets may be bound to.
    granted: BTreeSet<u32>,
    placeholders: BTreeMap<u32, KeptSocket>,
    /// Sockets of leases that ended meanwhile: each keeps its queue.
    kept: Vec<(Xsk, Option<Kept>)>,
    /// When to look again.
    look: Instant,
}

/// Why no guard can be raised now.
#[derive(Debug)]
pub enum NotNow {
    /// Sockets of another lease are unbound.
    Turn,
    /// The kernel has not let go of this queue yet.
    Leaving(u32),
    /// More fds than are left for placeholders.
    NoRoom(NoRoom),
    /// It failed.
    Failed(Failure),
}

impl From<Failure> for NotNow {
    fn from(failure: Failure) -> Self {
        Self::Failed(failure)
    }
}

impl Placeholders {
    /// None stands yet. `keeper` keeps them for the next broker.
    pub(super) fn new(keeper: Keeper) -> Self {
        Self {
            devices: Rc::default(),
            keeper,
        }
    }

    /// Whether a guard could be raised: for who has more to look at before it is.
    ///
    /// # Errors
    ///
    /// [`NotNow`].
    pub(super) fn could_guard(
        &self,
        device: &Device,
        granted: usize,
        probe: &mut QueueProbe,
    ) -> Result<(), NotNow> {
        let mut devices = self.devices.borrow_mut();
        devices.has_room(room::wanted_on(device, granted))?;
        let Some(guarded) = devices.guarded.get_mut(&device.index) else {
            return Ok(());
        };
        let now = Instant::now();
        if guarded.guard.is_some() || guarded.next.is_some_and(|(_, until)| until > now) {
            return Err(NotNow::Turn);
        }
        guarded.leaving.retain(|_, since| *since + LEAVING > now);
        for (queue, since) in guarded.leaving.clone() {
            match probe.queue_use_untouched(device.index, queue)? {
                Some(QueueUse::Free) => {}
                None if since + LEAVING_UNSEEN <= now => {}
                Some(QueueUse::Taken) | None => return Err(NotNow::Leaving(queue)),
            }
        }
        Ok(())
    }

    /// Whether the devices that are to be had could have their placeholders all at once, and while the kernel lets go of as many.
    ///
    /// # Errors
    ///
    /// [`NoRoom`].
    pub(super) fn have_room(devices: impl Iterator<Item = Device>) -> Result<(), NoRoom> {
        room::check(devices.map(|device| 2 * room::wanted_on(&device, 1)).sum(), 0)
    }

    /// Puts placeholders on all queues of the device but those that the lease is granted.
    ///
    /// A queue that somebody is bound to has its placeholder. If that is a lease of ours it goes on to be taken for as
    /// long as the guard stands, since what it has is kept then; if it is a stranger, or a holder that would not let go
    /// of an ended lease's socket, it is looked at again and again.
    ///
    /// `standing` are those that a broker before has put up for this lease, and that somebody has kept: each is believed where
    /// its queue is taken, and where it is not another takes its place. For a new lease there are none.
    ///
    /// # Errors
    ///
    /// [`NotNow`]; nothing stands then.
    pub(super) fn guard(
        &self,
        lease: LeaseId,
        device: &Device,
        granted: &BTreeSet<u32>,
        standing: BTreeMap<u32, KeptSocket>,
    ) -> Result<Guard, NotNow> {
        {
            let mut devices = self.devices.borrow_mut();
            let guarded = devices.guarded.entry(device.index).or_default();
            if guarded.guard.is_some() {
                return Err(NotNow::Turn);
            }
            guarded.guard = Some(Standing {
                lease,
                granted: granted.clone(),
                placeholders: BTreeMap::new(),
                kept: Vec::new(),
                look: Instant::now() + LOOK,
            });
        }
        // From here on dropping it takes down whatever stands.
        let guard = Guard {
            devices: Rc::clone(&self.devices),
            index: device.index,
        };
        let mut devices = self.devices.borrow_mut();
        let Some(guarded) = devices.guarded.get_mut(&device.index) else {
            return Err(NotNow::Turn);
        };
        let result = guarded.fill(device, &BTreeSet::new(), standing, &self.keeper);
        // What was on its way to be free and is not is neither ours nor anybody's for long.
        let leaving = guarded
            .leaving
            .keys()
            .copied()
            .find(|queue| !granted.contains(queue));
        drop(devices);
        result?;
        match leaving {
            Some(queue) => Err(NotNow::Leaving(queue)),
            None => Ok(guard),
        }
    }

    /// Looks at the guarded devices whose time has come: puts placeholders on queues that can be bound to only now.
    /// `active` are the queues of leases whose sockets are bound, of each device by its index.
    pub(super) fn look_again(
        &self,
        now: Instant,
        active: impl Fn(u32) -> BTreeSet<u32>,
        device: impl Fn(u32) -> Option<Device>,
    ) {
        let due: Vec<u32> = self
            .devices
            .borrow()
            .guarded
            .iter()
            .filter(|(_, guarded)| guarded.guard.as_ref().is_some_and(|guard| guard.look <= now))
            .map(|(index, _)| *index)
            .collect();
        for index in due {
            let (device, active) = (device(index), active(index));
            let mut devices = self.devices.borrow_mut();
            let Some(guarded) = devices.guarded.get_mut(&index) else {
                continue;
            };
            if let Some(guard) = &mut guarded.guard {
                guard.look = now + LOOK;
            }
            // A device that is gone needs no guard, of which news is on its way.
            let Some(device) = device else { continue };
            if let Err(failure) = guarded.fill(&device, &active, BTreeMap::new(), &self.keeper) {
                tracing::warn!(
                    interface = %device.name,
                    error = crate::error::chain(&failure),
                    "cannot put a placeholder on a queue that was added"
                );
            }
        }
    }

    /// When [`Placeholders::look_again`] has something to do.
    pub(super) fn due(&self) -> Option<Instant> {
        let devices = self.devices.borrow();
        devices
            .guarded
            .values()
            .filter_map(|guarded| guarded.guard.as_ref().map(|guard| guard.look))
            .min()
    }

    /// Takes the sockets of a lease that has ended: closes them, or keeps them as placeholders while a guard stands.
    pub(super) fn part_with(&self, index: u32, sockets: Vec<(Xsk, Option<Kept>)>) {
        let mut devices = self.devices.borrow_mut();
        let closer = Rc::clone(&devices.closer);
        let guarded = devices.guarded.entry(index).or_default();
        match &mut guarded.guard {
            Some(guard) => guard.kept.extend(sockets),
            None => guarded.close(sockets.into_iter().map(of_queue), &closer),
        }
    }

    /// The queues of a device that placeholders keep busy, and for whose sake.
    pub(super) fn standing(&self, index: u32) -> Option<(LeaseId, Vec<u32>)> {
        let devices = self.devices.borrow();
        let guard = devices.guarded.get(&index)?.guard.as_ref()?;
        Some((guard.lease, guard.placeholders.keys().copied().collect()))
    }

    /// Gives a lease the next turn on a device, before any other's sockets leave unbound, if a placeholder is what kept the
    /// broker from binding its queue; whether it is. Who tries again and again would never meet a moment between two guards.
    pub(super) fn give_next_turn(&self, index: u32, queue: u32, lease: LeaseId) -> bool {
        /// More than a client waits before it asks again.
        const TURN: Duration = Duration::from_millis(300);

        let mut devices = self.devices.borrow_mut();
        let Some(guarded) = devices.guarded.get_mut(&index) else {
            return false;
        };
        let now = Instant::now();
        let stands = |guard: &Standing| guard.placeholders.contains_key(&queue);
        let waits = guarded.guard.as_ref().is_some_and(stands) || guarded.leaving.contains_key(&queue);
        let others = guarded
            .next
            .filter(|(other, until)| *other != lease && *until > now);
        if waits && others.is_none() {
            guarded.next = Some((lease, now + TURN));
        }
        waits
    }

    /// It has had it.
    pub(super) fn end_turn(&self, index: u32, lease: LeaseId) {
        if let Some(guarded) = self.devices.borrow_mut().guarded.get_mut(&index) {
            guarded.next = guarded.next.filter(|(other, _)| *other != lease);
        }
    }

    /// Whether the kernel may not have let go of a queue yet that was ours.
    pub(super) fn is_leaving(&self, index: u32, queue: u32) -> bool {
        let devices = self.devices.borrow();
        devices
            .guarded
            .get(&index)
            .and_then(|guarded| guarded.leaving.get(&queue))
            .is_some_and(|since| since.elapsed() < LEAVING)
    }

    /// A device is gone: nothing can be bound to it.
    pub(super) fn forget(&self, index: u32) {
        if let Some(guarded) = self.devices.borrow_mut().guarded.get_mut(&index) {
            guarded.leaving.clear();
        }
    }
}

impl Devices {
    /// Whether so many more placeholders may stand: before any is made, since a grant that ends half way for want of an fd
    /// would be as bad for whoever is next.
    fn has_room(&self, wanted: u64) -> Result<(), NotNow> {
        let standing: usize = self
            .guarded
            .values()
            .filter_map(|guarded| Some(guarded.guard.as_ref()?.placeholders.len()))
            .sum();
        let taken = u64::try_from(standing).unwrap_or(u64::MAX) + self.closer.waiting();
        room::check(wanted, taken).map_err(NotNow::NoRoom)
    }
}

impl Guarded {
    /// Puts placeholders on what has none, except on granted and active queues: those that stand already where they do.
    fn fill(
        &mut self,
        device: &Device,
        active: &BTreeSet<u32>,
        mut standing: BTreeMap<u32, KeptSocket>,
        keeper: &Keeper,
    ) -> Result<(), Failure> {
        let Some(guard) = &mut self.guard else {
            return Ok(());
        };
        let mut spare = None;
        for queue in 0..device.bindable_queues {
            if guard.granted.contains(&queue)
                || active.contains(&queue)
                || guard.placeholders.contains_key(&queue)
            {
                continue;
            }
            let failed = |call, source| {
                Failure::kernel(
                    call,
                    format!("a placeholder for {}, queue {queue}", device.name),
                    source,
                )
            };
            let socket = match spare.take() {
                Some(socket) => socket,
                None => privileges::with(
                    &[Capability::CAP_NET_RAW, Capability::CAP_IPC_LOCK],
                    queue_probe::unbound_socket,
                )?
                .map_err(|source| failed("socket(AF_XDP)", source))?,
            };
            match sys::bind(&socket, device.index, queue, BindFlags::XDP_COPY) {
                Ok(()) => {
                    let name = Name::Placeholder {
                        interface_index: device.index,
                        queue,
                    };
                    if standing.remove(&queue).is_some() {
                        tracing::warn!(
                            "what the service manager has kept by the name {name} was not on that queue: it is closed"
                        );
                    }
                    let kept = keeper.keep(name, socket.as_fd());
                    guard.placeholders.insert(queue, (socket, kept));
                    self.leaving.remove(&queue);
                }
                // Somebody has it; or it is no more, since there are fewer queues now than when they were counted.
                Err(error) if matches!(error.raw_os_error(), Some(libc::EBUSY | libc::EINVAL)) => {
                    spare = Some(socket);
                    let is_taken = error.raw_os_error() == Some(libc::EBUSY);
                    let stands = standing.remove(&queue).filter(|_| is_taken);
                    guard.placeholders.extend(stands.map(|socket| (queue, socket)));
                }
                Err(error) => return Err(failed("bind(AF_XDP)", error)),
            }
        }
        Ok(())
    }

    /// Closes sockets, which nobody keeps any more either.
    fn close(&mut self, sockets: impl Iterator<Item = (u32, KeptSocket)>, closer: &Closer) {
        let now = Instant::now();
        closer.close(sockets.map(|(queue, (socket, kept))| {
            self.leaving.insert(queue, now);
            drop(kept);
            socket
        }));
    }
}

fn of_queue((socket, kept): (Xsk, Option<Kept>)) -> (u32, KeptSocket) {
    (socket.queue(), (socket.into(), kept))
}

/// Stands while the unbound sockets of a lease are out. Dropped, it takes its placeholders down.
#[derive(Debug)]
#[must_use = "dropped, it takes its placeholders down"]
pub struct Guard {
    devices: Rc<RefCell<Devices>>,
    index: u32,
}

impl Drop for Guard {
    fn drop(&mut self) {
        let mut devices = self.devices.borrow_mut();
        let closer = Rc::clone(&devices.closer);
        let Some(guarded) = devices.guarded.get_mut(&self.index) else {
            return;
        };
        let Some(guard) = guarded.guard.take() else { return };
        let kept = guard.kept.into_iter().map(of_queue);
        guarded.close(guard.placeholders.into_iter().chain(kept), &closer);
    }
}
