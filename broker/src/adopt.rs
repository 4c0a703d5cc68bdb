//! Taking over what a broker before this one has left: the engine's first work, before it does anything for anybody.
//!
//! Links and maps are what they were, so that packets go on all the while. Then every slot that is of no lease is emptied,
//! and leases end whose holder or socket is gone.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::oneshot;
use xsk_client::wire::{LeaseState, SocketKind};

use crate::audit::{Event, Line};
use crate::device::Device;
use crate::end::{self, Reason};
use crate::engine::Engine;
use crate::error::{Failure, chain};
use crate::fd_store::Name;
use crate::heritage::{self, Fate, Heritage};
use crate::identity::Process;
use crate::kernel::origin;
use crate::kernel::pinned::PinnedProgram;
use crate::kernel::queue_lock::{NotNow, Unconfined};
use crate::kernel::queue_probe::QueueUse;
use crate::kernel::redirect::{Redirect, Takeover};
use crate::lease::{Lease, LeaseId, LeasedSocket};
use crate::misfit;
use crate::record::{Record, RecordedSocket, Stage};
use crate::reload;

/// A lease that goes on, and has to be watched from now on.
#[derive(Debug)]
pub struct Adopted {
    /// Which.
    pub lease: LeaseId,
    /// Its holder.
    pub holder: Arc<Process>,
    /// Resolves when it has ended.
    pub ended: oneshot::Receiver<()>,
}

/// Takes it over. What cannot be is told, and is in nobody's way.
pub fn take_over(engine: &mut Engine, heritage: Heritage) -> Vec<Adopted> {
    engine.leases.number_after(LeaseId(heritage.last_lease));
    refuse(engine, &heritage);
    take_down(engine, &heritage);
    for (device, program) in heritage.devices {
        take_program(engine, &device, program);
    }
    let mut adopted = Vec::new();
    let mut ends = Vec::new();
    let mut left = Vec::new();
    for (record, fate) in heritage.leases {
        tell(&record, &fate);
        match resume(engine, &record, fate) {
            Resumed::GoesOn(lease) => adopted.push(lease),
            Resumed::Ends(lease, reason) => ends.push((lease, reason)),
            Resumed::Lingers => {}
            Resumed::Elsewhere => left.push((record.lease, record.interface_index)),
            Resumed::Gone(reason) => {
                engine.journal.remove(heritage::id(&record));
                let line = Line::new(Event::Ended).record(&record);
                engine.audit.write(&line.reason(&end::word(reason)));
                engine.audit.write(&Line::new(Event::Freed).record(&record));
            }
        }
    }
    engine.fd_store.remove_others(|name| match name {
        Name::Socket { lease, .. } => left.iter().any(|(it, _)| it == lease),
        Name::Placeholder { interface_index, .. } => left.iter().any(|(_, index)| index == interface_index),
    });
    let confined = engine
        .leases
        .iter()
        .filter_map(|lease| lease.confinement.as_ref());
    engine.locks.end_others(confined);
    empty_slots(engine);
    for (lease, reason) in ends {
        end::end(engine, lease, reason);
    }
    for lease in engine.leases.ids(|lease| lease.state == LeaseState::Ending) {
        end::go_on(engine, lease);
    }
    for lease in engine.leases.ids(|lease| lease.state == LeaseState::Active) {
        match has_sockets(engine, lease) {
            Ok(true) => {}
            Ok(false) => {
                tracing::info!(
                    lease = lease.0,
                    "ends: no socket is bound to one of its queues any more"
                );
                end::end(engine, lease, Reason::Restarted);
            }
            Err(failure) => tracing::warn!(
                lease = lease.0,
                "cannot see whether its sockets are there: {}",
                chain(&failure)
            ),
        }
    }
    reload::weigh_all(engine);
    misfit::tell_all(engine);
    if !adopted.is_empty() {
        let devices = engine.redirects.len();
        tracing::info!("took over leases: {}, devices: {devices}", adopted.len());
    }
    adopted
}

/// Sets aside what is not believed, and tells of it.
fn refuse(engine: &Engine, heritage: &Heritage) {
    for refused in &heritage.refused {
        // Before its slots are emptied: repaired later, it would be taken over without them.
        let aside = match engine.journal.set_aside(&refused.file) {
            Ok(()) => Record::aside(&refused.file),
            Err(failure) => {
                tracing::error!("a record that is refused keeps its name: {}", chain(&failure));
                refused.file.clone()
            }
        };
        tracing::error!(
            "{refused}: the lease is not taken over, its packets go to the host; the file stays for you to look at, and is of no \
             more use then: `rm {}`",
            engine.journal.path_of(&aside).display()
        );
        let line = Line::new(Event::RecordRefused);
        engine.audit.write(&line.message(&refused.to_string()));
    }
    for what in &heritage.foreign {
        tracing::warn!("{}: {what}: left as it is", engine.pins.path().display());
    }
    for (interface, queue) in &heritage.strays {
        let message = format!(
            "queue {queue}: a socket is in its slot, and no record says whose, or none that is believed: the slot is emptied, its \
             packets go to the host"
        );
        tracing::warn!(%interface, "{message}");
        let line = Line::new(Event::SlotEmptied).target(interface, queue);
        engine.audit.write(&line.message(&message));
    }
}

/// Takes down what is of no use.
fn take_down(engine: &Engine, heritage: &Heritage) {
    for (index, why) in &heritage.useless {
        let name = heritage.names.get(index).map(ToString::to_string);
        let name = name.unwrap_or_else(|| format!("ifindex {index}"));
        match engine.pins.take_down(*index) {
            Ok(()) => tracing::warn!("{name}: took down what another broker had left: {why}"),
            Err(failure) => tracing::error!("{name}: {}", chain(&failure)),
        }
    }
}

/// Takes over the program of a device, with the maps that it uses.
fn take_program(engine: &mut Engine, device: &Device, program: PinnedProgram) {
    let name = &device.name;
    let (redirect, takeover) = match Redirect::take_over(program, name, &engine.pins) {
        Ok(taken) => taken,
        Err(failure) => {
            tracing::error!(interface = %name, "cannot take over the XDP program: {}", chain(&failure));
            return;
        }
    };
    match takeover {
        Takeover::Same => {}
        Takeover::Updated { from, to } => {
            let message = format!("tag {to:016x} in place of {from:016x}");
            tracing::info!(interface = %name, "the XDP program is this broker's now: {message}");
            let line = Line::new(Event::ProgramUpdated).device(name, redirect.mode());
            engine.audit.write(&line.message(&message));
        }
        Takeover::Kept(why) => tracing::warn!(
            interface = %name,
            "the XDP program of the broker before goes on: {why}. Once no lease of the device is left, stop the broker \
             and start it again: the next grant attaches this broker's"
        ),
    }
    if redirect.queues() < device.max_queues {
        tracing::warn!(
            interface = %name,
            "the map of the XDP program has room for {} queues, and the device can have {}: those beyond are not granted \
             until the program is attached anew, once no lease of the device is left and the broker is restarted",
            redirect.queues(),
            device.max_queues,
        );
    }
    engine.redirects.insert(device.index, redirect);
}

/// No lease goes without a word. What its holder did not end is a warning.
fn tell(record: &Record, fate: &Fate) {
    let lease = format!(
        "lease {} of {}:{}, holder pid {}",
        record.lease,
        record.interface,
        record.terms.queues(),
        record.holder.pid
    );
    match fate {
        Fate::GoesOn { .. } | Fate::Lingers { .. } => {}
        Fate::Ends {
            holder: None, why, ..
        } => tracing::info!("{lease}, ends: {why}"),
        Fate::Ends { why, .. } => tracing::warn!("{lease}, ends: {why}"),
        Fate::Gone { why, .. } => tracing::warn!("{lease}, is no more: {why}"),
        Fate::Elsewhere { why } => tracing::warn!("{lease}, is left as it is: {why}"),
        Fate::PinnedElsewhere { why } => tracing::error!("{lease}, is left as it is: {why}"),
    }
}

/// What has become of a lease.
enum Resumed {
    GoesOn(Adopted),
    Ends(LeaseId, Reason),
    Lingers,
    Gone(Reason),
    Elsewhere,
}

fn resume(engine: &mut Engine, record: &Record, fate: Fate) -> Resumed {
    let (holder, reason) = match fate {
        Fate::GoesOn { holder, .. } => (Some(holder), None),
        Fate::Ends { holder, reason, .. } | Fate::Lingers { holder, reason } => (holder, Some(reason)),
        Fate::Gone { reason, .. } => return Resumed::Gone(reason),
        Fate::PinnedElsewhere { .. } | Fate::Elsewhere { .. } => return Resumed::Elsewhere,
    };
    let holder = Arc::new(holder.unwrap_or_else(|| record.holder.gone()));
    let (watch, ended) = oneshot::channel();
    let mut lease = match lease_of(engine, record, &holder, watch) {
        Ok(lease) => lease,
        Err(failure) => {
            tracing::error!(lease = record.lease, "cannot be taken over: {}", chain(&failure));
            return Resumed::Gone(Reason::Restarted);
        }
    };
    let (id, index) = (lease.id(), lease.device().index);
    // What may be unbound is confined again before anything else is served or ended, if all of it is there.
    let confined = match record.stage {
        Stage::Active => {
            engine.locks.are_bound(&lease);
            Ok(())
        }
        // Once it has ended, what was bound is confined by that, and so is what was retired.
        Stage::Ended if !lease.sockets.iter().any(|leased| is_unbound(leased, index)) => {
            if is_whole(&lease) {
                engine.locks.are_settled(&lease);
            }
            Ok(())
        }
        Stage::Pending | Stage::Ended => confine_anew(engine, &mut lease),
    };
    let reason = match confined {
        Ok(()) => reason,
        Err(why) => {
            let interface = &lease.device().name;
            tracing::error!(lease = id.0, %interface, "cannot confine its sockets anew: {why}");
            reason.or(Some(Reason::Restarted))
        }
    };
    let resumed = match (record.stage, reason) {
        (Stage::Ended, reason) => {
            lease.last_seen = lease.queues();
            lease.ended = Some((reason.unwrap_or(Reason::Restarted), Instant::now()));
            lease.bound_at_end = true;
            lease.watch = None;
            // Their slots are emptied with all others that are of no lease.
            lease.sockets.iter_mut().for_each(|leased| leased.slot = None);
            // What the store has still was to be retired, or kept a queue under a guard.
            lease.sockets.retain(|leased| leased.socket.is_some());
            lease.state = match lease.sockets.is_empty() {
                true => LeaseState::Lingering,
                false => LeaseState::Ending,
            };
            lease.linger_wait = Duration::ZERO;
            lease.due().set(Instant::now());
            Resumed::Lingers
        }
        (Stage::Pending | Stage::Active, Some(reason)) => Resumed::Ends(id, reason),
        (Stage::Pending | Stage::Active, None) => {
            engine.audit.write(&Line::new(Event::TakenOver).lease(&lease));
            Resumed::GoesOn(Adopted {
                lease: id,
                holder,
                ended,
            })
        }
    };
    engine.leases.add(lease);
    resumed
}

/// Confines sockets again that have left unbound, if the broker has an fd of each of them.
///
/// # Errors
///
/// Why not, in words: what was not confined must not go on.
fn confine_anew(engine: &mut Engine, lease: &mut Lease) -> Result<(), String> {
    if lease.terms().sockets() == SocketKind::Bound || !is_whole(lease) {
        return Ok(());
    }
    let standing = engine.fd_store.take_placeholders(lease.device().index);
    let standing = standing
        .into_iter()
        .map(|(queue, (socket, kept))| (queue, (socket, Some(kept))));
    match engine.locks.resume(lease, standing.collect()) {
        Ok(confinement) => {
            lease.confinement = Some(confinement);
            Ok(())
        }
        Err(Unconfined::NotNow(NotNow::Failed(failure))) => Err(chain(&failure)),
        Err(Unconfined::Tainted(by)) => Err(format!("nothing leaves the device unbound until {by}")),
        Err(reason) => Err(format!("{reason:?}")),
    }
}

/// Whether the broker has an fd of each of its sockets.
fn is_whole(lease: &Lease) -> bool {
    lease.sockets.iter().all(|leased| leased.socket.is_some())
}

/// Whether it can be bound to a queue of the device of that index still. One that was to be retired is confined to another.
fn is_unbound(leased: &LeasedSocket, index: u32) -> bool {
    leased.socket.as_ref().is_some_and(|socket| {
        let is_elsewhere = origin::confined_to(socket).is_ok_and(|confined| confined != index);
        !is_elsewhere && !socket.is_bound().unwrap_or(false)
    })
}

/// The lease that a record speaks of.
fn lease_of(
    engine: &mut Engine,
    record: &Record,
    holder: &Arc<Process>,
    watch: oneshot::Sender<()>,
) -> Result<Lease, Failure> {
    let index = record.interface_index;
    let missing = |what: &str| Failure::kernel("take over", what, rustix::io::Errno::NODEV);
    let redirect = engine
        .redirects
        .get(&index)
        .ok_or_else(|| missing("an XDP program"))?
        .clone();
    let now = engine
        .links
        .get(index)
        .ok_or_else(|| missing("a device"))?
        .clone();
    let device = Device::look_up(&now.name)?.ok_or_else(|| missing("a device"))?;
    let terms = engine.policy.resume(&device.name, &record.terms);
    let slot = |queue, before: Option<u64>| Some(redirect.filled_slot(queue, before?));
    // Of one that is pending it is not known which were made: any of them may be out.
    let sockets = terms
        .queues()
        .iter()
        .map(|queue| {
            let recorded = record.sockets.iter().find(|socket| socket.queue == queue);
            let recorded = recorded
                .cloned()
                .unwrap_or_else(|| RecordedSocket::unknown(queue));
            let stored = engine.fd_store.take(record, queue);
            LeasedSocket::taken_over(&recorded, slot(queue, recorded.redirected_before), stored)
        })
        .collect();
    let reservation = engine
        .leases
        .resume(record, terms, device, Arc::clone(holder))
        .map_err(|_| missing("a queue that another lease has"))?;
    let entry = engine.journal.entry(heritage::id(record));
    let mut lease = Lease::new(reservation, redirect.clone(), record.queue_lock, watch, entry)
        .taken_over(record, sockets);
    if record.stage == Stage::Active {
        lease.state = LeaseState::Active;
        lease.due().clear();
    }
    lease.device_is_now(now);
    Ok(lease)
}

/// Empties the slots that no lease has which lives.
fn empty_slots(engine: &Engine) {
    for (index, redirect) in &engine.redirects {
        let filled: BTreeSet<u32> = engine
            .leases
            .iter()
            .filter(|lease| lease.device().index == *index && lease.is_live())
            .flat_map(|lease| lease.sockets.iter().filter(|leased| leased.slot.is_some()))
            .map(|leased| leased.queue)
            .collect();
        redirect.empty_slots(|queue| filled.contains(&queue));
    }
}

/// Whether sockets are bound to all of a lease's queues: its slots may have emptied themselves while nobody looked.
fn has_sockets(engine: &mut Engine, id: LeaseId) -> Result<bool, Failure> {
    let Some(lease) = engine.leases.get_mut(id) else {
        return Ok(true);
    };
    for queue in lease.terms().queues().iter() {
        if engine.probe.queue_use(lease.device().index, queue)? == QueueUse::Free {
            return Ok(false);
        }
    }
    Ok(true)
}
