//! What a client is told when it gets nothing: what failed, on which object, and what to do.

use xsk_client::wire::{BrokerError, InterfaceName, QueueSet};

use crate::audit::Event;
use crate::device::Device;
use crate::error::{Error, Failure};
use crate::kernel::queue_lock::{NoRoom, NotNow, QueueLocks, TaintedBy, Unconfined};
use crate::lease::{Lease, named};
use crate::policy::QueueLockSetting;
use crate::quota;

pub(super) fn no_such_queue(device: &Device, queue: u32) -> BrokerError {
    let name = &device.name;
    let message = format!(
        "{name} has no queue {queue}: it receives on {} queues now, counted from 0; `ethtool -L {name}` changes that, up to {}",
        device.rx_queues, device.max_queues,
    );
    BrokerError::NoSuchQueue {
        interface: name.clone(),
        queue,
        queues: device.rx_queues,
        message,
    }
}

pub(super) fn beyond_map(name: &InterfaceName, queue: u32, queues: u32) -> BrokerError {
    let message = format!(
        "queue {queue} of {name} is beyond the map of the XDP program that runs there, which was attached by another broker \
         for {queues} queues and goes on for its leases; when they have ended, `xsk-broker serve` after a stop attaches anew"
    );
    BrokerError::DeviceUnavailable {
        interface: name.clone(),
        message,
    }
}

pub(super) fn no_device(interface: &InterfaceName) -> BrokerError {
    let message = format!("there is no interface {interface} in the broker's network namespace now");
    BrokerError::DeviceUnavailable {
        interface: interface.clone(),
        message,
    }
}

/// A queue is taken, and no lease has it: what keeps it busy?
pub(super) fn taken(locks: &QueueLocks, index: u32, interface: &InterfaceName, queue: u32) -> BrokerError {
    let (retry_after_ms, message) = if locks.has_placeholder(index, queue) {
        let message = format!(
            "queue {queue} of {interface} is kept busy by a placeholder, since sockets of another lease are not bound yet; ask \
             again"
        );
        (20, message)
    } else if locks.is_leaving(index, queue) {
        (10, leaving(interface, queue))
    } else {
        let message = format!(
            "a socket that is of no lease is bound to queue {queue} of {interface}: another program's, or one that outlived a \
             broker; it is free when that socket is gone"
        );
        (10, message)
    };
    BrokerError::QueueBusy {
        interface: interface.clone(),
        queue,
        retry_after_ms: Some(retry_after_ms),
        message,
    }
}

fn leaving(interface: &InterfaceName, queue: u32) -> String {
    format!(
        "the kernel has not let go of queue {queue} of {interface} yet, which somebody had until now; ask again"
    )
}

pub(super) fn foreign_program(interface: &InterfaceName, program: Option<u32>) -> BrokerError {
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

pub(super) fn not_native(interface: &InterfaceName, cause: &std::io::Error) -> BrokerError {
    let message = format!(
        "{interface} takes no native XDP program ({cause}); the operator may write `xdp = \"auto\"` or \"generic\" under [interface.{interface}], or lower the device's MTU"
    );
    BrokerError::DeviceUnavailable {
        interface: interface.clone(),
        message,
    }
}

pub(super) fn not_bound(lease: &Lease, queue: u32) -> BrokerError {
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

pub(super) fn bound_elsewhere(lease: &Lease, queue: u32) -> BrokerError {
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

/// The lock that the policy wants on a device is not to be had there.
pub(super) fn no_lock(interface: &InterfaceName, setting: QueueLockSetting, reason: &str) -> BrokerError {
    let message = format!(
        "{interface} gives no sockets that leave unbound: the policy wants `queue-lock = \"{}\"` there, which cannot be had: \
         {reason}",
        setting.as_str()
    );
    BrokerError::DeviceUnavailable {
        interface: interface.clone(),
        message,
    }
}

/// A socket cannot leave unbound now.
pub(super) fn unconfined(name: &InterfaceName, queues: &QueueSet, reason: Unconfined) -> Error {
    let name = name.clone();
    let busy = |retry_after_ms: Option<u64>, message| {
        let queue = queues.iter().next().unwrap_or(0);
        Error::from(BrokerError::QueueBusy {
            interface: name.clone(),
            queue,
            retry_after_ms,
            message,
        })
    };
    match reason {
        Unconfined::NotNow(NotNow::Turn) => busy(
            Some(20),
            format!(
                "sockets of another lease of {name} are not bound yet, and under the lock `placeholders` only one lease at a \
                 time can have such; ask again"
            ),
        ),
        Unconfined::NotNow(NotNow::Leaving(queue)) => busy(Some(10), leaving(&name, queue)),
        Unconfined::NotNow(NotNow::NoRoom(no_room)) if no_room.is_for_now() => busy(
            Some(20),
            format!(
                "the placeholders of {name} take {} fds, and {}; ask again when other devices' are gone",
                no_room.wanted,
                room_of(&no_room)
            ),
        ),
        Unconfined::NotNow(NotNow::NoRoom(no_room)) => {
            let message = format!(
                "{name} gives no sockets that leave unbound: placeholders on its other queues take {} fds, and {}: start the \
                 broker with LimitNOFILE={} or more; `queue-lock = \"lsm\"` takes none, and kind `bound` is granted",
                no_room.wanted,
                room_of(&no_room),
                quota::open_files_for(no_room.wanted)
            );
            BrokerError::DeviceUnavailable {
                interface: name,
                message,
            }
            .into()
        }
        Unconfined::NotNow(NotNow::Failed(failure)) => super::of_device(&name, failure),
        Unconfined::Unheld(leases) => {
            let leases: Vec<u64> = leases.iter().map(|lease| lease.0).collect();
            let message = format!(
                "{name} gives no sockets that leave unbound until {}: taken over from the broker before without an fd of the \
                 sockets, so that placeholders cannot hold the queues when a holder lets go. Kind `bound` is granted; `queue-lock = \
                 \"lsm\"` or a service manager that keeps fds (FileDescriptorStoreMax=) avoids this",
                named::end_of(&leases)
            );
            busy(None, message)
        }
        Unconfined::Tainted(by) => {
            let no_more = format!(
                "a broker that crashed had handed out a socket of {name} that may still be unbound: no more of this kind until"
            );
            match by {
                TaintedBy::Process(_) => busy(
                    None,
                    format!("{no_more} the process that has it is gone, which the operator sees in `status`"),
                ),
                // No waiting cures this.
                TaintedBy::File { path, .. } => {
                    let message = format!(
                        "{no_more} the operator has seen that no process has it any more, and removed {}, which is damaged and \
                         does not say which process that is",
                        path.display()
                    );
                    BrokerError::DeviceUnavailable {
                        interface: name,
                        message,
                    }
                    .into()
                }
            }
        }
    }
}

fn room_of(no_room: &NoRoom) -> String {
    format!(
        "RLIMIT_NOFILE of the broker ({}) leaves {} for all of them",
        no_room.open_files, no_room.room
    )
}

/// What an error of a request is called in the audit log.
pub(super) fn event_of(error: &Error) -> Event {
    match error {
        Error::Refused(_) => Event::Refused,
        Error::Failed(_) => Event::Failed,
    }
}

/// The word for it in the audit log.
pub(super) fn reason_of(error: &Error) -> &'static str {
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
