//! What was granted: numbers, names, and fds with one owner each.

#![expect(unsafe_code, reason = "what C passes are pointers")]

use std::ffi::{CString, c_char, c_int};
use std::os::fd::{AsRawFd, IntoRawFd, OwnedFd};
use std::ptr;

use xsk_client::wire::Acquired;

use crate::client::set;
use crate::outcome::{Failure, Status, guarded, guarded_value};

/// Sockets of one lease.
#[derive(Debug)]
pub struct Grant {
    lease: u64,
    interface: CString,
    interface_index: u32,
    /// In the order of the queues; an fd until it is taken.
    sockets: Vec<(u32, Option<OwnedFd>)>,
}

impl Grant {
    /// `sockets` in the order of `acquired.sockets`.
    pub(crate) fn new(acquired: &Acquired, sockets: Vec<OwnedFd>) -> Result<Self, Failure> {
        let queues = acquired.sockets.iter().map(|socket| socket.queue);
        let interface = CString::new(acquired.interface.to_string());
        Ok(Self {
            lease: acquired.lease,
            interface: interface.map_err(|_| Failure::of(Status::XskClientFault, "a name with a NUL"))?,
            interface_index: acquired.interface_index,
            sockets: queues.zip(sockets.into_iter().map(Some)).collect(),
        })
    }
}

/// Takes the sockets that `xsk-broker grant IF:QUEUES -- COMMAND` has left to this process, once, before anything else
/// could use their fds. `*grant` is set if 0 is returned, to be given to xsk_grant_free(), and to NULL else.
///
/// Errors: XSK_CLIENT_NOT_INHERITED, XSK_CLIENT_USAGE.
///
/// # Safety
///
/// `grant` is NULL or a place for a pointer.
// SAFETY: no other function of this library has that name, and C's names beginning with xsk_client_ are ours.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn xsk_client_inherit(grant: *mut *mut Grant) -> c_int {
    guarded(|| {
        // SAFETY: what the caller passes, by this function's contract.
        unsafe { set(grant, ptr::null_mut(), "grant") }?;
        let inherited = xsk_client::Grant::from_env()
            .map_err(|error| Failure::of(Status::XskClientNotInherited, error.to_string()))?;
        // By queue, whatever the order of the fds.
        let (acquired, fds) = inherited.into_parts();
        let mut places: Vec<Option<OwnedFd>> = fds.into_iter().map(Some).collect();
        let sockets: Option<Vec<OwnedFd>> = acquired
            .sockets
            .iter()
            .map(|socket| {
                places
                    .get_mut(usize::try_from(socket.socket_file_descriptor).ok()?)?
                    .take()
            })
            .collect();
        let sockets = sockets.ok_or_else(|| {
            Failure::of(
                Status::XskClientNotInherited,
                "the sockets do not match the lease",
            )
        })?;
        let granted = Grant::new(&acquired, sockets)?;
        // SAFETY: as above.
        unsafe { set(grant, Box::into_raw(Box::new(granted)), "grant") }
    })
}

/// Frees a grant and closes the fds that were not taken. The lease goes on if a socket is bound and active; see
/// xsk_client_release().
///
/// # Safety
///
/// `grant` is NULL or came from this library, and is not used any more.
// SAFETY: as above.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn xsk_grant_free(grant: *mut Grant) {
    guarded(|| {
        if !grant.is_null() {
            // SAFETY: made by `Box::into_raw`, and given back once, by this function's contract.
            drop(unsafe { Box::from_raw(grant) });
        }
        Ok(())
    });
}

/// The lease's number, which xsk_client_activate() and xsk_client_release() want; 0 for NULL.
///
/// # Safety
///
/// `grant` is NULL or came from this library.
// SAFETY: as above.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn xsk_grant_lease(grant: *const Grant) -> u64 {
    // SAFETY: what the caller passes, by this function's contract.
    guarded_value(0, || Some(unsafe { grant.as_ref() }?.lease))
}

/// The device's name in the broker's network namespace; NULL for NULL. It belongs to the grant.
///
/// # Safety
///
/// `grant` is NULL or came from this library.
// SAFETY: as above.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn xsk_grant_interface(grant: *const Grant) -> *const c_char {
    guarded_value(ptr::null(), || {
        // SAFETY: what the caller passes, by this function's contract.
        Some(unsafe { grant.as_ref() }?.interface.as_ptr())
    })
}

/// The device's index there, with which a socket is bound by hand; 0 for NULL.
///
/// # Safety
///
/// `grant` is NULL or came from this library.
// SAFETY: as above.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn xsk_grant_interface_index(grant: *const Grant) -> u32 {
    // SAFETY: what the caller passes, by this function's contract.
    guarded_value(0, || Some(unsafe { grant.as_ref() }?.interface_index))
}

/// How many sockets there are; 0 for NULL.
///
/// # Safety
///
/// `grant` is NULL or came from this library.
// SAFETY: as above.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn xsk_grant_count(grant: *const Grant) -> usize {
    // SAFETY: what the caller passes, by this function's contract.
    guarded_value(0, || Some(unsafe { grant.as_ref() }?.sockets.len()))
}

/// The queue of the socket at `index`, ascending from 0; UINT32_MAX where there is none.
///
/// # Safety
///
/// `grant` is NULL or came from this library.
// SAFETY: as above.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn xsk_grant_queue(grant: *const Grant, index: usize) -> u32 {
    guarded_value(u32::MAX, || {
        // SAFETY: what the caller passes, by this function's contract.
        Some(unsafe { grant.as_ref() }?.sockets.get(index)?.0)
    })
}

/// The fd of the socket at `index`, which the grant goes on owning: it is closed by xsk_grant_free(). -1 where there is
/// none, or it was taken.
///
/// # Safety
///
/// `grant` is NULL or came from this library.
// SAFETY: as above.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn xsk_grant_fd(grant: *const Grant, index: usize) -> c_int {
    guarded_value(-1, || {
        // SAFETY: what the caller passes, by this function's contract.
        let (_, socket) = unsafe { grant.as_ref() }?.sockets.get(index)?;
        Some(socket.as_ref()?.as_raw_fd())
    })
}

/// The fd of the socket at `index`, which is the caller's from now on, to be closed or to be given to libxdp, which
/// closes it in xsk_umem__delete(), and when xsk_umem__create_with_fd() fails. It is close-on-exec. -1 where there is
/// none, or it was taken before.
///
/// # Safety
///
/// `grant` is NULL or came from this library.
// SAFETY: as above.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn xsk_grant_take_fd(grant: *mut Grant, index: usize) -> c_int {
    guarded_value(-1, || {
        // SAFETY: what the caller passes, by this function's contract; nobody else uses it meanwhile.
        let (_, socket) = unsafe { grant.as_mut() }?.sockets.get_mut(index)?;
        Some(socket.take()?.into_raw_fd())
    })
}
