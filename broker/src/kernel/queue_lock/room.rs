//! How many placeholders there may be: they take fds, for which nobody is charged, out of a share of their own of
//! RLIMIT_NOFILE.

use rustix::process::{Resource, getrlimit};

use crate::device::Device;
use crate::quota;

/// Placeholders take fds, for which nobody is charged: so many are wanted, and there is no room for them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NoRoom {
    /// How many more are wanted.
    pub wanted: u64,
    /// How many there may be.
    pub room: u64,
    /// RLIMIT_NOFILE.
    pub open_files: u64,
}

impl NoRoom {
    /// Whether there will be room once others are gone.
    pub fn is_for_now(&self) -> bool {
        self.wanted <= self.room
    }
}

/// Whether so many more are within the limit, where so many are open.
///
/// # Errors
///
/// [`NoRoom`].
pub(super) fn check(wanted: u64, open: u64) -> Result<(), NoRoom> {
    let open_files = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
    let room = quota::placeholders_within(open_files);
    if wanted.saturating_add(open) <= room {
        return Ok(());
    }
    Err(NoRoom {
        wanted,
        room,
        open_files,
    })
}

/// How many a device takes where so many of its queues are granted.
pub(super) fn wanted_on(device: &Device, granted: usize) -> u64 {
    u64::from(device.bindable_queues).saturating_sub(u64::try_from(granted).unwrap_or(u64::MAX))
}
