//! One grant, top to bottom: read this first.
//!
//! [`acquire`]: the policy decides, the queues are reserved and charged for, the XDP program is attached if it is not
//! there yet, the sockets are made and handed over. The holder registers its memory and binds them. [`activate`]: only
//! now, when they are seen bound, are packets redirected to them.
//!
//! Why this order: a socket that is in the map and not bound swallows the packets of its queue, counted nowhere
//! (`xsk_rcv_check`, net/xdp/xsk.c). Each step's result is what the next one takes, so that no kernel object can be
//! made without a decision of the policy, and dropping it undoes the step.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use tokio::sync::oneshot;
use xsk_client::wire::{
    Acquire, Acquired, Activated, ActivatedSocket, BrokerError, GrantedSocket, InterfaceName, LeaseState,
    RingSizes,
};

use crate::audit::{Event, Line};
use crate::device::Device;
use crate::end::{self, Reason};
use crate::engine::{Engine, EngineHandle};
use crate::error::{Error, Failure, chain};
use crate::identity::Peer;
use crate::kernel::queue_probe::QueueUse;
use crate::kernel::redirect::{AttachError, Redirect};
use crate::kernel::xsk::Xsk;
use crate::lease::{Lease, LeaseId, LeasedSocket, Reservation};
use crate::policy::{Insert, Request, Verdict};
use crate::zero_copy;

/// A lease on its way to its holder: the reply and the fds that go with it.
///
/// Unless [`HandOver::delivered`] is called the lease ends, whatever the reason: a client that hung up, a deadline, a
/// full socket.
#[derive(Debug)]
#[must_use = "a lease that is not delivered ends"]
pub struct HandOver {
    /// What to answer.
    pub reply: Acquired,
    /// In the order of the reply's indexes.
    pub fds: Vec<OwnedFd>,
    lease: LeaseId,
    ended: Option<oneshot::Receiver<()>>,
    engine: EngineHandle,
}

impl HandOver {
    /// Whether the lease has ended before it could be delivered: by its deadline, or revoked.
    pub fn has_ended(&mut self) -> bool {
        matches!(
            self.ended.as_mut().map(oneshot::Receiver::try_recv),
            Some(Err(oneshot::error::TryRecvError::Closed))
        )
    }

    /// The number of the lease.
    pub fn lease(&self) -> LeaseId {
        self.lease
    }

    /// The client has the fds. Gives the lease, and what resolves when it has ended.
    pub fn delivered(mut self) -> Option<(LeaseId, oneshot::Receiver<()>)> {
        self.ended.take().map(|ended| (self.lease, ended))
    }
}

impl Drop for HandOver {
    fn drop(&mut self) {
        if self.ended.is_some() {
            let lease = self.lease;
            self.engine
                .post(move |engine| end::end(engine, lease, Reason::NotDelivered));
        }
    }
}

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
    // 1. Does a rule allow it, and on which terms?
    let rings = call.rings.unwrap_or_default();
    let request = Request {
        interface: call.interface,
        queues: call.queues,
        sockets: call.sockets,
        rings,
    };
    let terms = match engine.policy.decide(peer.subject(), &request) {
        Verdict::Granted(terms) => terms,
        Verdict::Refused(refusal) => return Err(refusal.to_wire().into()),
    };

    // 2. Is there such a device? Whoever has a rule for it may know.
    let device = Device::look_up(&request.interface)?.ok_or_else(|| no_device(&request.interface))?;

    // 3. Are the queues free, and is the requester within its limits? From here on they are its own.
    let reservation = engine.leases.reserve(terms, device, peer)?;

    // 4. The XDP program, if this is the device's first grant; then count the queues, which attaching may change.
    let (redirect, device) = redirect_for(engine, &reservation)?;
    check_queues(&reservation, &device)?;
    check_unused(engine, &reservation)?;
    zero_copy::check_device(&mut engine.probe, &reservation, redirect.mode())?;

    // 5. The sockets, confined as the terms say.
    let mut sockets = Vec::new();
    for queue in reservation.terms().queues().iter() {
        let socket = Xsk::prepared(&reservation, queue)
            .map_err(|failure| of_device(&reservation.device().name, failure))?;
        let slot = match reservation.terms().insert() {
            Insert::WhenBound => None,
            Insert::AtGrant => Some(redirect.insert(&socket)?),
        };
        sockets.push(LeasedSocket {
            slot,
            socket,
            mode: None,
        });
    }
    let fds = sockets
        .iter()
        .map(|leased| leased.socket.duplicate())
        .collect::<Result<Vec<_>, _>>()?;

    // 6. The lease begins; it ends by itself unless it is delivered, and unless it is activated in time.
    let reply = reply(&reservation, &redirect, rings);
    let (watch, ended) = oneshot::channel();
    let lease = Lease::new(reservation, redirect, sockets, call.label, watch);
    let id = lease.id();
    engine.audit.write(&Line::new(Event::Granted).lease(&lease));
    engine.leases.add(lease);
    Ok(HandOver {
        reply,
        fds,
        lease: id,
        ended: Some(ended),
        engine: handle.clone(),
    })
}

/// Does a holder's `Activate`: once more from any of its connections is fine.
///
/// # Errors
///
/// [`BrokerError::NotBound`]: the lease lives on. [`BrokerError::BoundElsewhere`], [`BrokerError::ModeNotAllowed`]: it has
/// been ended.
pub fn activate(engine: &mut Engine, peer: &Peer, id: LeaseId) -> Result<Activated, Error> {
    let lease = engine
        .leases
        .get_mut(id)
        .filter(|lease| lease.is_live() && lease.is_held_by(peer));
    let lease = lease.ok_or_else(|| end::no_such_lease(id))?;
    if lease.state == LeaseState::Active {
        return Ok(activated(lease));
    }

    for leased in &lease.sockets {
        if !leased.socket.is_bound()? {
            return Err(not_bound(lease, leased.socket.queue()).into());
        }
    }
    // Bound, but to what was granted? The kernel does not say where; but then the granted queue must be taken.
    for leased in &lease.sockets {
        let queue = leased.socket.queue();
        let in_use = engine
            .probe
            .queue_use(lease.device().index, queue)
            .map_err(|failure| of_device(&lease.device().name, failure))?;
        if in_use == QueueUse::Free {
            let error = bound_elsewhere(lease, queue);
            engine.audit.write(
                &Line::new(Event::RogueBind)
                    .lease(lease)
                    .message(&error.to_string()),
            );
            end::end(engine, id, Reason::RogueBind);
            return Err(error.into());
        }
    }

    for leased in &mut lease.sockets {
        leased.mode = Some(leased.socket.mode()?);
    }
    if let Some(error) = zero_copy::check_bound(lease) {
        engine.audit.write(
            &Line::new(Event::ModeNotAllowed)
                .lease(lease)
                .message(&error.to_string()),
        );
        end::end(engine, id, Reason::ModeNotAllowed);
        return Err(error.into());
    }
    let redirect = lease.redirect().clone();
    for leased in &mut lease.sockets {
        if leased.slot.is_none() {
            leased.slot = Some(redirect.insert(&leased.socket)?);
        }
    }
    lease.state = LeaseState::Active;
    lease.due = None;
    engine.audit.write(&Line::new(Event::Activated).lease(lease));
    Ok(activated(lease))
}

/// Writes down that an `Acquire` came to nothing.
pub fn refused(engine: &mut Engine, peer: &Peer, call: &Acquire, error: &Error) {
    let line = Line::new(event_of(error))
        .peer(peer)
        .target(&call.interface, &call.queues);
    engine
        .audit
        .write(&line.reason(reason_of(error)).message(&chain(error)));
}

/// The program on the reservation's device, attached now if it is not there yet; and the device as it is with it.
fn redirect_for(engine: &mut Engine, reservation: &Reservation) -> Result<(Redirect, Device), Error> {
    let device = reservation.device();
    if let Some(redirect) = engine.redirects.get(&device.index) {
        return Ok((redirect.clone(), device.clone()));
    }
    let link = device.link()?.ok_or_else(|| no_device(&device.name))?;
    if !reservation.terms().settings().uplink
        && let Some(role) = device.uplink_role(&link)?
    {
        return Err(uplink(&device.name, role).into());
    }
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
    let name = &device.name;
    match reservation.terms().queues().iter().find(|queue| *queue >= device.rx_queues) {
        Some(queue) => Err(BrokerError::NoSuchQueue {
            interface: name.clone(),
            queue,
            queues: device.rx_queues,
            message: format!(
                "{name} has no queue {queue}: it receives on {} queues now, counted from 0; `ethtool -L {name}` changes that, up to {}",
                device.rx_queues, device.max_queues,
            ),
        }
        .into()),
        None => Ok(()),
    }
}

/// Refuses queues that a socket of no lease is bound to: another program's, or one that outlived a broker. Its new holder
/// could not bind.
fn check_unused(engine: &mut Engine, reservation: &Reservation) -> Result<(), Error> {
    let device = reservation.device();
    for queue in reservation.terms().queues().iter() {
        let in_use = engine
            .probe
            .queue_use_untouched(device.index, queue)
            .map_err(|failure| of_device(&device.name, failure))?;
        if in_use == Some(QueueUse::Taken) {
            return Err(foreign_socket(&device.name, queue).into());
        }
    }
    Ok(())
}

fn reply(reservation: &Reservation, redirect: &Redirect, rings: RingSizes) -> Acquired {
    let (terms, device) = (reservation.terms(), reservation.device());
    Acquired {
        lease: reservation.id().0,
        interface: device.name.clone(),
        interface_index: device.index,
        rule: terms.rule().to_owned(),
        queue_lock: terms.settings().queue_lock.into(),
        xdp: redirect.mode(),
        zero_copy: terms.zero_copy(),
        rings,
        activate_within_ms: u64::try_from(terms.activate_within().as_millis()).unwrap_or(u64::MAX),
        sockets: (0..)
            .zip(terms.queues().iter())
            .map(|(index, queue)| GrantedSocket {
                queue,
                socket_file_descriptor: index,
            })
            .collect(),
    }
}

fn activated(lease: &Lease) -> Activated {
    let sockets = lease.sockets.iter().filter_map(|leased| {
        leased.mode.map(|mode| ActivatedSocket {
            queue: leased.socket.queue(),
            mode,
        })
    });
    Activated {
        lease: lease.id().0,
        sockets: sockets.collect(),
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

fn no_device(interface: &InterfaceName) -> BrokerError {
    let message = format!("there is no interface {interface} in the broker's network namespace now");
    BrokerError::DeviceUnavailable {
        interface: interface.clone(),
        message,
    }
}

fn uplink(interface: &InterfaceName, role: &str) -> BrokerError {
    let message = format!(
        "{interface} {role}: XDP there may cut the host off; the operator allows it with `uplink = true` under [interface.{interface}]"
    );
    BrokerError::DeviceUnavailable {
        interface: interface.clone(),
        message,
    }
}

fn foreign_socket(interface: &InterfaceName, queue: u32) -> BrokerError {
    let message = format!(
        "a socket that is of no lease is bound to queue {queue} of {interface}: another program's, or one that outlived a broker; it is free when that socket is gone"
    );
    BrokerError::QueueBusy {
        interface: interface.clone(),
        queue,
        retry_after_ms: Some(10),
        message,
    }
}

fn foreign_program(interface: &InterfaceName, program: Option<u32>) -> BrokerError {
    let program = program.map_or_else(
        || "another XDP program".into(),
        |id| format!("XDP program {id} (bpftool prog show id {id})"),
    );
    let message = format!(
        "{interface} has {program} attached, which is not the broker's; its owner must detach it first"
    );
    BrokerError::DeviceUnavailable {
        interface: interface.clone(),
        message,
    }
}

fn not_native(interface: &InterfaceName, cause: &std::io::Error) -> BrokerError {
    let message = format!(
        "{interface} takes no native XDP program ({cause}); the operator may write `xdp = \"auto\"` or \"generic\" under [interface.{interface}], or lower the device's MTU"
    );
    BrokerError::DeviceUnavailable {
        interface: interface.clone(),
        message,
    }
}

fn not_bound(lease: &Lease, queue: u32) -> BrokerError {
    let message = format!(
        "the socket for queue {queue} of {} is not bound yet: bind it, then activate again; lease {} goes on until its deadline",
        lease.device().name,
        lease.id(),
    );
    BrokerError::NotBound {
        lease: lease.id().0,
        queue,
        message,
    }
}

fn bound_elsewhere(lease: &Lease, queue: u32) -> BrokerError {
    let message = format!(
        "the socket for queue {queue} of {} was bound to something else; lease {} has been ended",
        lease.device().name,
        lease.id(),
    );
    BrokerError::BoundElsewhere {
        lease: lease.id().0,
        queue,
        message,
    }
}

fn event_of(error: &Error) -> Event {
    match error {
        Error::Refused(_) => Event::Refused,
        Error::Failed(_) => Event::Failed,
    }
}

fn reason_of(error: &Error) -> &'static str {
    match error {
        Error::Refused(BrokerError::Denied { .. }) => "denied",
        Error::Refused(BrokerError::QueueBusy { .. }) => "queue-busy",
        Error::Refused(BrokerError::QuotaExceeded { .. }) => "quota-exceeded",
        Error::Refused(BrokerError::NoSuchQueue { .. }) => "no-such-queue",
        Error::Refused(BrokerError::DeviceUnavailable { .. }) => "device-unavailable",
        Error::Refused(_) => "refused",
        Error::Failed(Failure::Kernel { .. }) => "kernel",
        Error::Failed(Failure::Xdp { .. }) => "xdp",
        Error::Failed(_) => "internal",
    }
}
