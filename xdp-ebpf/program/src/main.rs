//! The XDP program: each frame goes to the AF_XDP socket in its receive queue's slot, or to the stack.
//!
//! It runs once for every frame that the device receives, whoever the frame is for, so it does two map
//! look-ups and nothing else: it never reads the packet, and so no packet can confuse it. Its section is
//! `xdp.frags` because a device whose MTU is above a page refuses programs that do not declare that they can
//! take a frame in several buffers (ERANGE); one that does not look at frames can.
//!
//! Both maps are given their size when the object is loaded: the device's maximum of receive queues.

#![no_std]
#![no_main]

#[path = "../../src/queue_counters.rs"]
mod queue_counters;

use aya_ebpf::bindings::xdp_action::{XDP_PASS, XDP_REDIRECT};
use aya_ebpf::macros::{map, xdp};
use aya_ebpf::maps::{PerCpuArray, XskMap};
use aya_ebpf::programs::XdpContext;

use crate::queue_counters::QueueCounters;

#[map(name = "xsks_map")]
static XSKS_MAP: XskMap = XskMap::with_max_entries(1, 0);

#[map(name = "queue_counters")]
static QUEUE_COUNTERS: PerCpuArray<QueueCounters> = PerCpuArray::with_max_entries(1, 0);

#[xdp(frags)]
pub fn xsk_redirect(context: XdpContext) -> u32 {
    let queue = context.rx_queue_index();

    // The flags of bpf_redirect_map are the action where it finds no socket (since Linux 5.3): an empty slot
    // and a queue beyond the map both mean that nobody was granted this queue, so the host's stack gets its
    // frame.
    let action = match XSKS_MAP.redirect(queue, u64::from(XDP_PASS)) {
        Ok(redirect) => redirect,
        Err(fallback) => fallback,
    };
    count(queue, action);
    action
}

#[inline(always)]
fn count(queue: u32, action: u32) {
    let Some(counters) = QUEUE_COUNTERS.get_ptr_mut(queue) else {
        return;
    };
    // SAFETY: the map look-up returned the address of this CPU's own entry, which lives as long as the map
    // and so longer than this program's run. XDP runs in softirq context and is not preempted by itself on
    // one CPU, so nothing else writes the entry; userspace may read a value that is one frame old.
    let counters = unsafe { &mut *counters };
    if action == XDP_REDIRECT {
        counters.redirected += 1;
    } else {
        counters.passed += 1;
    }
}

/// The kernel reads this section when it loads the program. The program is MIT OR Apache-2.0 as all of this
/// repository; of the strings that the kernel takes for GPL-compatible, this is the one that is true of it.
#[unsafe(no_mangle)]
#[unsafe(link_section = "license")]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

/// Nothing above can panic; a `no_std` program has to say what would happen all the same.
#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}
