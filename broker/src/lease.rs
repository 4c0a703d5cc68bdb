//! Leases: what is held, by whom, and which queues are therefore not to be had.
//!
//! The chain of types is the order of a grant: only [`Policy::decide`](crate::policy::Policy::decide) makes
//! [`Terms`], only [`Leases::reserve`] makes a [`Reservation`], only the kernel module makes kernel objects and
//! wants to see a reservation for it. Undo is Drop: a reservation gives its queues and its charge back.

mod book;
mod busy;
mod hold;
pub mod named;
mod reservation;
mod resume;
mod socket;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::oneshot;
use xsk_client::wire::{BindMode, Counters, EndReason, LeaseQueue, LeaseState, QueueLock, SocketKind};

use crate::agenda::Due;
use crate::device::Device;
use crate::identity::{Peer, Process, Requester};
use crate::journal::Entry;
use crate::kernel::link_events::LinkNow;
use crate::kernel::queue_lock::{Confinement, Retirement};
use crate::kernel::redirect::Redirect;
use crate::kernel::umem::Umem;
use crate::objection::Objection;
use crate::policy::Terms;

pub use book::Leases;
pub(crate) use book::amounts;
pub use reservation::Reservation;
pub use socket::LeasedSocket;

/// Names a lease; never used twice by one broker.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LeaseId(pub u64);

impl std::fmt::Display for LeaseId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

/// A lease.
#[derive(Debug)]
pub struct Lease {
    /// What the kernel holds for it, one for each queue. Dropped first; once the lease has ended, what is to be retired,
    /// and none before the broker has bound those of kind `bound`.
    pub sockets: Vec<LeasedSocket>,
    /// The memory of a lease of kind `bound`, until all of its sockets are bound.
    pub umem: Option<Umem>,
    /// What keeps its sockets from being bound to other queues, until none of them can be.
    pub confinement: Option<Confinement>,
    /// What is being done about sockets that were unbound when it ended.
    pub retirement: Option<Retirement>,
    /// Whether some of its sockets were bound when it ended: then the kernel may hold its queues.
    pub bound_at_end: bool,
    /// How far it has come.
    pub state: LeaseState,
    /// When it ends if it is not active.
    pub deadline: Instant,
    /// How long the last wait for its queues was.
    pub linger_wait: Duration,
    /// Whether a look at its bare sockets has failed, and was told.
    pub look_failed: bool,
    /// The requester's text, for the log and the list.
    pub label: Option<String>,
    /// Why the policy in force would not give it, if it would not.
    pub objection: Option<Objection>,
    /// Why and when it ended.
    pub ended: Option<(EndReason, Instant)>,
    /// Whether it ended with sockets that are unbound and out of reach: whoever has them may still bind them.
    pub abandoned: bool,
    /// What its sockets had counted when it ended.
    pub last_seen: Vec<LeaseQueue>,
    /// Tells whoever watches the holder that there is nothing to watch any more, by being dropped.
    pub watch: Option<oneshot::Sender<()>>,
    queue_lock: QueueLock,
    link: Option<LinkNow>,
    redirect: Redirect,
    holder: Arc<Process>,
    holder_uid: u32,
    reservation: Reservation,
    /// What is written down of it, for as long as there is anything of it.
    entry: Entry,
}

impl Lease {
    /// A lease whose sockets are about to be made. Its holder is the requester's process.
    pub fn new(
        mut reservation: Reservation,
        redirect: Redirect,
        queue_lock: QueueLock,
        watch: oneshot::Sender<()>,
        entry: Entry,
    ) -> Self {
        let deadline = Instant::now() + reservation.terms.activate_within();
        reservation.due.set(match reservation.terms.sockets() {
            SocketKind::Prepared | SocketKind::Bound => deadline,
            // It is looked at until its sockets are seen bound.
            SocketKind::Bare => Instant::now(),
        });
        Self {
            sockets: Vec::new(),
            umem: None,
            state: LeaseState::HandedOver,
            deadline,
            linger_wait: Duration::ZERO,
            look_failed: false,
            objection: None,
            ended: None,
            abandoned: false,
            last_seen: Vec::new(),
            label: None,
            queue_lock,
            confinement: None,
            retirement: None,
            bound_at_end: false,
            watch: Some(watch),
            link: None,
            redirect,
            holder: Arc::clone(reservation.holder()),
            holder_uid: reservation.requester().subject.uid,
            reservation,
            entry,
        }
    }

    /// Its number.
    pub fn id(&self) -> LeaseId {
        self.reservation.id
    }

    /// Gives its holder more time to activate it, if it has less.
    pub fn extend_until(&mut self, deadline: Instant) {
        if self.deadline < deadline {
            self.deadline = deadline;
            self.reservation.due.set(deadline);
        }
    }

    /// What was reserved for it.
    pub fn reservation(&self) -> &Reservation {
        &self.reservation
    }

    /// The terms that it was granted on.
    pub fn terms(&self) -> &Terms {
        &self.reservation.terms
    }

    /// The lock that was in force when its sockets left.
    pub fn queue_lock(&self) -> QueueLock {
        self.queue_lock
    }

    /// Its queues as they are now, or as they were when it ended.
    pub fn queues(&self) -> Vec<LeaseQueue> {
        match self.state {
            LeaseState::Ending | LeaseState::Lingering => self.last_seen.clone(),
            _ => self
                .terms()
                .queues()
                .iter()
                .map(|queue| self.seen(queue))
                .collect(),
        }
    }

    fn seen(&self, queue: u32) -> LeaseQueue {
        match self.sockets.iter().find(|leased| leased.queue == queue) {
            Some(leased) => leased.seen(),
            // The broker is still to bind it.
            None => LeaseQueue {
                queue,
                mode: None,
                socket_inode: None,
                counters: Counters::default(),
            },
        }
    }

    /// Its device, as it was when the lease began.
    pub fn device(&self) -> &Device {
        &self.reservation.device
    }

    /// The XDP program of its device.
    pub fn redirect(&self) -> &Redirect {
        &self.redirect
    }

    /// Who asked and is charged.
    pub fn requester(&self) -> &Requester {
        &self.reservation.requester
    }

    /// The process that it lives and dies with.
    pub fn holder(&self) -> &Process {
        &self.holder
    }

    /// The holder's uid when it connected.
    pub fn holder_uid(&self) -> u32 {
        self.holder_uid
    }

    /// Learns how its device is now: its name, whether it is up, its MTU.
    pub fn device_is_now(&mut self, now: LinkNow) {
        self.reservation.device.name = now.name.clone();
        self.link = Some(now);
    }

    /// How its device was last described by the kernel.
    pub fn link(&self) -> Option<&LinkNow> {
        self.link.as_ref()
    }

    /// Moves it to another process, which is told by `watch` when there is nothing to watch any more.
    pub fn move_to(&mut self, holder: Arc<Process>, uid: u32, watch: oneshot::Sender<()>) {
        self.holder = holder;
        self.holder_uid = uid;
        self.watch = Some(watch);
    }

    /// Whether no packet of its queues reaches its holder's memory: no slot is filled, and no zero-copy socket, to whose
    /// memory the device goes on writing without one (F43), may live on.
    pub fn rx_stopped(&self) -> bool {
        let zero_copy = |queue: &LeaseQueue| queue.mode == Some(BindMode::ZeroCopy);
        match self.state {
            LeaseState::Ending | LeaseState::Lingering => !self.last_seen.iter().any(zero_copy),
            _ => self.sockets.iter().all(|leased| leased.slot.is_none()),
        }
    }

    /// Whether a socket of it may still transmit (F18): no call takes that back.
    pub fn tx_may_continue(&self) -> bool {
        match (self.state, self.ended) {
            (LeaseState::Freed, Some((EndReason::DeviceGone, _))) => false,
            (LeaseState::Freed, _) => self.abandoned,
            _ => true,
        }
    }

    /// Whether this peer's process is its holder.
    pub fn is_held_by(&self, peer: &Peer) -> bool {
        self.holder().is(peer.process())
    }

    /// Whether it has not ended.
    pub fn is_live(&self) -> bool {
        matches!(
            self.state,
            LeaseState::Reserved | LeaseState::HandedOver | LeaseState::Active
        )
    }

    /// When something is to be done with it without anybody asking: it ends if it is not active by then, and if it lingers
    /// its queues are looked at.
    pub fn due(&mut self) -> &mut Due {
        &mut self.reservation.due
    }

    /// Time since it began.
    pub fn age(&self) -> Duration {
        self.reservation.since.elapsed()
    }
}
