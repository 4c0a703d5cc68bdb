//! Which slots of a map of sockets are filled.
//!
//! No call tells: a look into such a map is refused to processes (`xsk_map_lookup_elem_sys_only`, net/xdp/xskmap.c), and to
//! empty a slot is answered alike whether it was empty or not. A program may look (Linux 5.3). So the smallest that does is
//! loaded, attached to nothing, and run by hand once for each slot (BPF_PROG_TEST_RUN).
//!
//! **Invariant**: nothing is changed by it: no slot, no count, no packet.

#![expect(
    unsafe_code,
    reason = "bpf(2), for which neither rustix nor libc has functions"
)]

use std::collections::BTreeSet;
use std::ffi::CStr;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use super::bpf_link::{bpf, bpf_fd, number};

/// The members of `union bpf_attr` (include/uapi/linux/bpf.h) for BPF_PROG_LOAD, as far as they are used.
#[repr(C)]
struct ProgramLoad {
    kind: u32,
    instruction_count: u32,
    instructions: u64,
    license: u64,
    log_level: u32,
    log_bytes: u32,
    log: u64,
    kernel_version: u32,
    flags: u32,
    name: [u8; 16],
}

/// The same for BPF_PROG_TEST_RUN.
#[repr(C)]
#[derive(Default)]
struct TestRun {
    program: u32,
    returned: u32,
    packet_bytes: u32,
    packet_out_bytes: u32,
    packet: u64,
    packet_out: u64,
    repeat: u32,
    nanoseconds: u32,
}

const BPF_PROG_LOAD: libc::c_int = 5;
const BPF_PROG_TEST_RUN: libc::c_int = 10;
/// BPF_PROG_TYPE_XDP of `enum bpf_prog_type`.
const PROGRAM_TYPE_XDP: u32 = 6;
/// What the program returns for a slot with a socket in it.
const FILLED: i32 = 1;

/// `struct bpf_insn` (include/uapi/linux/bpf.h), little-endian.
#[repr(C)]
struct Instruction {
    code: u8,
    registers: u8,
    offset: i16,
    immediate: i32,
}

/// The slots of a map of sockets that are filled, of so many.
///
/// # Errors
///
/// What bpf(2) says. It takes the right to load XDP programs.
pub fn filled(map: BorrowedFd<'_>, slots: u32) -> io::Result<BTreeSet<u32>> {
    let program = load(map)?;
    let mut filled = BTreeSet::new();
    for slot in 0..slots {
        if is_filled(program.as_fd(), slot)? {
            filled.insert(slot);
        }
    }
    Ok(filled)
}

/// The number of a slot is the beginning of the packet.
fn is_filled(program: BorrowedFd<'_>, slot: u32) -> io::Result<bool> {
    /// More than an Ethernet header, which is the least that is taken (`bpf_test_init`, net/bpf/test_run.c).
    const PACKET_BYTES: usize = 64;

    let mut packet = [0_u8; PACKET_BYTES];
    packet[..size_of::<u32>()].copy_from_slice(&slot.to_ne_bytes());
    let mut attributes = TestRun {
        program: number(program.as_raw_fd())?,
        packet_bytes: u32::try_from(packet.len()).map_err(io::Error::other)?,
        packet: address(&packet)?,
        repeat: 1,
        ..TestRun::default()
    };
    // SAFETY: TestRun is what BPF_PROG_TEST_RUN reads, and writes numbers of itself to. It reads `packet_bytes` at `packet`,
    // which outlives the call, and is given no place for the packet that comes out.
    unsafe { bpf(BPF_PROG_TEST_RUN, &mut attributes)? };
    Ok(attributes.returned == FILLED.unsigned_abs())
}

fn load(map: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    const NAME: &[u8; 16] = b"xsk_slot_filled\0";
    const LICENSE: &CStr = c"Dual MIT/GPL";

    let program = program(map.as_raw_fd());
    let mut attributes = ProgramLoad {
        kind: PROGRAM_TYPE_XDP,
        instruction_count: u32::try_from(program.len()).map_err(io::Error::other)?,
        instructions: address(&program)?,
        license: address(LICENSE.to_bytes_with_nul())?,
        log_level: 0,
        log_bytes: 0,
        log: 0,
        kernel_version: 0,
        flags: 0,
        name: *NAME,
    };
    // SAFETY: ProgramLoad is the beginning of what BPF_PROG_LOAD reads, and the kernel takes the rest as zero. Instructions and
    // licence are as long as they say, and outlive the call.
    unsafe { bpf_fd(BPF_PROG_LOAD, &mut attributes) }
}

/// `key` is the beginning of the packet; 1 if the map has something there, else 0.
fn program(map: i32) -> [Instruction; 16] {
    /// `struct xdp_md` (include/uapi/linux/bpf.h).
    const DATA: i16 = 0;
    const DATA_END: i16 = 4;
    /// Of the stack.
    const KEY: i16 = -4;
    const LOOK_UP: i32 = 1;
    const MAP_BY_FD: u8 = 1;

    let [r0, r1, r2, r3, r10] = [0, 1, 2, 3, 10];
    let code = |code, to: u8, from: u8, offset, immediate| Instruction {
        code,
        registers: to | from << 4,
        offset,
        immediate,
    };
    let load = |to, from, offset| code(0x61, to, from, offset, 0);
    let store = |to, offset, from| code(0x63, to, from, offset, 0);
    let copy = |to, from| code(0xbf, to, from, 0, 0);
    let set = |to, value| code(0xb7, to, 0, 0, value);
    let add = |to, value| code(0x07, to, 0, 0, value);
    [
        load(r2, r1, DATA_END),
        load(r1, r1, DATA),
        copy(r3, r1),
        add(r3, 4),
        set(r0, 0),
        // To the end, if r3 > r2: the verifier wants the packet's end compared.
        code(0x2d, r3, r2, 9, 0),
        load(r3, r1, 0),
        store(r10, KEY, r3),
        copy(r2, r10),
        add(r2, KEY.into()),
        // Two make one.
        code(0x18, r1, MAP_BY_FD, 0, map),
        code(0, 0, 0, 0, 0),
        code(0x85, 0, 0, 0, LOOK_UP),
        // To the end, if r0 == 0.
        code(0x15, r0, 0, 1, 0),
        set(r0, FILLED),
        code(0x95, 0, 0, 0, 0),
    ]
}

fn address<T>(of: &[T]) -> io::Result<u64> {
    of.as_ptr()
        .expose_provenance()
        .try_into()
        .map_err(io::Error::other)
}
