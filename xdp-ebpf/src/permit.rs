//! What the broker tells the programs of the queue lock: the types of their maps.
//!
//! This file is compiled twice, into this crate for the host and, by `#[path]`, into the programs themselves, so that
//! the two cannot disagree about the layout. It must therefore use nothing but `core`.

/// Names a lease for the lock. Never used twice, by whatever broker, while the machine runs: what was made for an earlier
/// one can thus never count again.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ticket {
    /// When the broker began, in nanoseconds since the machine did.
    pub broker: u64,
    /// Counted by that broker, from 1 on.
    pub number: u64,
}

/// The value of a ticket in the map `lock_leases` whose sockets may do what their permits say.
pub const COUNTS: u32 = 1;

/// The value of one that has ended, while some of its sockets may still be unbound.
#[allow(
    dead_code,
    reason = "for the host: to the programs all that does not count is one"
)]
pub const ENDED: u32 = 0;

/// What the holder of a socket may do with it: the value of the map `lock_sockets`, kept by the kernel with the socket.
///
/// It counts for as long as its ticket does; from then on the socket can be bound to nothing.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Permit {
    /// Whose it is.
    pub ticket: Ticket,
    /// The only device that it may be bound to, by its index.
    pub interface_index: u32,
    /// The only queue.
    pub queue: u32,
    /// Of `sxdp_flags`: what a bind must have.
    pub required_flags: u16,
    /// And what it must not.
    pub refused_flags: u16,
    /// Which options of SOL_XDP may be set: bit _n_ for option _n_ of include/uapi/linux/if_xdp.h.
    pub options: u32,
}
