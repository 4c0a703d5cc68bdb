//! Whether this kernel maps rings of a socket that is bound already (from about Linux 6.4; EBUSY before, `xsk_mmap` in
//! net/xdp/xsk.c), which kind `bound` cannot do without. Asked with a socket of ours on the loopback device, so that
//! nobody has to fill a umem first to hear that it was in vain.

use caps::Capability;
use rustix::io::Errno;
use xsk_client::sys::{self, BindFlags, Mapping, Prefault, Ring};

use super::queue_probe::unbound_socket;
use crate::privileges;

/// The index of `lo` in every network namespace (`LOOPBACK_IFINDEX`, include/net/net_namespace.h).
const LOOPBACK: u32 = 1;

/// `None`: it cannot be told now, since another socket is bound to the loopback device for one.
pub fn rings_can_be_mapped() -> Option<bool> {
    const PAGE_BYTES: usize = 4096;

    let socket = privileges::with(
        &[Capability::CAP_NET_RAW, Capability::CAP_IPC_LOCK],
        unbound_socket,
    )
    .ok()?
    .ok()?;
    sys::bind(&socket, LOOPBACK, 0, BindFlags::XDP_COPY).ok()?;
    match Mapping::new(&socket, Ring::Fill.page_offset(), PAGE_BYTES, Prefault::No) {
        Ok(_) => Some(true),
        Err(error) if Errno::from_io_error(&error) == Some(Errno::BUSY) => Some(false),
        Err(_) => None,
    }
}
