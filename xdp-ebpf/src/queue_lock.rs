//! The programs of the queue lock, on the LSM hooks `socket_bind` and `socket_setsockopt`: what the broker gave a
//! [`Permit`] can be bound to what that says, and to nothing else.
//!
//! Their source is `program/src/bin/xsk_queue_lock.rs`. Whoever loads [`OBJECT`] hands over the two offsets that the
//! programs have to know ([`SOCKET_SK`], [`SOCK_FAMILY`]), as the kernel's own types have them.

use crate::Aligned;
pub use crate::permit::{COUNTS, ENDED, Permit, Ticket};

/// The built programs, an ELF object for the BPF target, ready to be parsed where it lies.
pub static OBJECT: &[u8] = &ALIGNED_OBJECT.bytes;

static ALIGNED_OBJECT: &Aligned<[u8]> = &Aligned {
    align: [],
    bytes: *include_bytes!("../xsk_queue_lock.o"),
};

/// The program on the LSM hook `socket_bind`.
pub const BIND: &str = "xsk_lock_bind";

/// The program on the LSM hook `socket_setsockopt`.
pub const OPTION: &str = "xsk_lock_option";

/// The socket storage of [`Permit`]s, by a socket's fd.
pub const SOCKETS: &str = "lock_sockets";

/// The hash of [`Ticket`]s, each with [`COUNTS`] or [`ENDED`].
pub const LEASES: &str = "lock_leases";

/// The global that says where `struct socket` has its `sk`: a `u32`, in bytes.
pub const SOCKET_SK: &str = "SOCKET_SK";

/// The global that says where `struct sock` has its `__sk_common.skc_family`: the same.
pub const SOCK_FAMILY: &str = "SOCK_FAMILY";

/// How maps are read and written by loaders that know arrays of integers only.
impl From<Ticket> for [u64; 2] {
    fn from(ticket: Ticket) -> Self {
        [ticket.broker, ticket.number]
    }
}

impl From<[u64; 2]> for Ticket {
    fn from([broker, number]: [u64; 2]) -> Self {
        Self { broker, number }
    }
}

impl From<Permit> for [u64; 4] {
    fn from(permit: Permit) -> Self {
        let halves = |low: u32, high: u32| u64::from(high) << 32 | u64::from(low);
        let flags = u32::from(permit.refused_flags) << 16 | u32::from(permit.required_flags);
        [
            permit.ticket.broker,
            permit.ticket.number,
            halves(permit.interface_index, permit.queue),
            halves(flags, permit.options),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The programs are little-endian, as every machine that the broker runs on.
    #[test]
    fn a_permit_is_written_as_the_programs_read_it() {
        let permit = Permit {
            ticket: Ticket { broker: 1, number: 2 },
            interface_index: 3,
            queue: 4,
            required_flags: 5,
            refused_flags: 6,
            options: 7,
        };
        let written: [u64; 4] = permit.into();
        assert_eq!(size_of_val(&written), size_of::<Permit>());
        let words: [[u8; 8]; 4] = written.map(u64::to_le_bytes);
        let bytes = words.as_flattened();
        let at = |offset: usize| bytes[offset];
        assert_eq!(at(core::mem::offset_of!(Permit, ticket)), 1);
        assert_eq!(at(core::mem::offset_of!(Permit, ticket) + 8), 2);
        assert_eq!(at(core::mem::offset_of!(Permit, interface_index)), 3);
        assert_eq!(at(core::mem::offset_of!(Permit, queue)), 4);
        assert_eq!(at(core::mem::offset_of!(Permit, required_flags)), 5);
        assert_eq!(at(core::mem::offset_of!(Permit, refused_flags)), 6);
        assert_eq!(at(core::mem::offset_of!(Permit, options)), 7);
    }
}
