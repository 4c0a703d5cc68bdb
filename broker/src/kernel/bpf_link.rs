//! BPF links of XDP programs: made, pinned, opened again and updated by bpf(2) itself.
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

/// The same for BPF_LINK_UPDATE.
#[repr(C)]
struct LinkUpdate {
    link: u32,
    new_program: u32,
    flags: u32,
    old_program: u32,
}

/// The same for BPF_OBJ_GET_INFO_BY_FD.
#[repr(C)]
struct ObjGetInfo {
    fd: u32,
    info_bytes: u32,
    info: u64,
}

/// The same for BPF_PROG_GET_FD_BY_ID.
#[repr(C)]
struct GetById {
    id: u32,
    next_id: u32,
    flags: u32,
}

/// The beginning of `struct bpf_link_info`, with its variant for XDP.
#[repr(C)]
#[derive(Default)]
struct RawLinkInfo {
    kind: u32,
    id: u32,
    program: u32,
    padding: u32,
    interface_index: u32,
    padding_to_8: u32,
}

/// The beginning of `struct bpf_prog_info`.
#[repr(C)]
#[derive(Default)]
struct RawProgramInfo {
    kind: u32,
    id: u32,
    tag: [u8; 8],
    jited_bytes: u32,
    translated_bytes: u32,
    jited: u64,
    translated: u64,
    load_time: u64,
    created_by: u32,
    map_count: u32,
    map_ids: u64,
    name: [u8; 16],
}

const BPF_OBJ_PIN: libc::c_int = 6;
const BPF_OBJ_GET: libc::c_int = 7;
const BPF_PROG_GET_FD_BY_ID: libc::c_int = 13;
const BPF_OBJ_GET_INFO_BY_FD: libc::c_int = 15;
const BPF_LINK_CREATE: libc::c_int = 28;
const BPF_LINK_UPDATE: libc::c_int = 29;
/// BPF_F_REPLACE: only if the program is the one that is told.
const REPLACE: u32 = 1 << 2;
/// BPF_LINK_TYPE_XDP of `enum bpf_link_type`.
const LINK_TYPE_XDP: u32 = 6;
/// BPF_PROG_TYPE_XDP of `enum bpf_prog_type`.
const PROGRAM_TYPE_XDP: u32 = 6;
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
    let mut attributes = LinkCreate {
        program: number(program.as_raw_fd())?,
        interface_index,
        attach_type: ATTACH_XDP,
        flags: match mode {
            XdpMode::Native => XDP_FLAGS_DRV_MODE,
            XdpMode::Generic => XDP_FLAGS_SKB_MODE,
        },
    };
    // SAFETY: LinkCreate is what BPF_LINK_CREATE reads, and the kernel takes what lies beyond its size as zero.
    unsafe { bpf_fd(BPF_LINK_CREATE, &mut attributes) }
}

/// Has a link run another program, without a moment in which it runs none (`bpf_xdp_link_update`, net/core/dev.c). Both must
/// have been loaded for the same attach type, as aya does for BPF_XDP.
///
/// # Errors
///
/// EPERM where the link does not run `old` any more, EINVAL for another attach type, ENOLINK where the device is gone.
/// Linux 5.9.
pub fn update(link: BorrowedFd<'_>, old: BorrowedFd<'_>, new: BorrowedFd<'_>) -> io::Result<()> {
    let mut attributes = LinkUpdate {
        link: number(link.as_raw_fd())?,
        new_program: number(new.as_raw_fd())?,
        flags: REPLACE,
        old_program: number(old.as_raw_fd())?,
    };
    // SAFETY: LinkUpdate is what BPF_LINK_UPDATE reads.
    unsafe { bpf(BPF_LINK_UPDATE, &mut attributes)? };
    Ok(())
}

/// What a link of an XDP program attaches.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LinkInfo {
    /// The program that it runs now.
    pub program: u32,
    /// Its device, in whatever network namespace that is; 0 where it is gone.
    pub interface_index: u32,
}

/// Looks at a link. `None`: it is no link of an XDP program.
///
/// # Errors
///
/// EINVAL where the fd is no BPF object. Linux 5.9.
pub fn link_info(link: BorrowedFd<'_>) -> io::Result<Option<LinkInfo>> {
    let mut info = RawLinkInfo::default();
    get_info(link, &mut info)?;
    Ok((info.kind == LINK_TYPE_XDP).then_some(LinkInfo {
        program: info.program,
        interface_index: info.interface_index,
    }))
}

/// What an XDP program is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProgramInfo {
    /// Its id.
    pub id: u32,
    /// What its instructions hash to, whichever maps it uses.
    pub tag: u64,
    /// Its name.
    pub name: String,
    /// The ids of its maps.
    pub maps: Vec<u32>,
}

/// Looks at a program. `None`: it is no XDP program.
///
/// # Errors
///
/// EINVAL where the fd is no BPF object.
pub fn program_info(program: BorrowedFd<'_>) -> io::Result<Option<ProgramInfo>> {
    /// Ours have two.
    const MAPS_MAX: u32 = 16;

    let mut maps = [0_u32; MAPS_MAX as usize];
    let mut info = RawProgramInfo {
        map_count: MAPS_MAX,
        map_ids: maps
            .as_mut_ptr()
            .expose_provenance()
            .try_into()
            .map_err(io::Error::other)?,
        ..RawProgramInfo::default()
    };
    get_info(program, &mut info)?;
    if info.kind != PROGRAM_TYPE_XDP {
        return Ok(None);
    }
    let count = usize::try_from(info.map_count.min(MAPS_MAX)).unwrap_or(0);
    let name = info.name.split(|byte| *byte == 0).next().unwrap_or_default();
    Ok(Some(ProgramInfo {
        id: info.id,
        tag: u64::from_be_bytes(info.tag),
        name: String::from_utf8_lossy(name).into_owned(),
        maps: maps.into_iter().take(count).collect(),
    }))
}

fn get_info<T>(object: BorrowedFd<'_>, info: &mut T) -> io::Result<()> {
    let mut attributes = ObjGetInfo {
        fd: number(object.as_raw_fd())?,
        info_bytes: u32::try_from(size_of::<T>()).map_err(io::Error::other)?,
        info: std::ptr::from_mut(info)
            .expose_provenance()
            .try_into()
            .map_err(io::Error::other)?,
    };
    // SAFETY: ObjGetInfo is what the command reads; it writes at most `info_bytes` to `info`, which is that large, made of
    // integers alone, and outlives the call, as do the ids that it may lead to.
    unsafe { bpf(BPF_OBJ_GET_INFO_BY_FD, &mut attributes)? };
    Ok(())
}

/// Opens what is pinned under a path.
///
/// # Errors
///
/// ENOENT; EACCES by the file's mode.
pub fn open_pinned(path: &Path) -> io::Result<OwnedFd> {
    let path = CString::new(path.as_os_str().as_bytes()).map_err(io::Error::other)?;
    let mut attributes = ObjPin {
        path: path.as_ptr().addr().try_into().map_err(io::Error::other)?,
        fd: 0,
        flags: 0,
    };
    // SAFETY: BPF_OBJ_GET reads the same members; its path is a C string that lives across the call.
    unsafe { bpf_fd(BPF_OBJ_GET, &mut attributes) }
}

/// Opens a program by its id.
///
/// # Errors
///
/// ENOENT; EPERM for who is not root.
pub fn program_by_id(id: u32) -> io::Result<OwnedFd> {
    let mut attributes = GetById {
        id,
        next_id: 0,
        flags: 0,
    };
    // SAFETY: GetById is what BPF_PROG_GET_FD_BY_ID reads.
    unsafe { bpf_fd(BPF_PROG_GET_FD_BY_ID, &mut attributes) }
}

/// Gives a BPF object a name in a BPF file system, by which it outlives its fds.
///
/// # Errors
///
/// EEXIST, EACCES; EPERM where the path is not on a BPF file system.
pub fn pin(object: BorrowedFd<'_>, path: &Path) -> io::Result<()> {
    let path = CString::new(path.as_os_str().as_bytes()).map_err(io::Error::other)?;
    let mut attributes = ObjPin {
        path: path.as_ptr().addr().try_into().map_err(io::Error::other)?,
        fd: number(object.as_raw_fd())?,
        flags: 0,
    };
    // SAFETY: ObjPin is what BPF_OBJ_PIN reads; its path is a C string that lives across the call.
    unsafe { bpf(BPF_OBJ_PIN, &mut attributes)? };
    Ok(())
}

/// bpf(2).
///
/// # Safety
///
/// `attributes` is what `command` reads, and what it writes to.
pub(super) unsafe fn bpf<T>(command: libc::c_int, attributes: &mut T) -> io::Result<RawFd> {
    let attributes = std::ptr::from_mut(attributes);
    // SAFETY: pointer and size are those of a live value; the caller vouches for its meaning.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, attributes, size_of::<T>()) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    RawFd::try_from(result).map_err(io::Error::other)
}

/// bpf(2), of a command that makes an fd.
///
/// # Safety
///
/// `command` does that, and `attributes` is what it reads, and what it writes to.
pub(super) unsafe fn bpf_fd<T>(command: libc::c_int, attributes: &mut T) -> io::Result<OwnedFd> {
    // SAFETY: the caller's promise.
    let fd = unsafe { bpf(command, attributes)? };
    // SAFETY: the kernel has just made this fd for us, CLOEXEC as every BPF fd; nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

pub(super) fn number(fd: RawFd) -> io::Result<u32> {
    u32::try_from(fd).map_err(io::Error::other)
}
