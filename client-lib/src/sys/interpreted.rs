//! Mappings for Miri, which maps no files: memory in their place, so that rings and umem, and all that is done to them, can
//! be run by it. Who maps the same place of the same file gets the same memory.

#![expect(unsafe_code, reason = "memory in place of mappings")]

use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::ffi::c_void;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};
use std::ptr::NonNull;
use std::sync::Mutex;

use rustix::io::Errno;

use super::Prefault;

const PAGE: usize = 4096;

/// A place of a file.
struct Place {
    fd: RawFd,
    offset: u64,
    memory: NonNull<u8>,
    layout: Layout,
    mappings: usize,
}

// SAFETY: memory of the whole process, to which only an address is kept here.
unsafe impl Send for Place {}

static PLACES: Mutex<Vec<Place>> = Mutex::new(Vec::new());

pub(super) fn map(fd: BorrowedFd<'_>, offset: u64, bytes: usize, _: Prefault) -> io::Result<NonNull<c_void>> {
    let mut places = PLACES.lock().map_err(|_| Errno::IO)?;
    let fd = fd.as_raw_fd();
    let known = places
        .iter_mut()
        .find(|place| (place.fd, place.offset) == (fd, offset));
    if let Some(place) = known {
        assert!(bytes <= place.layout.size(), "mapped in another length");
        place.mappings += 1;
        return Ok(place.memory.cast());
    }
    let whole_pages = bytes.next_multiple_of(PAGE);
    let layout = Layout::from_size_align(whole_pages, PAGE).map_err(|_| Errno::INVAL)?;
    // SAFETY: callers map no empty range.
    let memory = NonNull::new(unsafe { alloc_zeroed(layout) }).ok_or(Errno::NOMEM)?;
    places.push(Place {
        fd,
        offset,
        memory,
        layout,
        mappings: 1,
    });
    Ok(memory.cast())
}

/// # Safety
///
/// It is a mapping of `map`'s, to which nothing leads any more.
pub(super) unsafe fn munmap(start: *mut c_void, _: usize) -> io::Result<()> {
    let mut places = PLACES.lock().map_err(|_| Errno::IO)?;
    let place = places
        .iter()
        .position(|place| place.memory.as_ptr() == start.cast());
    let place = place.ok_or(Errno::INVAL)?;
    places[place].mappings -= 1;
    if places[place].mappings == 0 {
        let Place { memory, layout, .. } = places.swap_remove(place);
        // SAFETY: allocated by `map` with that layout, and the last mapping is gone.
        unsafe { dealloc(memory.as_ptr(), layout) };
    }
    Ok(())
}
