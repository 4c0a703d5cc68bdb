//! The queue lock as BPF LSM programs: a socket that the broker hands out unbound can be bound to what was granted, and to
//! nothing else, for as long as it exists.
//!
//! The broker gives each such socket a [`Permit`], before anybody else has it, in the kernel's own storage for sockets.
//! **Invariants**: a socket without one, of other programs or of another family, is none of ours and never refused
//! anything; one that has one is refused whatever the permit does not say, and everything once its ticket counts no more.
//!
//! Nothing here knows the kernel's structures: where `struct socket` has its `sk`, and that its family, the loader reads
//! from the kernel's own types (BTF) and hands over. The verifier takes what stands in read-only data for constants, and
//! checks each access by its own knowledge of the types: with a wrong offset the programs do not load.

#![no_std]
#![no_main]

#[path = "../../../src/permit.rs"]
mod permit;

use aya_ebpf::Global;
use aya_ebpf::bindings::BPF_F_NO_PREALLOC;
use aya_ebpf::btf_maps::{HashMap, SkStorage};
use aya_ebpf::helpers::bpf_probe_read_kernel;
use aya_ebpf::helpers::generated::bpf_sk_storage_get;
use aya_ebpf::macros::{btf_map, lsm};
use aya_ebpf::programs::LsmContext;

use crate::permit::{COUNTS, Permit, Ticket};

/// The permits of sockets.
#[btf_map(name = "lock_sockets")]
static SOCKETS: SkStorage<Permit> = SkStorage::new();

/// Tickets, and whether each counts.
#[btf_map(name = "lock_leases")]
static LEASES: HashMap<Ticket, u32, MAX_LEASES, { BPF_F_NO_PREALLOC as usize }> = HashMap::new();

const MAX_LEASES: usize = 65536;

/// Where `struct socket` has its `sk`.
#[unsafe(no_mangle)]
static SOCKET_SK: Global<u32> = Global::new(0);

/// Where `struct sock` has its `__sk_common.skc_family`.
#[unsafe(no_mangle)]
static SOCK_FAMILY: Global<u32> = Global::new(0);

const AF_XDP: u16 = 44;
const SOL_XDP: i32 = 283;
/// The only option that changes neither memory nor what a socket is bound to: how much one system call sends.
const XDP_MAX_TX_SKB_BUDGET: u32 = 9;

const PERMITTED: i32 = 0;
const REFUSED: i32 = -1; // EPERM

/// `struct sockaddr_xdp` (include/uapi/linux/if_xdp.h).
#[repr(C)]
struct Address {
    family: u16,
    flags: u16,
    interface_index: u32,
    queue: u32,
    shared_umem_fd: u32,
}

/// `int socket_bind(struct socket *sock, struct sockaddr *address, int addrlen)`: asked by `__sys_bind` before
/// `xsk_bind`, with a copy of the address that its caller cannot change any more.
#[lsm(hook = "socket_bind")]
pub fn xsk_lock_bind(context: LsmContext) -> i32 {
    let Some(permit) = permit_of(context.arg(0)) else {
        return PERMITTED;
    };
    let (address, bytes): (*const Address, i32) = (context.arg(1), context.arg(2));
    if bytes < size_of::<Address>() as i32 {
        return REFUSED;
    }
    // SAFETY: this helper reads from any address, or says that it cannot.
    let Ok(wanted) = (unsafe { bpf_probe_read_kernel(address) }) else {
        return REFUSED;
    };
    let is_granted = wanted.interface_index == permit.interface_index
        && wanted.queue == permit.queue
        && wanted.flags & permit.required_flags == permit.required_flags
        && wanted.flags & permit.refused_flags == 0
        && counts(&permit.ticket);
    if is_granted { PERMITTED } else { REFUSED }
}

/// `int socket_setsockopt(struct socket *sock, int level, int optname)`: rings and memory.
#[lsm(hook = "socket_setsockopt")]
pub fn xsk_lock_option(context: LsmContext) -> i32 {
    let (level, option): (i32, u32) = (context.arg(1), context.arg(2));
    if level != SOL_XDP || option == XDP_MAX_TX_SKB_BUDGET {
        return PERMITTED;
    }
    let Some(permit) = permit_of(context.arg(0)) else {
        return PERMITTED;
    };
    let is_granted =
        option < u32::BITS && permit.options & (1 << (option & 31)) != 0 && counts(&permit.ticket);
    if is_granted { PERMITTED } else { REFUSED }
}

/// The permit of a socket of ours.
#[inline(always)]
fn permit_of(socket: *const u8) -> Option<Permit> {
    // SAFETY: the hook's first argument is a `struct socket`, which lives while the hook runs; the verifier refuses to
    // load a program that reads anything else of it than a member as it is.
    let sk = unsafe { *socket.add(SOCKET_SK.load() as usize).cast::<*mut u8>() };
    if sk.is_null() {
        return None;
    }
    // SAFETY: the same for `struct sock`, which lives as long as its socket.
    let family = unsafe { *sk.add(SOCK_FAMILY.load() as usize).cast::<u16>() };
    if family != AF_XDP {
        return None;
    }
    let map = (&raw const SOCKETS).cast_mut().cast();
    // SAFETY: the map is one for sockets, and `sk` is one; without a flag nothing is made.
    let permit = unsafe { bpf_sk_storage_get(map, sk.cast(), core::ptr::null_mut(), 0) }.cast::<Permit>();
    if permit.is_null() {
        return None;
    }
    // SAFETY: the value lives until this program's run is over (RCU), and an update of it is a value of its own.
    Some(unsafe { *permit })
}

/// Whether a ticket counts.
#[inline(always)]
fn counts(ticket: &Ticket) -> bool {
    // SAFETY: the value lives until this program's run is over (RCU), and is one word.
    let value = unsafe { LEASES.get(ticket) };
    value == Some(&COUNTS)
}

/// See the XDP program's.
#[unsafe(no_mangle)]
#[unsafe(link_section = "license")]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

/// Nothing above can panic; a `no_std` program has to say what would happen all the same.
#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}
