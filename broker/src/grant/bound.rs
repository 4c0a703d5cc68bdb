//! Kind `bound`: the broker registers and binds, so that nothing is left for the holder to change.
//!
//! [`umem`] makes the memory, which the holder maps and touches, so that it is charged to its own cgroup. [`bind`] has
//! every socket registered, given the rings of its direction alone, and bound, before anybody else has an fd of it: from
//! then on the kernel refuses any change (`xsk_bind`, `xsk_setsockopt`, net/xdp/xsk.c: EBUSY). One umem serves all queues
//! of the lease.

use std::sync::Arc;
use std::time::{Duration, Instant};

use xsk_client::wire::{BindMode, BindReply, BoundSocket, BrokerError, ModeWish, SocketKind};

use super::refusals::{no_device, taken};
use super::{HandOver, HandOverReply, Made, check_queues, of_device};
use crate::audit::{Event, Line};
use crate::device::Device;
use crate::end;
use crate::engine::{Engine, EngineHandle};
use crate::error::{Error, Failure};
use crate::fail_point;
use crate::identity::Peer;
use crate::kernel::queue_lock::QueueLocks;
use crate::kernel::umem::{MakeError, RegisterError, Umem};
use crate::kernel::xsk::{BindError, Xsk};
use crate::lease::{Lease, LeaseId, LeasedSocket, Reservation};
use crate::objection;
use crate::policy::Insert;
use crate::unread::Unread;

/// Makes the memory of a new lease.
pub(super) fn umem(engine: &mut Engine, reservation: &Reservation) -> Result<Made, Error> {
    if engine.rings_can_be_mapped() == Some(false) {
        return Err(unsupported().into());
    }
    let Some(shape) = reservation.terms().umem() else {
        return Err(
            Failure::kernel("memfd_create", "a umem without a shape", rustix::io::Errno::INVAL).into(),
        );
    };
    let umem = Umem::new(reservation, shape).map_err(|error| match error {
        MakeError::NotWholePages { page_bytes } => not_whole_pages(shape.bytes(), page_bytes).into(),
        MakeError::Failed(failure) => Error::from(failure),
    })?;
    let fds = vec![umem.duplicate()?];
    Ok(Made {
        sockets: Vec::new(),
        umem: Some(umem),
        confinement: None,
        fds,
    })
}

/// How long a lease lives on at least whose queue could not be bound yet because of others.
const AFTER_OTHERS: Duration = Duration::from_secs(1);

/// Does a holder's `Bind`, once. What it binds before a queue is found busy stays bound, so that another try does the
/// rest.
///
/// # Errors
///
/// [`BrokerError::UmemNotPopulated`], [`BrokerError::QueueBusy`], [`BrokerError::ZeroCopyUnavailable`],
/// [`BrokerError::SocketKindUnsupported`], [`BrokerError::AlreadyBound`]; the lease lives on, until its deadline.
pub fn bind(engine: &mut Engine, handle: &EngineHandle, peer: &Peer, id: LeaseId) -> Result<HandOver, Error> {
    let accounts = engine.leases.accounts().clone();
    let lease = engine
        .leases
        .get_mut(id)
        .filter(|lease| lease.is_live() && lease.is_held_by(peer));
    let lease = lease.ok_or_else(|| end::no_such_lease(id))?;
    if lease.terms().sockets() != SocketKind::Bound {
        return Err(bound_by_holder(lease).into());
    }
    if lease.umem.is_none() {
        return Err(already_bound(lease).into());
    }
    let name = lease.device().name.clone();
    let device = Device::look_up(&name)?
        .filter(|device| device.index == lease.device().index)
        .ok_or_else(|| no_device(&name))?;
    check_queues(lease.reservation(), &device)?;
    let unread = Unread::charge(&accounts, peer.subject().uid, lease.terms().queues().len())?;

    let left: Vec<u32> = lease.terms().queues().iter().skip(lease.sockets.len()).collect();
    for queue in left {
        let socket = match bound_socket(lease, queue, &engine.locks) {
            Ok(socket) => socket,
            Err(error) => {
                // It is not its holder's fault that others' sockets are out unbound for so long.
                if is_taken(&error) && engine.locks.give_next_turn(device.index, queue, id) {
                    lease.extend_until(Instant::now() + AFTER_OTHERS);
                }
                return Err(error);
            }
        };
        // Only a socket that is bound can tell, so the first one of all does.
        let can_be_mapped = match engine.rings_can_be_mapped {
            Some(known) => known,
            None => socket.rings_can_be_mapped()?,
        };
        engine.rings_can_be_mapped = Some(can_be_mapped);
        if !can_be_mapped {
            return Err(unsupported().into());
        }
        let kept = engine.fd_store.keeper().keep_socket(id, &socket);
        let leased = socket_of(lease, socket)?.kept_by(kept);
        lease.sockets.push(leased);
    }
    engine.locks.end_turn(device.index, id);
    lease.umem = None;
    fail_point::pass("bind: bound");
    lease.write_down()?;
    fail_point::pass("bind: written down");

    let sockets = lease.sockets.iter().filter_map(|leased| leased.socket.as_ref());
    let fds = sockets.map(Xsk::duplicate).collect::<Result<Vec<_>, _>>()?;
    engine.audit.write(&Line::new(Event::Bound).lease(lease));
    let reply = reply(lease);
    objection::weigh(engine, id);
    Ok(HandOver {
        reply: HandOverReply::Bound(reply),
        fds,
        unread: Some(unread),
        stored: engine.fd_store.keeper().sent(),
        lease: id,
        holder: Arc::clone(peer.process()),
        is_delivered: false,
        ended: None,
        engine: handle.clone(),
    })
}

/// The socket of one queue: the first of the lease has the umem registered, the others share it.
fn bound_socket(lease: &Lease, queue: u32, locks: &QueueLocks) -> Result<Xsk, Error> {
    let device = lease.device();
    let socket = Xsk::new(lease.reservation(), queue).map_err(|failure| of_device(&device.name, failure))?;
    let first = lease.sockets.first().and_then(|leased| leased.socket.as_ref());
    let bound = match (first, &lease.umem) {
        (Some(first), _) => socket.bind_shared(device.index, first),
        (None, Some(umem)) => {
            umem.register(&socket).map_err(|error| match error {
                RegisterError::NotPopulated { bytes } => not_populated(lease, umem, bytes).into(),
                RegisterError::Failed(failure) => Error::from(failure),
            })?;
            socket.bind(device.index, lease.terms().mode())
        }
        (None, None) => return Err(already_bound(lease).into()),
    };
    bound.map_err(|error| match error {
        BindError::QueueTaken => taken(locks, device.index, &device.name, queue).into(),
        BindError::NoZeroCopy(cause) => no_zero_copy(lease, queue, &cause).into(),
        BindError::Failed(failure) => of_device(&device.name, failure),
    })?;
    Ok(socket)
}

fn is_taken(error: &Error) -> bool {
    matches!(error, Error::Refused(BrokerError::QueueBusy { .. }))
}

/// A bound socket as the lease keeps it.
fn socket_of(lease: &Lease, socket: Xsk) -> Result<LeasedSocket, Error> {
    let terms = lease.terms();
    let slot = match terms.insert() {
        Insert::AtGrant if terms.direction().receives() => Some(lease.redirect().insert(&socket)?),
        Insert::AtGrant | Insert::WhenBound => None,
    };
    let mode = Some(socket.mode()?);
    Ok(LeasedSocket::new(socket, slot, mode))
}

fn reply(lease: &Lease) -> BindReply {
    let sockets = (0..).zip(&lease.sockets).map(|(index, leased)| BoundSocket {
        queue: leased.queue,
        mode: leased.mode.unwrap_or(BindMode::Copy),
        socket_file_descriptor: index,
    });
    BindReply {
        lease: lease.id().0,
        sockets: sockets.collect(),
    }
}

/// What `Activate` is told before `Bind`.
pub(super) fn bind_first(lease: &Lease) -> BrokerError {
    let queue = lease.terms().queues().iter().next().unwrap_or_default();
    let message = format!(
        "lease {} is of kind bound, and nothing is bound yet: write to every page of the umem, then call Bind, then Activate",
        lease.id(),
    );
    BrokerError::NotBound {
        lease: lease.id().0,
        queue,
        message,
    }
}

fn not_whole_pages(umem_bytes: u64, page_bytes: u64) -> BrokerError {
    let message = format!(
        "a umem of {umem_bytes} bytes does not fill its pages of {page_bytes} bytes: ask for more chunks or fewer"
    );
    BrokerError::InvalidRequest { message }
}

fn bound_by_holder(lease: &Lease) -> BrokerError {
    let message = format!(
        "lease {} is of kind {}: its holder binds the sockets itself; Bind is for kind bound",
        lease.id(),
        lease.terms().sockets(),
    );
    BrokerError::InvalidRequest { message }
}

fn already_bound(lease: &Lease) -> BrokerError {
    let message = format!(
        "the sockets of lease {} were bound and handed over before; they leave the broker once, so that their rings have \
         one user: release the lease and acquire anew",
        lease.id(),
    );
    BrokerError::AlreadyBound {
        lease: lease.id().0,
        message,
    }
}

fn not_populated(lease: &Lease, umem: &Umem, populated_bytes: u64) -> BrokerError {
    let umem_bytes = umem.shape().bytes();
    let message = format!(
        "{populated_bytes} of {umem_bytes} bytes of the umem of lease {} are there: write to every page of it (mmap with \
         MAP_SHARED, then madvise with MADV_POPULATE_WRITE), so that they are charged to your own cgroup, and that the kernel keeps \
         them; then call Bind again",
        lease.id(),
    );
    BrokerError::UmemNotPopulated {
        lease: lease.id().0,
        populated_bytes,
        umem_bytes,
        message,
    }
}

fn no_zero_copy(lease: &Lease, queue: u32, cause: &std::io::Error) -> BrokerError {
    let interface = lease.device().name.clone();
    let message = format!(
        "{interface} gives no zero-copy on queue {queue} ({cause}); ask for mode {} or {}, if the rule allows it",
        ModeWish::ZeroCopyElseCopy,
        ModeWish::Copy,
    );
    BrokerError::ZeroCopyUnavailable {
        interface,
        queue,
        message,
    }
}

pub(super) fn unsupported() -> BrokerError {
    let message =
        "this kernel maps no rings of a socket that is bound (EBUSY; Linux before 6.4 or so), so sockets of \
                   kind bound cannot be used here; ask for kind prepared"
            .to_owned();
    BrokerError::SocketKindUnsupported {
        sockets: SocketKind::Bound,
        message,
    }
}
