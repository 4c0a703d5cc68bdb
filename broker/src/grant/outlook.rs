//! What a grant would find on this machine, for `explain`: the same looks, in the same words, without holding or making
//! anything. What a look would change, or what may be another way in the next moment, is said not to have been looked at.

use xsk_client::wire::{Check, CheckOutcome, QueueLock, SocketKind, XdpMode, ZeroCopy};

use super::refusals::{beyond_map, foreign_program, no_device, no_lock, no_such_queue, unconfined};
use super::{bound, first_beyond};
use crate::device::Device;
use crate::engine::Engine;
use crate::error::{Error, chain};
use crate::kernel::queue_lock::{TaintedBy, Unconfined};
use crate::policy::{Terms, XdpSetting};
use crate::{limit, zero_copy};

/// The look at what the policy limits in all: it is no matter of the machine.
pub const LIMITS: &str = "limits";
/// The look at who reads the audit log: it is no matter of the machine either, and of the moment.
pub const AUDIT_LOG: &str = "audit log";
/// The look at what a broker before has left unbound, which ends with its holders.
pub const LEFT_UNBOUND: &str = "left unbound";

/// Looks at what terms would be granted on. The first line that refuses is what a grant would say.
pub fn outlook(engine: &mut Engine, terms: &Terms, uid: u32) -> Vec<Check> {
    let device = match Device::look_up(terms.interface()) {
        Ok(Some(device)) => device,
        Ok(None) => return vec![refused("device", &no_device(terms.interface()).into())],
        Err(failure) => return vec![not_looked("device", &chain(&failure))],
    };
    let has = format!(
        "{} has {} queues now, counted from 0, and could have {}",
        device.name, device.rx_queues, device.max_queues
    );
    let (lock, queue_lock) = queue_lock(engine, terms, &device);
    let (xdp, program) = program(engine, terms, &device);
    let mut checks = vec![
        match engine.audit.has_room(uid) {
            Ok(()) => fine(AUDIT_LOG, "what is granted can be written down"),
            Err(full) => refused(AUDIT_LOG, &full.into()),
        },
        fine("device", &has),
        link(&device),
        queue_lock,
        match limit::never(engine.leases.accounts().limits(), terms, uid) {
            Some(never) => refused(LIMITS, &never.into()),
            None => fine(LIMITS, "no limit is below what is asked for"),
        },
        program,
        match engine.uplinks.check(&device, terms.settings()) {
            Ok(()) if terms.settings().uplink => fine("uplink", "the policy allows it"),
            Ok(()) => fine(
                "uplink",
                "no default route leaves by it, and it is no port of a bridge or bond",
            ),
            Err(error) => failed("uplink", &error),
        },
        queues(engine, terms, &device),
        zero_copy(engine, terms, &device, xdp, lock),
    ];
    if terms.sockets() == SocketKind::Bound {
        checks.push(match engine.rings_can_be_mapped() {
            Some(true) => fine("kind bound", "this kernel maps rings of a bound socket"),
            Some(false) => refused("kind bound", &bound::unsupported().into()),
            None => not_looked(
                "kind bound",
                "whether this kernel maps rings of a bound socket shows when one is bound",
            ),
        });
    }
    checks.push(not_looked(
        "what others hold",
        "whether the queues are free, and what is left of the limits, is as it is when they are asked for (`list`, `status`)",
    ));
    checks
}

/// Whether anything would arrive: a grant does not depend on it.
fn link(device: &Device) -> Check {
    const WHAT: &str = "link";

    let link = match device.link() {
        Ok(Some(link)) => link,
        Ok(None) => return refused(WHAT, &no_device(&device.name).into()),
        Err(failure) => return not_looked(WHAT, &chain(&failure)),
    };
    let lacks = match (link.up, link.carrier) {
        (true, true) => return fine(WHAT, "up, with a carrier"),
        (true, false) => "has no carrier",
        (false, _) => "is down",
    };
    let why = format!(
        "{} {lacks}: it is granted all the same, and nothing arrives or leaves until that changes",
        device.name
    );
    fine(WHAT, &why)
}

/// The lock that would be in force, as far as it matters.
fn queue_lock(engine: &mut Engine, terms: &Terms, device: &Device) -> (QueueLock, Check) {
    const WHAT: &str = "queue lock";

    let setting = terms.settings().queue_lock;
    let found = engine.locks.in_force(setting);
    if terms.sockets() == SocketKind::Bound {
        let lock = found.unwrap_or(QueueLock::None);
        return (lock, fine(WHAT, "sockets of kind bound need none"));
    }
    let lock = match found {
        Ok(lock) => lock,
        Err(reason) => {
            let error = no_lock(&device.name, setting, &reason).into();
            return (QueueLock::None, refused(WHAT, &error));
        }
    };
    // Whose turn it is, is another matter the next moment; these two may last.
    let unheld = match lock {
        QueueLock::Placeholders => engine.leases.unheld(device.index),
        QueueLock::Lsm | QueueLock::None => Vec::new(),
    };
    let lasting = match lock {
        _ if !unheld.is_empty() => Some(Unconfined::Unheld(unheld)),
        QueueLock::None => None,
        QueueLock::Placeholders | QueueLock::Lsm => {
            engine.locks.tainted_by(device.index).map(Unconfined::Tainted)
        }
    };
    let Some(reason) = lasting else {
        return (lock, fine(WHAT, lock.as_str()));
    };
    let what = match reason {
        Unconfined::Tainted(TaintedBy::File { .. }) | Unconfined::NotNow(_) => WHAT,
        Unconfined::Tainted(TaintedBy::Process(_)) | Unconfined::Unheld(_) => LEFT_UNBOUND,
    };
    (
        lock,
        refused(what, &unconfined(&device.name, terms.queues(), reason)),
    )
}

/// The XDP program, and in which mode it runs or would; `None`: that shows when it is attached.
fn program(engine: &Engine, terms: &Terms, device: &Device) -> (Option<XdpMode>, Check) {
    const WHAT: &str = "XDP program";

    if let Some(redirect) = engine.redirects.get(&device.index) {
        let mode = redirect.mode();
        return match engine.misfits.check(device) {
            Ok(()) => (Some(mode), fine(WHAT, &format!("runs there, {mode}"))),
            Err(error) => (Some(mode), refused(WHAT, &error.into())),
        };
    }
    let link = match device.link() {
        Ok(Some(link)) => link,
        Ok(None) => return (None, refused(WHAT, &no_device(&device.name).into())),
        Err(failure) => return (None, not_looked(WHAT, &chain(&failure))),
    };
    if let Some((_, program)) = link.xdp {
        let error = foreign_program(&device.name, Some(program)).into();
        return (None, refused(WHAT, &error));
    }
    match terms.settings().xdp {
        XdpSetting::Generic => (
            Some(XdpMode::Generic),
            fine(
                WHAT,
                "none there yet; it is attached, generic, at the first grant",
            ),
        ),
        XdpSetting::Auto => (
            None,
            fine(
                WHAT,
                "none there yet; it is attached at the first grant, native where the driver takes it, else generic",
            ),
        ),
        XdpSetting::Native => (
            Some(XdpMode::Native),
            not_looked(
                WHAT,
                "none there yet; whether the driver takes it native shows at the first grant, when it is attached",
            ),
        ),
    }
}

fn queues(engine: &Engine, terms: &Terms, device: &Device) -> Check {
    const WHAT: &str = "queues";

    let redirect = engine.redirects.get(&device.index);
    if let Some(queue) = first_beyond(terms, device.rx_queues) {
        // Some drivers give XDP queues of its own when it is attached, and packets arrive on these too.
        if redirect.is_none() && queue < device.max_queues {
            let name = &device.name;
            return not_looked(
                WHAT,
                &format!(
                    "{name} has no queue {queue} now; whether attaching the XDP program makes it shows at the first grant, and \
                     `ethtool -L {name}` does, up to {}",
                    device.max_queues
                ),
            );
        }
        return refused(WHAT, &no_such_queue(device, queue).into());
    }
    let beyond = redirect.and_then(|redirect| {
        let queue = first_beyond(terms, redirect.queues())?;
        Some(beyond_map(&device.name, queue, redirect.queues()))
    });
    match beyond {
        Some(error) => refused(WHAT, &error.into()),
        None => fine(WHAT, "the device has them"),
    }
}

fn zero_copy(
    engine: &mut Engine,
    terms: &Terms,
    device: &Device,
    xdp: Option<XdpMode>,
    lock: QueueLock,
) -> Check {
    const WHAT: &str = "zero-copy";

    let is_wanted = zero_copy::is_wanted(terms) || terms.zero_copy() == ZeroCopy::Required;
    if terms.zero_copy() == ZeroCopy::Allowed && !is_wanted {
        return fine(WHAT, "the rule takes either mode, and so does the request");
    }
    let Some(has) = engine.probe.driver_has_zero_copy_untouched(device.index) else {
        return not_looked(
            WHAT,
            "this kernel tells what the driver has only when a queue is bound (Linux before 6.3)",
        );
    };
    // Where the mode is not known yet: what would be refused in native mode would be in generic mode as well.
    let mode = xdp.unwrap_or(XdpMode::Native);
    match zero_copy::check(terms, device, mode, lock, || Ok(has)) {
        Err(error) => failed(WHAT, &error),
        Ok(()) if xdp.is_none() && is_wanted => not_looked(
            WHAT,
            "the driver says that it has it; it takes the XDP program native, which shows when that is attached",
        ),
        Ok(()) if is_wanted => fine(
            WHAT,
            "the driver says that it has it; a bind shows whether it does",
        ),
        Ok(()) => fine(WHAT, "nothing is bound in that mode here"),
    }
}

fn fine(what: &str, why: &str) -> Check {
    check(what, CheckOutcome::Fine, why.to_owned())
}

fn refused(what: &str, error: &Error) -> Check {
    check(what, CheckOutcome::Refused, chain(error))
}

fn not_looked(what: &str, why: &str) -> Check {
    check(what, CheckOutcome::NotLooked, why.to_owned())
}

/// A refusal refuses; a failure of ours says nothing of what a grant would meet.
fn failed(what: &str, error: &Error) -> Check {
    match error {
        Error::Refused(_) => refused(what, error),
        Error::Failed(_) => not_looked(what, &chain(error)),
    }
}

fn check(what: &str, outcome: CheckOutcome, why: String) -> Check {
    Check {
        what: what.to_owned(),
        outcome,
        why,
    }
}
