//! BPF links of XDP programs: made and pinned by bpf(2) itself.
//!
//! aya can do both. But where the kernel refuses a link with EINVAL, as it does for a device that is not there at that
//! moment, aya attaches over netlink instead: that would replace whatever program is there by then, and outlive
//! everybody. What is made here is a link or nothing, and a link never takes another program's place
//! (`dev_xdp_attach`, net/core/dev.c).

#![expect(
    unsafe_code,
    reason = "bpf(2), for which neither rustix nor libc has functions"
)]

use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use xsk_client::wire::XdpMode;

/// The members of `union bpf_attr` (include/uapi/linux/bpf.h) for BPF_LINK_CREATE.
#[repr(C)]
struct LinkCreate {
    program: u32,
    interface_index: u32,
    attach_type: u32,
    flags: u32,
}

/// The same for BPF_OBJ_PIN.
#[repr(C)]
struct ObjPin {
    path: u64,
    fd: u32,
    flags: u32,
}

const BPF_OBJ_PIN: libc::c_int = 6;
const BPF_LINK_CREATE: libc::c_int = 28;
/// BPF_XDP of `enum bpf_attach_type`.
const ATTACH_XDP: u32 = 37;
/// include/uapi/linux/if_link.h.
const XDP_FLAGS_SKB_MODE: u32 = 1 << 1;
const XDP_FLAGS_DRV_MODE: u32 = 1 << 2;

/// Attaches a loaded program to a device. Closing the last fd of the link detaches it, unless it is pinned.
///
/// # Errors
///
/// EBUSY or EEXIST where another program is there; EINVAL where the device is not; EOPNOTSUPP or ERANGE where the
/// driver takes no program, or not at the device's MTU. Linux 5.9.
pub fn attach(program: BorrowedFd<'_>, interface_index: u32, mode: XdpMode) -> io::Result<OwnedFd> {
    let attributes = LinkCreate {
        program: number(program.as_raw_fd())?,
        interface_index,
        attach_type: ATTACH_XDP,
        flags: match mode {
            XdpMode::Native => XDP_FLAGS_DRV_MODE,
            XdpMode::Generic => XDP_FLAGS_SKB_MODE,
        },
    };
    // SAFETY: LinkCreate is what BPF_LINK_CREATE reads, and the kernel takes what lies beyond its size as zero.
    let fd = unsafe { bpf(BPF_LINK_CREATE, &attributes)? };
    // SAFETY: the kernel has just made this fd for us, CLOEXEC as every BPF fd; nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Gives a link a name in a BPF file system, by which it outlives its fds.
///
/// # Errors
///
/// EEXIST, EACCES; EPERM where the path is not on a BPF file system.
pub fn pin(link: BorrowedFd<'_>, path: &Path) -> io::Result<()> {
    let path = CString::new(path.as_os_str().as_bytes()).map_err(io::Error::other)?;
    let attributes = ObjPin {
        path: path.as_ptr().addr().try_into().map_err(io::Error::other)?,
        fd: number(link.as_raw_fd())?,
        flags: 0,
    };
    // SAFETY: ObjPin is what BPF_OBJ_PIN reads; its path is a C string that lives across the call.
    unsafe { bpf(BPF_OBJ_PIN, &attributes)? };
    Ok(())
}

/// bpf(2).
///
/// # Safety
///
/// `attributes` is what `command` reads.
unsafe fn bpf<T>(command: libc::c_int, attributes: &T) -> io::Result<RawFd> {
    let attributes = std::ptr::from_ref(attributes);
    // SAFETY: pointer and size are those of a live value; the caller vouches for its meaning.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, attributes, size_of::<T>()) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    RawFd::try_from(result).map_err(io::Error::other)
}

fn number(fd: RawFd) -> io::Result<u32> {
    u32::try_from(fd).map_err(io::Error::other)
}
