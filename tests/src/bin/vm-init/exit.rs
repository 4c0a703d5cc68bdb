//! The one way out of the virtual machine that the host takes for an answer: QEMU's device isa-debug-exit, an I/O port.
//!
//! Through `/dev/port` it would be a file, but Debian's kernels for virtual machines are built without that.

#![expect(unsafe_code, reason = "an I/O port is written to")]

use std::arch::asm;

use anyhow::{Context as _, Result};

/// Where the host sets the device up, and how many ports it has.
const PORT: u16 = 0xf4;
const PORTS: libc::c_ulong = 4;

/// What the host is told; QEMU ends with the value, doubled, plus one.
#[derive(Debug, Clone, Copy)]
#[repr(u8)]
pub(crate) enum Word {
    Good = 0x10,
    Bad = 0x20,
}

/// Ends the machine. Comes back only where there is no such device.
pub(crate) fn exit(word: Word) -> Result<()> {
    // SAFETY: this only asks the kernel to let this thread use the ports, which nothing else in the machine knows.
    if unsafe { libc::ioperm(libc::c_ulong::from(PORT), PORTS, 1) } != 0 {
        return Err(std::io::Error::last_os_error()).context("ioperm");
    }
    // SAFETY: the thread was just allowed to use this port, and writing to it touches no memory of ours.
    unsafe {
        asm!("out dx, al", in("dx") PORT, in("al") word as u8, options(nomem, nostack, preserves_flags));
    };
    Ok(())
}
