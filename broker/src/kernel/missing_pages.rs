//! Pages that are not there stay away: as long as a [`MissingPages`] guards a mapping, the kernel fills no hole of it.
//!
//! Registering a umem pins its pages, and would allocate those that are missing, charged to the memory of who registers:
//! us, for somebody else's memory. userfaultfd(2) has the kernel ask for missing pages; asked for user faults only, it
//! refuses those that it meets itself (`handle_userfault`, fs/userfaultfd.c, Linux 5.11), and the caller gets EFAULT, or
//! ENOMEM where some pages could be pinned.

#![expect(
    unsafe_code,
    reason = "userfaultfd(2) and its ioctls, for which rustix has no safe functions"
)]

use std::io;
use std::os::fd::OwnedFd;

use rustix::ioctl::{self, Updater, opcode};
use rustix::mm::{UserfaultfdFlags, userfaultfd};
use xsk_client::sys::Mapping;

/// Guards a mapping until dropped.
#[derive(Debug)]
pub struct MissingPages {
    _guard: OwnedFd,
}

/// Faults of user space only: of the kernel's own, none is answered. Needs no privilege then
/// (`UFFD_USER_MODE_ONLY`, include/uapi/linux/userfaultfd.h).
const USER_MODE_ONLY: UserfaultfdFlags = UserfaultfdFlags::from_bits_retain(1);
const API: u64 = 0xaa;
const REGISTER_MODE_MISSING: u64 = 1;

/// `struct uffdio_api`
#[repr(C)]
struct Api {
    api: u64,
    features: u64,
    ioctls: u64,
}

/// `struct uffdio_register`
#[repr(C)]
struct Register {
    start: u64,
    length: u64,
    mode: u64,
    ioctls: u64,
}

impl MissingPages {
    /// Guards a mapping. `None` where the kernel has no userfaultfd, or keeps it from us: then a holder that is fast
    /// enough may have us pay for its umem, within its limit of umem bytes.
    pub fn fail(mapping: &Mapping) -> Option<Self> {
        match Self::guard(mapping) {
            Ok(guard) => Some(guard),
            Err(error) => {
                tracing::debug!(%error, "no userfaultfd");
                None
            }
        }
    }

    /// Whether the kernel can do that.
    pub fn can_be_kept_away() -> bool {
        open().is_ok()
    }

    fn guard(mapping: &Mapping) -> io::Result<Self> {
        let guard = open()?;
        let mut register = Register {
            start: mapping.address(),
            length: u64::try_from(mapping.len()).map_err(|_| io::ErrorKind::InvalidInput)?,
            mode: REGISTER_MODE_MISSING,
            ioctls: 0,
        };
        // SAFETY: UFFDIO_REGISTER reads and writes a `struct uffdio_register`, which `Register` is.
        let register = unsafe {
            Updater::<{ opcode::read_write::<Register>(0xaa, 0x00) }, Register>::new(&mut register)
        };
        // SAFETY: the fd is a userfaultfd; all that changes is how faults in the mapping are answered, and nobody but
        // the kernel touches that mapping.
        unsafe { ioctl::ioctl(&guard, register) }?;
        Ok(Self { _guard: guard })
    }
}

fn open() -> io::Result<OwnedFd> {
    // SAFETY: the fd watches nothing yet; `guard` alone has it watch a mapping.
    let fd = unsafe { userfaultfd(UserfaultfdFlags::CLOEXEC | USER_MODE_ONLY) }?;
    let mut api = Api {
        api: API,
        features: 0,
        ioctls: 0,
    };
    // SAFETY: UFFDIO_API reads and writes a `struct uffdio_api`, which `Api` is.
    let api = unsafe { Updater::<{ opcode::read_write::<Api>(0xaa, 0x3f) }, Api>::new(&mut api) };
    // SAFETY: the fd is a userfaultfd, and this is its handshake.
    unsafe { ioctl::ioctl(&fd, api) }?;
    Ok(fd)
}

#[cfg(test)]
mod tests {
    use std::io::ErrorKind;

    use rustix::fs::MemfdFlags;
    use xsk_client::sys::{self, Prefault};

    use super::*;

    const BYTES: usize = 16 * 4096;

    /// A mapping with its first half there.
    fn half() -> (OwnedFd, Mapping) {
        let memfd = rustix::fs::memfd_create("half", MemfdFlags::CLOEXEC).unwrap();
        rustix::fs::ftruncate(&memfd, 16 * 4096).unwrap();
        drop(Mapping::new(&memfd, 0, BYTES / 2, Prefault::Yes).unwrap());
        let mapping = Mapping::new(&memfd, 0, BYTES, Prefault::No).unwrap();
        (memfd, mapping)
    }

    fn pages(memfd: &OwnedFd) -> i64 {
        rustix::fs::fstat(memfd).unwrap().st_blocks * 512 / 4096
    }

    /// Has the kernel write one byte to a place in the mapping.
    fn kernel_writes(mapping: &Mapping, offset: usize) -> rustix::io::Result<usize> {
        let (reader, writer) = rustix::pipe::pipe().unwrap();
        rustix::io::write(&writer, b"x").unwrap();
        let place = mapping.start().as_ptr().wrapping_add(offset);
        // SAFETY: one byte within the mapping, of which nobody else has a reference.
        let place = unsafe { std::slice::from_raw_parts_mut(place, 1) };
        rustix::io::read(&reader, place)
    }

    #[test]
    fn the_kernel_fills_no_hole_of_a_guarded_mapping() {
        if !MissingPages::can_be_kept_away() {
            println!("SKIP the_kernel_fills_no_hole_of_a_guarded_mapping: no userfaultfd here");
            return;
        }
        let (memfd, mapping) = half();
        let guard = MissingPages::fail(&mapping).unwrap();
        assert_eq!(kernel_writes(&mapping, 0), Ok(1));
        assert_eq!(kernel_writes(&mapping, BYTES / 2), Err(rustix::io::Errno::FAULT));
        assert_eq!(pages(&memfd), 8);
        drop(guard);
        assert_eq!(kernel_writes(&mapping, BYTES / 2), Ok(1));
        assert_eq!(pages(&memfd), 9);
    }

    #[test]
    fn a_umem_with_a_hole_is_not_registered() {
        let socket = match sys::xdp_socket() {
            Ok(socket) => socket,
            Err(error) if error.kind() == ErrorKind::PermissionDenied => {
                println!("SKIP a_umem_with_a_hole_is_not_registered: making the socket takes CAP_NET_RAW");
                return;
            }
            Err(error) => panic!("socket(AF_XDP): {error}"),
        };
        let (memfd, mapping) = half();
        let guard = MissingPages::fail(&mapping).unwrap();
        let refused = sys::register_umem(&socket, &mapping, 4096, 0).unwrap_err();
        assert_eq!(refused.raw_os_error(), Some(libc::ENOMEM));
        assert_eq!(pages(&memfd), 8);
        // Without the guard it is, at the expense of who registers.
        drop(guard);
        sys::register_umem(&socket, &mapping, 4096, 0).unwrap();
        assert_eq!(pages(&memfd), 16);
    }
}
