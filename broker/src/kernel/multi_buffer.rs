//! Whether this kernel knows frames of several chunks (`XDP_USE_SG`, Linux 6.6). `xsk_bind` (net/xdp/xsk.c) refuses flags
//! that it does not know before it looks for the device, so it is asked for a device that there cannot be: nothing is bound.

use caps::Capability;
use rustix::io::Errno;
use xsk_client::sys::{self, BindFlags};

use crate::privileges;

/// No device has it: the kernel gives indexes from 1 up to this one, and would have to have given them all.
const NO_DEVICE: u32 = i32::MAX.unsigned_abs();

/// Whether holders may ask for it. No, too, where the kernel could not be asked.
pub fn is_known() -> bool {
    let Ok(Ok(socket)) = privileges::with(&[Capability::CAP_NET_RAW], sys::xdp_socket) else {
        return false;
    };
    let flags = BindFlags::XDP_COPY | BindFlags::XDP_USE_SG;
    sys::bind(&socket, NO_DEVICE, 0, flags)
        .is_err_and(|error| Errno::from_io_error(&error) == Some(Errno::NODEV))
}
