//! What a rule says of zero-copy, and a request for sockets that the broker binds, held against the device before sockets are
//! made for it, and against the sockets once their holder has bound them.
//!
//! **Invariants**: a holder is never made to find out at its bind what the broker could have known at its request; and
//! `forbidden` is promised only where it is kept, since a socket that was bound in zero-copy mode reads its whole queue
//! whatever is done about it afterwards (F43).

use xsk_client::wire::{BrokerError, ModeWish, QueueLock, SocketKind, XdpMode, ZeroCopy};

use crate::device::Device;
use crate::error::Error;
use crate::grant::of_device;
use crate::kernel::queue_probe::QueueProbe;
use crate::lease::{Lease, Reservation};
use crate::policy::Terms;

/// Refuses a device on which the rule's `zero-copy` cannot be kept, or the request's mode not be had.
///
/// # Errors
///
/// [`BrokerError::DeviceUnavailable`] with the reason, [`BrokerError::ZeroCopyUnavailable`]; what the kernel says when it is asked what the driver has.
pub fn check_device(
    probe: &mut QueueProbe,
    reservation: &Reservation,
    xdp: XdpMode,
    lock: QueueLock,
) -> Result<(), Error> {
    let (terms, device) = (reservation.terms(), reservation.device());
    // The reservation's queues are nobody's now, so asking may keep one busy for a moment.
    check(terms, device, xdp, lock, || match terms.queues().iter().next() {
        Some(queue) => probe
            .driver_has_zero_copy(device.index, queue)
            .map_err(|failure| of_device(&device.name, failure)),
        None => Ok(true),
    })
}

/// The same by whatever knows whether the driver has zero-copy, which is asked only where it matters.
///
/// # Errors
///
/// The same.
pub fn check(
    terms: &Terms,
    device: &Device,
    xdp: XdpMode,
    lock: QueueLock,
    mut driver_has: impl FnMut() -> Result<bool, Error>,
) -> Result<(), Error> {
    match terms.zero_copy() {
        // Where the broker binds it knows what for.
        ZeroCopy::Allowed if is_wanted(terms) && !driver_has()? => Err(not_there(terms, device).into()),
        ZeroCopy::Allowed => Ok(()),
        // Frames of a zero-copy queue come to a generic program as copies, and are copied once more.
        ZeroCopy::Required if xdp == XdpMode::Generic => Err(needs_native(terms.rule(), device).into()),
        ZeroCopy::Required => match driver_has()? {
            true => Ok(()),
            false => Err(not_to_be_had(terms.rule(), device).into()),
        },
        // Who does not bind cannot choose.
        ZeroCopy::Forbidden if terms.sockets() == SocketKind::Bound => Ok(()),
        ZeroCopy::Forbidden => match lock {
            QueueLock::None | QueueLock::Placeholders if driver_has()? => {
                Err(not_to_be_prevented(terms.rule(), device, lock).into())
            }
            // The LSM looks at the flags of each bind.
            QueueLock::Lsm | QueueLock::None | QueueLock::Placeholders => Ok(()),
        },
    }
}

/// Whether a request is for zero-copy alone: only of sockets that the broker binds it says so.
pub fn is_wanted(terms: &Terms) -> bool {
    terms.sockets() == SocketKind::Bound && terms.mode() == ModeWish::ZeroCopy
}

/// What a holder is told that has bound a socket in a mode which the rule does not admit; `None`: it has not.
pub fn check_bound(lease: &Lease) -> Option<BrokerError> {
    let rule = lease.terms().zero_copy();
    let (queue, mode) = lease.sockets.iter().find_map(|leased| {
        let mode = leased.mode.filter(|mode| !rule.admits(*mode))?;
        Some((leased.queue, mode))
    })?;
    Some(BrokerError::ModeNotAllowed {
        lease: lease.id().0,
        queue,
        mode,
        message: format!(
            "the socket for queue {queue} of {} was bound in {mode} mode, and rule {} has `zero-copy = \"{rule}\"`; lease {} \
             has been ended",
            lease.device().name,
            lease.terms().rule(),
            lease.id(),
        ),
    })
}

fn not_there(terms: &Terms, device: &Device) -> BrokerError {
    let (name, queue) = (&device.name, terms.queues().iter().next().unwrap_or_default());
    BrokerError::ZeroCopyUnavailable {
        interface: name.clone(),
        queue,
        message: format!(
            "the driver of {name} has no zero-copy on this kernel (`ethtool -i {name}` names it); ask for mode {} or {}",
            ModeWish::ZeroCopyElseCopy,
            ModeWish::Copy,
        ),
    }
}

fn unavailable(device: &Device, message: String) -> BrokerError {
    BrokerError::DeviceUnavailable {
        interface: device.name.clone(),
        message,
    }
}

fn needs_native(rule: &str, device: &Device) -> BrokerError {
    let name = &device.name;
    unavailable(
        device,
        format!(
            "rule {rule} requires zero-copy, and {name} runs the XDP program generic, behind the driver: zero-copy needs it \
             native (`xdp = \"native\"` under [interface.{name}] says why it is not)"
        ),
    )
}

fn not_to_be_had(rule: &str, device: &Device) -> BrokerError {
    let name = &device.name;
    unavailable(
        device,
        format!(
            "rule {rule} requires zero-copy, and the driver of {name} has none on this kernel (`ethtool -i {name}` names it); \
             the operator may write `zero-copy = \"allowed\"` in the rule"
        ),
    )
}

fn not_to_be_prevented(rule: &str, device: &Device, lock: QueueLock) -> BrokerError {
    let name = &device.name;
    unavailable(
        device,
        format!(
            "rule {rule} forbids zero-copy, which the driver of {name} has, and a holder that binds by itself chooses its mode: \
             under the lock `{lock}` nothing keeps it from that"
        ),
    )
}
