//! The XDP program of xsk-broker, as the host sees it: its built object, and the names and types of its maps.
//!
//! The program sends each frame to the AF_XDP socket in the slot of its receive queue, and a frame whose slot
//! is empty on to the host's network stack. Its source is `program/src/main.rs` beside this crate, in a
//! workspace of its own because it is built for `bpfel-unknown-none`; `cargo xtask build-ebpf` builds it, and
//! what it built is committed here, so that neither users nor ordinary developers need a BPF tool chain.
//!
//! Whoever loads [`OBJECT`] gives both maps the size they need (`EbpfLoader::map_max_entries` in aya): the
//! device's maximum of receive queues. In the object they have one entry. A queue beyond the maps is passed
//! to the stack and not counted.
//!
//! **Invariant**: nothing here is unsafe, does I/O or knows aya.

#![no_std]
#![forbid(unsafe_code)]

mod queue_counters;

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
    fn the_object_is_an_aligned_elf_for_little_endian_bpf() {
        const EM_BPF: [u8; 2] = 247_u16.to_le_bytes();

        assert!(OBJECT.as_ptr().cast::<u64>().is_aligned());
        assert_eq!(OBJECT[..6], *b"\x7fELF\x02\x01", "64 bits, little endian");
        assert_eq!(OBJECT[18..20], EM_BPF);
    }

    #[test]
    fn the_object_holds_the_names_by_which_the_broker_asks_for_them() {
        for name in [PROGRAM, XSKS_MAP, QUEUE_COUNTERS, "xdp.frags", "Dual MIT/GPL"] {
            let found = OBJECT.windows(name.len() + 1).any(|window| {
                window
                    .strip_suffix(b"\0")
                    .is_some_and(|window| window == name.as_bytes())
            });
            assert!(found, "{name} is not in the object");
        }
    }

    #[test]
    fn names_fit_into_the_kernels_sixteen_bytes() {
        // BPF_OBJ_NAME_LEN, NUL included. A longer name is cut in what bpftool shows, and no longer found by
        // it.
        for name in [PROGRAM, XSKS_MAP, QUEUE_COUNTERS] {
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
