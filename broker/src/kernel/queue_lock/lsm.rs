//! The queue lock as BPF LSM programs: the kernel asks them at each bind and each socket option, and they refuse whatever a
//! socket that left the broker unbound was not granted (`xdp-ebpf/program/src/bin/xsk_queue_lock.rs`).
//!
//! Each such socket has a permit in the kernel's own storage for sockets, which counts for as long as its lease's ticket
//! does. **Invariants**: a permit is set before anybody else has the socket, and never taken away again; a ticket that
//! ended never counts again; while a ticket stands in the map, sockets of it may still be unbound, and the programs stay
//! in force, whatever becomes of the broker: they are pinned, and are let go of only when no ticket is left.

mod in_force;
mod kernel_types;
mod load;
mod pins;

use std::os::fd::{AsFd, AsRawFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use aya::maps::{HashMap, MapData, MapError, SkStorage};
use aya::programs::links::PinnedLink;
use xdp_ebpf::queue_lock::{COUNTS, ENDED, Permit, Ticket};
use xsk_client::sys::BindFlags;
use xsk_client::wire::{SocketKind, ZeroCopy};

use super::scratch::ScratchDevice;
use crate::error::{Failure, chain};
use crate::kernel::xsk::Xsk;
use crate::lease::Reservation;
use pins::Pins;

pub use load::{NotInForce, is_left_in, is_pin, take_down_left};

/// The programs, loaded, attached, and seen to be in force. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Lsm(Arc<Loaded>);

#[derive(Debug)]
struct Loaded {
    /// Of all tickets that this broker gives.
    broker: u64,
    last: AtomicU64,
    sockets: Mutex<SkStorage<MapData, [u64; 4]>>,
    leases: Mutex<HashMap<MapData, [u64; 2], u32>>,
    pins: Pins,
    _links: [PinnedLink; 2],
}

/// The number of the ticket that is the broker's own: it counts for as long as the broker runs.
const OWN: u64 = 0;

/// Options of SOL_XDP (include/uapi/linux/if_xdp.h), each as its bit in a permit.
const UMEM_REG: u32 = 1 << 4;
const RINGS: u32 = 1 << 2 | 1 << 3 | 1 << 5 | 1 << 6;

impl Lsm {
    /// A ticket for a new lease.
    ///
    /// # Errors
    ///
    /// What bpf(2) says; E2BIG where 65536 leases have sockets that may be unbound.
    pub(super) fn issue(&self) -> Result<Leash, Failure> {
        let ticket = self.0.ticket(self.0.last.fetch_add(1, Ordering::Relaxed) + 1);
        self.0
            .leases()
            .insert(<[u64; 2]>::from(ticket), COUNTS, 0)
            .map_err(|error| failed("BPF_MAP_UPDATE_ELEM", "the ticket of a lease", error))?;
        Ok(Leash {
            lsm: self.clone(),
            ticket,
            settled: false,
        })
    }

    /// The leash of sockets that another broker has handed out, by the permits that they have.
    ///
    /// # Errors
    ///
    /// What bpf(2) says; ENOENT where they have no permit of one lease.
    pub(super) fn resume<'s>(&self, sockets: impl Iterator<Item = &'s Xsk>) -> Result<Leash, Failure> {
        let permits = self.0.sockets();
        let mut ticket = None;
        for socket in sockets {
            let [broker, number, ..] = permits
                .get(&socket.as_fd(), 0)
                .map_err(|error| failed("BPF_MAP_LOOKUP_ELEM", "the permit of a socket", error))?;
            let found = Ticket { broker, number };
            // The broker's own it has where it was about to be retired.
            if number == OWN || *ticket.get_or_insert(found) != found {
                return Err(no_permit());
            }
        }
        drop(permits);
        Ok(Leash {
            lsm: self.clone(),
            ticket: ticket.ok_or_else(no_permit)?,
            settled: false,
        })
    }

    /// Forgets the ticket of a lease of another broker by its sockets, which are bound. Usually it was forgotten by that one.
    pub(super) fn forget<'s>(&self, mut sockets: impl Iterator<Item = &'s Xsk>) {
        let Some(socket) = sockets.next() else { return };
        // Without a permit it left under another lock.
        let Ok([broker, number, ..]) = self.0.sockets().get(&socket.as_fd(), 0) else {
            return;
        };
        if number == OWN {
            return;
        }
        let removed = self.0.leases().remove(&[broker, number]);
        let is_gone = |error: &MapError| match error {
            MapError::SyscallError(error) => error.io_error.raw_os_error() == Some(libc::ENOENT),
            error => matches!(error, MapError::KeyNotFound),
        };
        if let Err(error) = removed.or_else(|error| if is_gone(&error) { Ok(()) } else { Err(error) }) {
            tracing::error!(%error, "cannot forget the ticket of a lease that was taken over");
        }
    }

    /// Ends the tickets of all other brokers: where nothing is at hand by which any could be resumed, before anybody can ask
    /// for anything. How many there are is told once leases were taken over.
    pub fn end_all_others(&self) {
        self.end_all_but(&[]);
    }

    /// Ends the tickets of all other brokers but these, of which as many may have sockets that are still unbound.
    pub(super) fn end_others<'l>(&self, resumed: impl Iterator<Item = &'l Leash>) {
        let resumed: Vec<Ticket> = resumed.map(|leash| leash.ticket).collect();
        let left = self.end_all_but(&resumed);
        if left > 0 {
            tracing::warn!(
                "sockets of {left} leases of brokers before this one may still be unbound: they can be bound to nothing"
            );
        }
    }

    /// How many were not resumed.
    fn end_all_but(&self, resumed: &[Ticket]) -> usize {
        match self.0.end_all_but(resumed) {
            Ok(left) => left,
            Err(error) => {
                tracing::error!(
                    error = chain(&error),
                    "cannot end what a broker before has handed out"
                );
                0
            }
        }
    }

    /// Has a socket whose lease has ended be bound to one queue of a scratch device, and to nothing else.
    ///
    /// # Errors
    ///
    /// What bpf(2) says; it can be bound to nothing then.
    pub(super) fn permit_retirement(
        &self,
        socket: &impl AsRawFd,
        device: &ScratchDevice,
        queue: u32,
    ) -> Result<(), Failure> {
        self.0.permit(
            socket,
            Permit {
                ticket: self.0.ticket(OWN),
                interface_index: device.index(),
                queue,
                required_flags: 0,
                refused_flags: 0,
                options: UMEM_REG | RINGS,
            },
        )
    }
}

impl Loaded {
    fn ticket(&self, number: u64) -> Ticket {
        Ticket {
            broker: self.broker,
            number,
        }
    }

    fn permit(&self, socket: &impl AsRawFd, permit: Permit) -> Result<(), Failure> {
        self.sockets()
            .insert(socket, <[u64; 4]>::from(permit), 0)
            .map_err(|error| failed("BPF_MAP_UPDATE_ELEM", "the permit of a socket", error))
    }

    fn sockets(&self) -> MutexGuard<'_, SkStorage<MapData, [u64; 4]>> {
        self.sockets.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn leases(&self) -> MutexGuard<'_, HashMap<MapData, [u64; 2], u32>> {
        self.leases.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Loaded {
    fn drop(&mut self) {
        let own = <[u64; 2]>::from(self.ticket(OWN));
        let mut leases = self.leases();
        let removed = leases.remove(&own);
        let is_empty = leases.keys().next().is_none();
        drop(leases);
        match removed {
            Ok(()) if is_empty => self.pins.remove_all(),
            Ok(()) => tracing::warn!(
                "sockets that were handed out may still be unbound: the queue lock stays in force without the broker"
            ),
            Err(error) => tracing::warn!(%error, "the queue lock stays in force without the broker"),
        }
    }
}

/// What the sockets of a lease may be bound to, from before they leave the broker. Dropped, it has ended.
#[derive(Debug)]
#[must_use = "dropped, its sockets can be bound to nothing"]
pub struct Leash {
    lsm: Lsm,
    ticket: Ticket,
    settled: bool,
}

impl Leash {
    /// Permits a socket what it was granted, before anybody else has it.
    ///
    /// Memory of other sockets is its holder's to share (XDP_SHARED_UMEM): device and queue are those of the permit all
    /// the same. Where zero-copy is forbidden it is refused, since the mode is the other socket's then, and which that is
    /// an fd says that may be another one when the kernel looks.
    ///
    /// # Errors
    ///
    /// What bpf(2) says. The socket must not leave then.
    pub(super) fn permit(&self, reservation: &Reservation, socket: &Xsk) -> Result<(), Failure> {
        let terms = reservation.terms();
        let (required, refused) = match terms.zero_copy() {
            ZeroCopy::Forbidden => (
                BindFlags::XDP_COPY,
                BindFlags::XDP_ZEROCOPY | BindFlags::XDP_SHARED_UMEM,
            ),
            ZeroCopy::Allowed | ZeroCopy::Required => (BindFlags::empty(), BindFlags::empty()),
        };
        let options = match terms.sockets() {
            SocketKind::Bare => UMEM_REG | RINGS,
            SocketKind::Prepared => UMEM_REG,
            // It is never unbound anywhere else.
            SocketKind::Bound => 0,
        };
        self.lsm.0.permit(
            &socket.as_fd(),
            Permit {
                ticket: self.ticket,
                interface_index: reservation.device().index,
                queue: socket.queue(),
                required_flags: required.bits(),
                refused_flags: refused.bits(),
                options,
            },
        )
    }

    /// From here on nothing of the lease can be bound.
    pub(super) fn end(&self) {
        let (mut leases, key) = (self.lsm.0.leases(), <[u64; 2]>::from(self.ticket));
        // An update takes memory; without any, forgetting the ticket does the same, but for what is said at the top.
        let ended = match leases.insert(key, ENDED, 0) {
            Ok(()) => return,
            Err(error) => error,
        };
        tracing::error!(error = %ended, "cannot write down that the sockets of an ended lease may be unbound");
        if let Err(error) = leases.remove(&key) {
            tracing::error!(%error, "the sockets of an ended lease can still be bound to its queues");
        }
    }

    /// None of the lease's sockets is unbound any more, or can be bound to anything.
    pub(super) fn settle(mut self) {
        let key = <[u64; 2]>::from(self.ticket);
        let removed = self.lsm.0.leases().remove(&key);
        match removed {
            Ok(()) => self.settled = true,
            Err(error) => tracing::error!(%error, "cannot forget the ticket of a lease"),
        }
    }
}

impl Drop for Leash {
    fn drop(&mut self) {
        if !self.settled {
            self.end();
        }
    }
}

fn no_permit() -> Failure {
    Failure::kernel(
        "BPF_MAP_LOOKUP_ELEM",
        "the permits of a lease's sockets",
        rustix::io::Errno::NOENT,
    )
}

fn failed(call: &'static str, object: &str, error: MapError) -> Failure {
    Failure::kernel(call, object, std::io::Error::other(error))
}
