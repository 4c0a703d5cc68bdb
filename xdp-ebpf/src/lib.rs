//! The BPF programs of xsk-broker, as the host sees them: the built objects, and the names and types of their maps.
//!
//! The XDP program, at the top level here, sends each frame to the AF_XDP socket in the slot of its receive queue, and a frame whose slot
//! is empty on to the host's network stack. Its source is `program/src/main.rs` beside this crate, in a
//! workspace of its own because it is built for `bpfel-unknown-none`; `cargo xtask build-ebpf` builds it, and
//! what it built is committed here, so that neither users nor ordinary developers need a BPF tool chain.
//!
//! The programs of the queue lock are in [`queue_lock`], and in an object of their own: a kernel without BPF LSM takes
//! the XDP program all the same.
//!
//! Whoever loads [`OBJECT`] gives both maps the size they need (`EbpfLoader::map_max_entries` in aya): the
//! device's maximum of receive queues. In the object they have one entry. A queue beyond the maps is passed
//! to the stack and not counted.
//!
//! **Invariant**: nothing here is unsafe, does I/O or knows aya.

#![no_std]
#![forbid(unsafe_code)]

mod permit;
mod queue_counters;
pub mod queue_lock;

pub use queue_counters::QueueCounters;

/// The program's name, as `aya::Ebpf::program_mut` takes it and as `bpftool prog` shows it.
pub const PROGRAM: &str = "xsk_redirect";

/// The XSKMAP: slot _n_ holds the AF_XDP socket that gets the frames of receive queue _n_.
pub const XSKS_MAP: &str = "xsks_map";

/// The per-CPU array of [`QueueCounters`]: entry _n_ counts the frames of receive queue _n_.
pub const QUEUE_COUNTERS: &str = "queue_counters";

/// The built program, an ELF object for the BPF target, ready to be parsed where it lies.
pub static OBJECT: &[u8] = &ALIGNED_OBJECT.bytes;

/// ELF parsers read 8-byte fields in place, so the object must be aligned for them; `include_bytes!` alone
/// promises nothing. The empty array has the alignment of `u64` and no size.
#[repr(C)]
struct Aligned<Bytes: ?Sized> {
    align: [u64; 0],
    bytes: Bytes,
}

static ALIGNED_OBJECT: &Aligned<[u8]> = &Aligned {
    align: [],
    bytes: *include_bytes!("../xsk_redirect.o"),
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_objects_are_aligned_elfs_for_little_endian_bpf() {
        const EM_BPF: [u8; 2] = 247_u16.to_le_bytes();

        for object in [OBJECT, queue_lock::OBJECT] {
            assert!(object.as_ptr().cast::<u64>().is_aligned());
            assert_eq!(object[..6], *b"\x7fELF\x02\x01", "64 bits, little endian");
            assert_eq!(object[18..20], EM_BPF);
        }
    }

    #[test]
    fn the_objects_hold_the_names_by_which_the_broker_asks_for_them() {
        use queue_lock::{BIND, LEASES, OPTION, SOCK_FAMILY, SOCKET_SK, SOCKETS};

        let redirect = [PROGRAM, XSKS_MAP, QUEUE_COUNTERS, "xdp.frags", "Dual MIT/GPL"];
        let lock = [
            BIND,
            OPTION,
            SOCKETS,
            LEASES,
            SOCKET_SK,
            SOCK_FAMILY,
            "lsm/socket_bind",
            "Dual MIT/GPL",
        ];
        for (object, names) in [(OBJECT, redirect.as_slice()), (queue_lock::OBJECT, &lock)] {
            for name in names {
                let found = object.windows(name.len() + 1).any(|window| {
                    window
                        .strip_suffix(b"\0")
                        .is_some_and(|window| window == name.as_bytes())
                });
                assert!(found, "{name} is not in the object");
            }
        }
    }

    #[test]
    fn names_fit_into_the_kernels_sixteen_bytes() {
        // BPF_OBJ_NAME_LEN, NUL included. A longer name is cut in what bpftool shows, and no longer found by
        // it.
        use queue_lock::{BIND, LEASES, OPTION, SOCKETS};

        for name in [PROGRAM, XSKS_MAP, QUEUE_COUNTERS, BIND, OPTION, SOCKETS, LEASES] {
            assert!(name.len() < 16, "{name}");
        }
    }

    #[test]
    fn counters_of_several_cpus_add_up() {
        let cpus = [[3, 1], [0, 0], [4, 6]];
        let total: QueueCounters = cpus.into_iter().map(QueueCounters::from).sum();
        assert_eq!(
            total,
            QueueCounters {
                redirected: 7,
                passed: 7
            }
        );
    }
}
