//! What the program counts for each queue: the value type of the map `queue_counters`.
//!
//! This file is compiled twice, into this crate for the host and, by `#[path]`, into the XDP program itself,
//! so that the two cannot disagree about the layout. It must therefore use nothing but `core`.

use core::iter::Sum;

/// The frames of one receive queue, as one CPU saw them; the map holds one of these per queue and CPU.
///
/// Read a value as `[u64; 2]` (which aya knows how to read) and convert it; add the CPUs up with [`Sum`].
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct QueueCounters {
    /// Frames for which the program asked for a redirect to the queue's AF_XDP socket.
    ///
    /// **Redirected is not delivered.** The kernel looks at the socket only afterwards: a frame that finds
    /// the RX ring full, the fill ring empty, or the socket in the slot not bound to this queue is dropped
    /// there, and in the last case counted nowhere else. Show the socket's own XDP_STATISTICS beside this
    /// number.
    pub redirected: u64,
    /// Frames that went on to the host's network stack, because the queue's slot was empty.
    pub passed: u64,
}

impl From<[u64; 2]> for QueueCounters {
    fn from([redirected, passed]: [u64; 2]) -> Self {
        Self { redirected, passed }
    }
}

impl Sum for QueueCounters {
    fn sum<I: Iterator<Item = Self>>(counters: I) -> Self {
        counters.fold(Self::default(), |total, next| Self {
            redirected: total.redirected.wrapping_add(next.redirected),
            passed: total.passed.wrapping_add(next.passed),
        })
    }
}
