//! What to ask the broker for: queues, and in which state their sockets are wanted.

use crate::bind::Mode;
use crate::umem::UmemOptions;
use crate::wire::{Acquire, BusyPoll, Direction, RingSizes, SocketKind, Target};

/// What to ask the broker for.
#[derive(Debug, Clone)]
#[must_use]
pub struct Request(Acquire);

impl Request {
    /// Queues of a device, all or none: `"eth0:4".parse()` or `"eth0:2-4".parse()`.
    pub fn new(target: Target) -> Self {
        Self(Acquire::new(target, SocketKind::Prepared))
    }

    /// Queues of a device whose sockets the broker registers and binds (kind `bound`), over one umem of that shape: nothing
    /// is left of them that could be changed, they need no RLIMIT_MEMLOCK, and they can be had for one direction alone.
    /// From about Linux 6.4.
    ///
    /// ```no_run
    /// use xsk_client::wire::Direction;
    /// use xsk_client::{Broker, Grant, Request, UmemOptions};
    ///
    /// let mut broker = Broker::connect()?;
    /// let request = Request::bound("eth0:4".parse()?, &UmemOptions::new()).direction(Direction::Rx);
    /// let grant = Grant::acquire(&mut broker, request)?;
    /// let mut xsk = grant.bind_by_broker(&mut broker)?.one()?.activate(&mut broker)?;
    /// while xsk.wait(None)? {
    ///     println!("{} frames", xsk.receive(64)?.len());
    /// }
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn bound(target: Target, umem: &UmemOptions) -> Self {
        Self(Acquire {
            umem: Some(umem.shape()),
            ..Acquire::new(target, SocketKind::Bound)
        })
    }

    /// Which way frames go; both if not set. Less than that for sockets of kind `bound` only.
    pub fn direction(mut self, direction: Direction) -> Self {
        self.0.direction = Some(direction);
        self
    }

    /// In which mode the broker binds; for sockets of kind `bound`. What the rule requires, else copy, if not set.
    pub fn mode(mut self, mode: Mode) -> Self {
        self.0.mode = Some(mode.into());
        self
    }

    /// Has the sockets poll their device from their own system calls; Linux 5.11. More than the rule's `busy-poll-budget` is
    /// refused.
    pub fn busy_poll(mut self, busy_poll: BusyPoll) -> Self {
        self.0.busy_poll = Some(busy_poll);
        self
    }

    /// How large the rings are to be, in entries; 2048 each if not set. More than the rule's `ring-entries` is refused.
    pub fn rings(mut self, rings: RingSizes) -> Self {
        self.0.rings = Some(rings);
        self
    }

    /// In which state the sockets are wanted; [`SocketKind::Prepared`] if not set. Of kind `Bare` they are for programs
    /// that make the rings themselves; this library does so, too, when it binds them.
    pub fn kind(mut self, kind: SocketKind) -> Self {
        self.0.sockets = kind;
        self
    }

    /// A text for the broker's log and list; never authority.
    pub fn label(mut self, label: impl Into<String>) -> Self {
        self.0.label = Some(label.into());
        self
    }

    pub(crate) fn into_acquire(self) -> Acquire {
        self.0
    }
}
