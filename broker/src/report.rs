//! What the broker tells of itself: leases, interfaces, verdicts, status. Nothing here changes anything.

use std::time::{Duration, Instant};

use xsk_client::wire::{
    Change, EndReason, Ended, Explain, Explained, Holder, Interface, Interfaces, Lease as WireLease,
    LeaseEvent, Leases, Probe, QueueLock, Quota, Requester, Status, StillHeld, Used,
};

use crate::charge::Accounts;
use crate::device::Device;
use crate::engine::Engine;
use crate::error::Error;
use crate::grant;
use crate::identity::{Peer, Subject};
use crate::kernel::queue_lock::{QueueLocks, TaintedBy};
use crate::kernel::queue_probe::{QueueProbe, QueueUse};
use crate::lease::Lease;
use crate::policy::{Verdict, View};
use crate::quota::{Resource, open_files_for};
use crate::{kernel, privileges};

/// How much a client sees: which of the two sockets it came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    /// The broker socket: its own leases and rules.
    Own,
    /// The control socket: everybody's.
    All,
}

/// Whether a client may know of a lease: an operator, and whoever asked for it or holds it.
pub fn sees(scope: Scope, uid: u32, lease: &Lease) -> bool {
    scope == Scope::All || uid == lease.requester().subject.uid || uid == lease.holder_uid()
}

/// `ListLeases`.
pub fn leases(engine: &Engine, scope: Scope, uid: u32) -> Leases {
    let seen = |lease: &&Lease| sees(scope, uid, lease);
    Leases {
        leases: engine
            .leases
            .iter()
            .filter(seen)
            .map(|it| lease(it, scope))
            .collect(),
    }
}

/// A lease's holder now.
pub fn holder(lease: &Lease) -> Holder {
    let holder = lease.holder();
    Holder {
        pid: holder.pid(),
        uid: lease.holder_uid(),
        pidfd_inode: holder.inode(),
        start_ticks: holder.start_ticks(),
        alive: !holder.has_exited(),
    }
}

/// An event in a lease's life, and how things stand after it.
pub fn event(lease: &Lease, change: Change, scope: Scope) -> LeaseEvent {
    LeaseEvent {
        lease: lease.id().0,
        change,
        state: lease.state,
        reason: lease.ended.map(|(reason, _)| reason),
        rx_stopped: lease.rx_stopped(),
        tx_may_continue: lease.tx_may_continue(),
        interface: lease.device().name.clone(),
        queues: lease.terms().queues().clone(),
        holder: holder(lease),
        up: lease.link().is_some_and(|link| link.up),
        carrier: lease.link().is_some_and(|link| link.carrier),
        mtu: lease.link().map_or(0, |link| link.mtu),
        not_allowed: not_allowed(lease, scope),
    }
}

/// Why the policy in force would not give a lease, in the words for this reader.
fn not_allowed(lease: &Lease, scope: Scope) -> Option<String> {
    let objection = lease.objection.as_ref()?;
    Some(match scope {
        Scope::Own => objection.for_peer.clone(),
        Scope::All => objection.for_operator.clone(),
    })
}

/// What still keeps the queues of a lease that has ended, as far as can be known.
fn ended(lease: &Lease) -> Option<Ended> {
    /// Twice what the kernel was seen to take after the last user of a socket is gone (F12, F34).
    const LETTING_GO: Duration = Duration::from_millis(100);

    let (reason, at) = lease.ended?;
    let ago = at.elapsed();
    let still_held = match (lease.holder().has_exited(), reason) {
        (false, _) => StillHeld::Holder,
        (true, EndReason::HolderExited) if ago > LETTING_GO => StillHeld::Others,
        // When it exited is not known, only that it was after the end.
        (true, _) if ago > LETTING_GO * 10 => StillHeld::Others,
        (true, _) => StillHeld::Kernel,
    };
    Some(Ended {
        reason,
        ago_ms: u64::try_from(ago.as_millis()).unwrap_or(u64::MAX),
        still_held,
    })
}

/// A lease as it is now.
pub fn lease(lease: &Lease, scope: Scope) -> WireLease {
    let (terms, device, subject) = (lease.terms(), lease.device(), &lease.requester().subject);
    WireLease {
        lease: lease.id().0,
        interface: device.name.clone(),
        interface_index: device.index,
        queues: lease.queues(),
        requester: Requester {
            uid: subject.uid,
            gid: subject.gid,
        },
        holder: holder(lease),
        rule: terms.rule().to_owned(),
        sockets: terms.sockets(),
        direction: terms.direction(),
        umem_bytes: terms.umem().map(|umem| umem.bytes()),
        queue_lock: lease.queue_lock(),
        xdp: lease.redirect().mode(),
        state: lease.state,
        ended: ended(lease),
        rx_stopped: lease.rx_stopped(),
        tx_may_continue: lease.tx_may_continue(),
        not_allowed: not_allowed(lease, scope),
        up: lease.link().is_some_and(|link| link.up),
        carrier: lease.link().is_some_and(|link| link.carrier),
        mtu: lease.link().map_or(0, |link| link.mtu),
        age_ms: u64::try_from(lease.age().as_millis()).unwrap_or(u64::MAX),
        label: lease.label.clone(),
    }
}

/// `ListInterfaces`.
///
/// # Errors
///
/// As the kernel says when asked for devices.
pub fn interfaces(engine: &mut Engine, scope: Scope, peer: &Peer) -> Result<Interfaces, Error> {
    let mut interfaces = Vec::new();
    for (name, link) in kernel::netlink::devices()
        .map_err(|source| crate::error::Failure::kernel("RTM_GETLINK", "all devices", source))?
    {
        let settings = engine.policy.interface(&name);
        // One that lost its section is the operator's to know of, for as long as it is used.
        let has_program = scope == Scope::All && engine.redirects.contains_key(&link.index);
        if settings.is_none() && !has_program {
            continue;
        }
        if scope == Scope::Own && !engine.policy.covers(peer.subject(), &name) {
            continue;
        }
        let Some(device) = Device::look_up(&name)? else {
            continue;
        };
        let redirect = engine.redirects.get(&device.index);
        let held = engine
            .leases
            .iter()
            .filter(|lease| lease.device().index == device.index);
        let mut held: Vec<u32> = held.flat_map(|lease| lease.terms().queues().iter()).collect();
        held.sort_unstable();
        let placeholders = engine
            .locks
            .placeholders(device.index)
            .map_or_else(Vec::new, |(_, queues)| queues);
        let foreign = match redirect {
            Some(_) => foreign_queues(&engine.locks, &mut engine.probe, &device, |queue| {
                held.contains(&queue) || placeholders.contains(&queue)
            }),
            None => Vec::new(),
        };
        let queue_lock = settings.and_then(|it| engine.locks.in_force(it.queue_lock).ok());
        let unheld = match queue_lock {
            Some(QueueLock::Placeholders) => engine.leases.unheld(device.index),
            _ => Vec::new(),
        };
        let mut blocking = unheld.into_iter().map(|lease| lease.0);
        let tainted = engine.locks.tainted_by(device.index);
        let tainted = tainted.filter(|_| scope == Scope::All);
        let (tainted_by, tainted_file) = tainted.map(TaintedBy::split).unzip();
        interfaces.push(Interface {
            interface: name,
            interface_index: device.index,
            xdp: redirect.map(kernel::redirect::Redirect::mode),
            up: link.up,
            carrier: link.carrier,
            mtu: link.mtu,
            queues: device.rx_queues,
            queues_max: device.max_queues,
            reserved: settings.map_or_else(Vec::new, |it| it.reserved.below(device.max_queues)),
            queue_lock,
            placeholders,
            foreign,
            tainted_by: tainted_by.flatten(),
            tainted_file: tainted_file.flatten(),
            blocked_by: blocking.next(),
            blocked_by_others: blocking.collect(),
            held,
            misfit: engine.misfits.get(device.index).map(str::to_owned),
            passed: redirect.map_or(0, kernel::redirect::Redirect::passed),
        });
    }
    Ok(Interfaces { interfaces })
}

/// Queues that somebody is bound to and that are not `ours`; none where that cannot be seen without touching the queues.
fn foreign_queues(
    locks: &QueueLocks,
    probe: &mut QueueProbe,
    device: &Device,
    ours: impl Fn(u32) -> bool,
) -> Vec<u32> {
    (0..device.bindable_queues)
        .filter(|queue| !ours(*queue) && !locks.is_leaving(device.index, *queue))
        .filter(|queue| {
            let in_use = probe.queue_use_untouched(device.index, *queue);
            matches!(in_use, Ok(Some(QueueUse::Taken)))
        })
        .collect()
}

/// `Explain`.
pub fn explain(engine: &mut Engine, scope: Scope, peer: &Peer, call: Explain) -> Explained {
    let request = call.acquire().into();
    let subject = match call.uid {
        Some(uid) => {
            let groups = call.gids.unwrap_or_default();
            Subject {
                uid,
                gid: groups.first().copied().unwrap_or(uid),
                groups,
            }
        }
        None => peer.subject().clone(),
    };
    let explanation = engine.policy.explain(&subject, &request);
    // Who has no rule for it is told nothing of the machine.
    let checks = match engine.policy.decide(&subject, &request) {
        Verdict::Granted(terms) => grant::outlook(engine, &terms, subject.uid),
        Verdict::Refused(_) => Vec::new(),
    };
    explanation.with_checks(checks).into_wire(match scope {
        Scope::Own => View::Peer,
        Scope::All => View::Operator,
    })
}

/// `GetStatus`.
pub fn status(engine: &mut Engine) -> Status {
    engine.leases.forget_abandoned(Instant::now());
    let uname = rustix::system::uname();
    Status {
        version: env!("CARGO_PKG_VERSION").into(),
        pid: std::process::id(),
        uid: rustix::process::geteuid().as_raw(),
        uptime_ms: u64::try_from(engine.started.elapsed().as_millis()).unwrap_or(u64::MAX),
        engine_cpu_us: cpu_time_us(),
        kernel: uname.release().to_string_lossy().into_owned(),
        capabilities: privileges::permitted(),
        probes: probes(engine),
        policy_files: engine
            .policy
            .files()
            .iter()
            .map(|file| file.display().to_string())
            .collect(),
        rules: u64::try_from(engine.policy.rule_count()).unwrap_or(u64::MAX),
        leases: u64::try_from(engine.leases.len()).unwrap_or(u64::MAX),
        connections: engine.leases.accounts().in_all().of(Resource::Connections),
        quotas: quotas(engine.leases.accounts())
            .into_iter()
            .chain([engine.audit.quota()])
            .collect(),
        audit_log: Some(engine.audit.status()),
        fd_store_trouble: engine.manager.trouble(),
    }
}

/// CPU time of the calling thread, which is the engine's.
fn cpu_time_us() -> u64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    let time = Duration::try_from(time).unwrap_or_default();
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

/// What all users and each of them have of what is limited.
fn quotas(accounts: &Accounts) -> Vec<Quota> {
    let (limits, in_all, by_uid) = (accounts.limits(), accounts.in_all(), accounts.by_uid());
    let users = |resource| {
        let used = by_uid.iter().map(|(uid, amounts)| Used {
            uid: *uid,
            in_use: amounts.of(resource),
        });
        used.filter(|used| used.in_use > 0).collect()
    };
    Resource::ALL
        .iter()
        .map(|resource| Quota {
            resource: resource.to_string(),
            in_use: in_all.of(*resource),
            limit: limits.in_all.of(*resource),
            limit_per_user: limits.per_user.of(*resource),
            users: users(*resource),
        })
        .collect()
}

/// What the kernel has of what the broker can do without.
fn probes(engine: &mut Engine) -> Vec<Probe> {
    let with = |name: &str, available, there: &str, missing: &str| Probe {
        name: name.into(),
        available,
        note: if available { there } else { missing }.into(),
    };
    let lsm = engine.locks.lsm_in_force();
    vec![
        with(
            "BPF LSM",
            lsm.is_ok(),
            "the kernel refuses to bind an unbound socket to anything but what was granted",
            &lsm.err().unwrap_or_default(),
        ),
        with(
            "SO_PEERPIDFD",
            kernel::peer::has_peer_pidfd(),
            "clients are pinned by the kernel from connect(2) on",
            "Linux before 6.5: clients are pinned by pidfd_open(2), and one that dies meanwhile is refused",
        ),
        with(
            "SO_PASSRIGHTS",
            kernel::peer::has_passrights(),
            "fds that clients send are refused",
            "Linux before 6.16: fds that clients send are dropped when read",
        ),
        with(
            "UFFD_USER_MODE_ONLY",
            kernel::missing_pages::MissingPages::can_be_kept_away(),
            "a umem that the broker registers is paid for by its holder to the last page",
            "Linux before 5.11, or withheld from the broker: who punches holes at the right moment has it pay for them",
        ),
        with(
            "mmap of rings after bind",
            engine.rings_can_be_mapped() != Some(false),
            "sockets of kind bound can be had",
            "Linux before 6.4: sockets of kind bound are refused",
        ),
        with(
            "XDP_USE_SG",
            kernel::multi_buffer::is_known(),
            "packets longer than a chunk come to holders who ask for it, in several frames",
            "Linux before 6.6: a holder who asks for multi-buffer is refused, and longer packets are dropped",
        ),
        with(
            "netdev xdp-features",
            kernel::netlink::may_do_zero_copy(1).is_ok(),
            "whether a queue is free is seen without touching it, where the driver has no zero-copy",
            "Linux before 6.3: the first look whether a queue of a device is free shows what its driver has, and may keep the queue busy for some 20 ms",
        ),
        open_files(engine),
    ]
}

/// Whether there are fds for the placeholders of all devices that the policy speaks of and that are there.
fn open_files(engine: &Engine) -> Probe {
    let placeholders = |name: &_| {
        let settings = engine.policy.interface(name)?;
        let lock = engine.locks.in_force(settings.queue_lock);
        (lock == Ok(QueueLock::Placeholders)).then_some(())
    };
    let devices = kernel::netlink::devices().unwrap_or_default();
    let devices = devices
        .iter()
        .filter_map(|(name, _)| placeholders(name).and(Device::look_up(name).ok()?));
    let result = QueueLocks::have_room(devices);
    Probe {
        name: "RLIMIT_NOFILE".into(),
        available: result.is_ok(),
        note: match result {
            Ok(()) => "fds enough for the placeholders of all devices that the policy names".into(),
            Err(no_room) => format!(
                "{} fds leave {} for placeholders, of which the devices that the policy names may take {}: some of their grants \
                 have to wait or are refused; LimitNOFILE={} is enough",
                no_room.open_files,
                no_room.room,
                no_room.wanted,
                open_files_for(no_room.wanted.div_ceil(2))
            ),
        },
    }
}
