//! One grant, top to bottom: read this first.
//!
//! [`acquire`]: the policy decides, the queues are reserved and charged for, the XDP program is attached if it is not
//! there yet, the sockets are made and handed over. The holder registers its memory and binds them; or, for the kind
//! `bound`, it is given memory to touch first, and [`bind`] does both. [`activate`]: only now, when they are seen bound,
//! are packets redirected to them.
//!
//! Why this order: a socket that is in the map and not bound swallows the packets of its queue, counted nowhere
//! (`xsk_rcv_check`, net/xdp/xsk.c). A holder of `bare` sockets, as QEMU is one, knows nothing of leases: for that kind
//! [`bare::look`] does the second half, by itself. Each step's result is what the next one takes, so that no kernel
//! object can be made without a decision of the policy, and dropping it undoes the step.

mod activate;
pub mod bare;
mod bound;
mod hand_over;
mod outlook;
mod refusals;

use std::os::fd::OwnedFd;
use std::sync::Arc;

use tokio::sync::oneshot;
use xsk_client::wire::{Acquire, Acquired, Change, GrantedSocket, InterfaceName, QueueLock, SocketKind};

use crate::audit::{Event, Line};
use crate::device::Device;
use crate::engine::{Engine, EngineHandle};
use crate::error::{Error, Failure, chain};
use crate::fail_point;
use crate::identity::Peer;
use crate::kernel::queue_lock::{Confinement, Unconfined};
use crate::kernel::queue_probe::QueueUse;
use crate::kernel::redirect::{AttachError, Redirect};
use crate::kernel::umem::Umem;
use crate::kernel::xsk::Xsk;
use crate::lease::{Lease, LeasedSocket, Reservation};
use crate::policy::{Insert, Request, Terms, Verdict};
use crate::unread::Unread;
use crate::{transfer, zero_copy};

pub use activate::activate;
pub use bound::bind;
pub use hand_over::{HandOver, HandOverReply};
pub use outlook::{AUDIT_LOG, LEFT_UNBOUND, LIMITS, outlook};
use refusals::{
    beyond_map, foreign_program, no_device, no_lock, no_such_queue, not_native, taken, unconfined,
};

/// Does a peer's `Acquire`. Whoever calls it has a refusal written down with [`refused`], once it is final.
///
/// # Errors
///
/// [`Error::Refused`] by the policy, a limit, a busy queue or the device; [`Error::Failed`] for anything of ours.
/// Nothing is held then.
pub fn acquire(
    engine: &mut Engine,
    handle: &EngineHandle,
    peer: &Arc<Peer>,
    call: Acquire,
) -> Result<HandOver, Error> {
    if engine.stopping {
        return Err(Failure::EngineStopped.into());
    }
    // It may have died while others had their turns.
    if peer.process().has_exited() {
        return Err(transfer::gone(peer.process()).into());
    }
    // 1. Does a rule allow it, and on which terms?
    let label = call.label.clone();
    let request = Request::from(call);
    let terms = match engine.policy.decide(peer.subject(), &request) {
        Verdict::Granted(terms) => terms,
        Verdict::Refused(refusal) => return Err(refusal.to_wire().into()),
    };

    // Nobody is to hold what could not be written down.
    engine.audit.check_room(peer.subject().uid)?;

    // 2. Is there such a device, and the lock that the policy wants there? Whoever has a rule for it may know.
    let device = Device::look_up(&request.interface)?.ok_or_else(|| no_device(&request.interface))?;
    let setting = terms.settings().queue_lock;
    let lock = match engine.locks.in_force(setting) {
        Ok(lock) => lock,
        // What is bound when it leaves needs none.
        Err(_) if terms.sockets() == SocketKind::Bound => QueueLock::None,
        Err(reason) => return Err(no_lock(&device.name, setting, &reason).into()),
    };

    // 3. Are the queues free, and is the requester within its limits? From here on they are its own.
    let mut reservation = engine.leases.reserve(terms, device, peer)?;
    let is_named = |gid| engine.policy.names_group(gid);
    reservation.requester_mut().keep_groups(is_named);
    let fds = sockets_at_once(reservation.terms()).max(1);
    let unread = Unread::charge(engine.leases.accounts(), peer.subject().uid, fds)?;

    // 4. The XDP program, if this is the device's first grant; then count the queues, which attaching may change.
    let (redirect, device) = redirect_for(engine, &reservation)?;
    check_queues(&reservation, &device)?;
    check_map(&reservation, &redirect)?;
    if reservation.terms().sockets() != SocketKind::Bound {
        let unheld = match lock {
            QueueLock::Placeholders => engine.leases.unheld(device.index),
            QueueLock::Lsm | QueueLock::None => Vec::new(),
        };
        if !unheld.is_empty() {
            let (name, queues) = (&device.name, reservation.terms().queues());
            return Err(unconfined(name, queues, Unconfined::Unheld(unheld)));
        }
        engine
            .locks
            .could_confine(lock, &reservation, &device, &mut engine.probe)
            .map_err(|reason| unconfined(&device.name, reservation.terms().queues(), reason))?;
    }
    check_unused(engine, &reservation)?;
    zero_copy::check_device(&mut engine.probe, &reservation, redirect.mode(), lock)?;

    // 5. The lease begins, and is written down before there is anything of it, for a broker after this one.
    let reply = reply(&reservation, &redirect, lock);
    let (watch, ended) = oneshot::channel();
    let entry = engine.journal.begin(reservation.id())?;
    let mut lease = Lease::new(reservation, redirect, lock, watch, entry);
    lease.label = label;
    if let Some(now) = engine.links.get(lease.device().index) {
        lease.device_is_now(now.clone());
    }
    fail_point::pass("acquire: reserved");
    lease.write_down()?;
    fail_point::pass("acquire: written down");

    // 6. What the holder gets, by the kind of its sockets: confined as the terms say.
    let made = match lease.terms().sockets() {
        SocketKind::Prepared | SocketKind::Bare => unbound(engine, &lease, &device, lock)?,
        SocketKind::Bound => bound::umem(engine, lease.reservation())?,
    };
    let fds = made.fds;
    (lease.sockets, lease.umem, lease.confinement) = (made.sockets, made.umem, made.confinement);
    fail_point::pass("acquire: sockets made");
    if lease.sockets.iter().any(|leased| leased.slot.is_some()) {
        lease.write_down()?;
    }

    // 7. It ends by itself unless it is delivered, and unless it is activated in time.
    let id = lease.id();
    engine.audit.write(&Line::new(Event::Granted).lease(&lease));
    engine.monitors.publish(&lease, Change::State);
    engine.leases.add(lease);
    fail_point::pass("acquire: granted");
    Ok(HandOver {
        reply: HandOverReply::Acquired(reply),
        fds,
        unread: Some(unread),
        stored: engine.fd_store.keeper().sent(),
        lease: id,
        holder: Arc::clone(peer.process()),
        is_delivered: false,
        ended: Some(ended),
        engine: handle.clone(),
    })
}

/// What was made for a lease.
struct Made {
    sockets: Vec<LeasedSocket>,
    umem: Option<Umem>,
    /// What keeps them from being bound elsewhere.
    confinement: Option<Confinement>,
    /// To be handed over.
    fds: Vec<OwnedFd>,
}

/// Kinds `prepared` and `bare`: unbound sockets, the former with their rings.
fn unbound(engine: &mut Engine, lease: &Lease, device: &Device, lock: QueueLock) -> Result<Made, Error> {
    let (reservation, redirect) = (lease.reservation(), lease.redirect());
    // From before they leave until they cannot be bound to other queues any more.
    let confinement = engine
        .locks
        .confine(lock, reservation, device)
        .map_err(|reason| unconfined(&device.name, reservation.terms().queues(), reason))?;
    let (mut sockets, mut fds) = (Vec::new(), Vec::new());
    for queue in reservation.terms().queues().iter() {
        let socket = match reservation.terms().sockets() {
            SocketKind::Bare => Xsk::bare(reservation, queue),
            SocketKind::Prepared | SocketKind::Bound => Xsk::new(reservation, queue),
        };
        let socket = socket.map_err(|failure| of_device(&reservation.device().name, failure))?;
        confinement.permit(reservation, &socket)?;
        let slot = match reservation.terms().insert() {
            Insert::WhenBound => None,
            Insert::AtGrant => Some(
                redirect
                    .insert(&socket)
                    .map_err(|failure| bare::at_grant(reservation, failure))?,
            ),
        };
        fds.push(socket.duplicate()?);
        let kept = engine.fd_store.keeper().keep_socket(reservation.id(), &socket);
        sockets.push(LeasedSocket::new(socket, slot, None).kept_by(kept));
    }
    Ok(Made {
        sockets,
        umem: None,
        confinement: Some(confinement),
        fds,
    })
}

/// Writes down that an `Acquire` came to nothing.
pub fn refused(engine: &mut Engine, peer: &Peer, call: &Acquire, error: &Error) {
    let line = Line::new(refusals::event_of(error))
        .peer(peer)
        .target(&call.interface, &call.queues);
    engine
        .audit
        .write(&line.reason(refusals::reason_of(error)).message(&chain(error)));
}

/// The program on the reservation's device, attached now if it is not there yet; and the device as it is with it.
fn redirect_for(engine: &mut Engine, reservation: &Reservation) -> Result<(Redirect, Device), Error> {
    let device = reservation.device();
    if let Some(redirect) = engine.redirects.get(&device.index) {
        engine.misfits.check(device)?;
        // A device may have become an uplink since its program was attached.
        engine.uplinks.check(device, reservation.terms().settings())?;
        return Ok((redirect.clone(), device.clone()));
    }
    let link = device.link()?.ok_or_else(|| no_device(&device.name))?;
    engine.uplinks.check(device, reservation.terms().settings())?;
    fail_point::pass("acquire: nothing attached");
    let redirect = Redirect::attach(reservation, &link, &engine.pins).map_err(|error| match error {
        AttachError::Foreign(program) => foreign_program(&device.name, program).into(),
        AttachError::NotNative(cause) => not_native(&device.name, &cause).into(),
        AttachError::Failed(failure) => of_device(&device.name, failure),
    })?;
    engine
        .audit
        .write(&Line::new(Event::Attached).device(&device.name, redirect.mode()));
    engine.redirects.insert(device.index, redirect.clone());
    let device = Device::look_up(&device.name)?.ok_or_else(|| no_device(&device.name))?;
    Ok((redirect, device))
}

/// Refuses queues that the device does not have, or not now.
fn check_queues(reservation: &Reservation, device: &Device) -> Result<(), Error> {
    match first_beyond(reservation.terms(), device.rx_queues) {
        Some(queue) => Err(no_such_queue(device, queue).into()),
        None => Ok(()),
    }
}

/// Refuses queues beyond the map of a program that another broker has attached, when the device could have fewer.
fn check_map(reservation: &Reservation, redirect: &Redirect) -> Result<(), Error> {
    match first_beyond(reservation.terms(), redirect.queues()) {
        Some(queue) => Err(beyond_map(&reservation.device().name, queue, redirect.queues()).into()),
        None => Ok(()),
    }
}

/// The first queue that is not among so many.
fn first_beyond(terms: &Terms, queues: u32) -> Option<u32> {
    terms.queues().iter().find(|queue| *queue >= queues)
}

/// Refuses queues that some socket is bound to though no lease has them: a placeholder, another program's, one that outlived
/// a broker. Its new holder could not bind.
fn check_unused(engine: &mut Engine, reservation: &Reservation) -> Result<(), Error> {
    let device = reservation.device();
    for queue in reservation.terms().queues().iter() {
        let in_use = engine
            .probe
            .queue_use_untouched(device.index, queue)
            .map_err(|failure| of_device(&device.name, failure))?;
        if in_use == Some(QueueUse::Taken) {
            return Err(taken(&engine.locks, device.index, &device.name, queue).into());
        }
    }
    Ok(())
}

fn reply(reservation: &Reservation, redirect: &Redirect, lock: QueueLock) -> Acquired {
    let (terms, device) = (reservation.terms(), reservation.device());
    Acquired {
        lease: reservation.id().0,
        interface: device.name.clone(),
        interface_index: device.index,
        rule: terms.rule().to_owned(),
        kind: terms.sockets(),
        direction: terms.direction(),
        queue_lock: lock,
        xdp: redirect.mode(),
        zero_copy: terms.zero_copy(),
        rings: terms.rings(),
        activate_within_ms: u64::try_from(terms.activate_within().as_millis()).unwrap_or(u64::MAX),
        umem: terms.umem(),
        umem_file_descriptor: terms.umem().map(|_| 0),
        sockets: (0..)
            .zip(terms.queues().iter().take(sockets_at_once(terms)))
            .map(|(index, queue)| GrantedSocket {
                queue,
                socket_file_descriptor: index,
            })
            .collect(),
    }
}

/// How many sockets go with the reply to `Acquire`. Those of kind `bound` come later; the umem comes in their place.
fn sockets_at_once(terms: &Terms) -> usize {
    match terms.sockets() {
        SocketKind::Prepared | SocketKind::Bare => terms.queues().len(),
        SocketKind::Bound => 0,
    }
}

/// A device may go at any moment: then the failure is not ours, though the news of it is still on its way.
pub(crate) fn of_device(interface: &InterfaceName, failure: Failure) -> Error {
    if failure.is_no_device() {
        no_device(interface).into()
    } else {
        failure.into()
    }
}
