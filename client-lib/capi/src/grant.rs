//! What was granted: numbers, names, and fds with one owner each.

#![expect(unsafe_code, reason = "what C passes are pointers")]

use std::ffi::{CString, c_char, c_int};
use std::os::fd::{AsRawFd, IntoRawFd, OwnedFd};
use std::ptr;

use xsk_client::wire::{Acquired, BindReply, Direction, RingSizes, SocketKind};

use crate::client::set;
use crate::outcome::{Failure, Status, guarded, guarded_value};

/// Sockets of one lease.
#[derive(Debug)]
pub struct Grant {
    lease: u64,
    interface: CString,
    interface_index: u32,
    kind: SocketKind,
    direction: Direction,
    rings: RingSizes,
    /// The umem and its length, of kind `bound`.
    umem: Option<(OwnedFd, u64)>,
    /// In the order of the queues; an fd until it is taken. None yet of kind `bound`, before they are bound.
    sockets: Vec<(u32, Option<OwnedFd>)>,
}

/// One of a socket's rings.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C)]
pub enum Ring {
    /// Chunks to receive into: XDP_UMEM_PGOFF_FILL_RING.
    XskClientFillRing = 0,
    /// Chunks that were sent: XDP_UMEM_PGOFF_COMPLETION_RING.
    XskClientCompletionRing = 1,
    /// Frames received: XDP_PGOFF_RX_RING.
    XskClientRxRing = 2,
    /// Frames to send: XDP_PGOFF_TX_RING.
    XskClientTxRing = 3,
}

impl Grant {
    /// `fds` are the sockets in the order of `acquired.sockets`, or the umem alone.
    pub(crate) fn new(acquired: &Acquired, mut fds: Vec<OwnedFd>) -> Result<Self, Failure> {
        let fault = |text| Failure::of(Status::XskClientFault, text);
        let umem = match acquired.umem {
            Some(shape) => Some((
                fds.pop().ok_or_else(|| fault("a umem without an fd"))?,
                shape.bytes(),
            )),
            None => None,
        };
        let queues = acquired.sockets.iter().map(|socket| socket.queue);
        let interface = CString::new(acquired.interface.to_string());
        Ok(Self {
            lease: acquired.lease,
            interface: interface.map_err(|_| fault("a name with a NUL"))?,
            interface_index: acquired.interface_index,
            kind: acquired.kind,
            direction: acquired.direction,
            rings: acquired.rings,
            umem,
            sockets: queues.zip(fds.into_iter().map(Some)).collect(),
        })
    }

    /// Its lease, if its sockets are for the broker to bind.
    pub(crate) fn lease_to_bind(&self) -> Result<u64, Failure> {
        match self.kind {
            SocketKind::Bound => Ok(self.lease),
            kind => Err(Failure::usage(format!(
                "the sockets of lease {} are of kind {kind}: bind them yourself",
                self.lease
            ))),
        }
    }

    /// Takes what the broker has bound, in the order of `bound.sockets`.
    pub(crate) fn take_in(&mut self, bound: &BindReply, sockets: Vec<OwnedFd>) {
        let queues = bound.sockets.iter().map(|socket| socket.queue);
        self.sockets = queues.zip(sockets.into_iter().map(Some)).collect();
    }

    fn ring_entries(&self, ring: u32) -> Option<u32> {
        match ring {
            _ if self.kind == SocketKind::Bare => None,
            ring if ring == Ring::XskClientFillRing as u32 => Some(self.rings.fill),
            ring if ring == Ring::XskClientCompletionRing as u32 => Some(self.rings.completion),
            ring if ring == Ring::XskClientRxRing as u32 => {
                self.direction.receives().then_some(self.rings.rx)
            }
            ring if ring == Ring::XskClientTxRing as u32 => self.direction.sends().then_some(self.rings.tx),
            _ => None,
        }
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
        // By queue, whatever the order of the fds; or the umem's alone.
        let (acquired, fds) = inherited.into_parts();
        let mut places: Vec<Option<OwnedFd>> = fds.into_iter().map(Some).collect();
        let named = acquired.sockets.iter();
        let sockets: Option<Vec<OwnedFd>> = named
            .map(|socket| socket.socket_file_descriptor)
            .chain(acquired.umem_file_descriptor)
            .map(|index| places.get_mut(usize::try_from(index).ok()?)?.take())
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

/// The fd of the umem of a grant of kind XSK_CLIENT_BOUND, to be mapped before xsk_client_bind(); the mapping stays when the
/// grant closes it. -1 for other kinds and for NULL.
///
/// # Safety
///
/// `grant` is NULL or came from this library.
// SAFETY: as above.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn xsk_grant_umem_fd(grant: *const Grant) -> c_int {
    guarded_value(-1, || {
        // SAFETY: what the caller passes, by this function's contract.
        let (memfd, _) = unsafe { grant.as_ref() }?.umem.as_ref()?;
        Some(memfd.as_raw_fd())
    })
}

/// The length of that umem in bytes; 0 where there is none.
///
/// # Safety
///
/// `grant` is NULL or came from this library.
// SAFETY: as above.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn xsk_grant_umem_bytes(grant: *const Grant) -> usize {
    guarded_value(0, || {
        // SAFETY: what the caller passes, by this function's contract.
        let (_, bytes) = unsafe { grant.as_ref() }?.umem.as_ref()?;
        usize::try_from(*bytes).ok()
    })
}

/// How many entries each socket's ring has that an enum xsk_client_ring names; 0 where there is no such ring: of
/// XSK_CLIENT_BARE, and of a direction that was not granted.
///
/// # Safety
///
/// `grant` is NULL or came from this library.
// SAFETY: as above.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn xsk_grant_ring_entries(grant: *const Grant, ring: u32) -> u32 {
    // SAFETY: what the caller passes, by this function's contract.
    guarded_value(0, || unsafe { grant.as_ref() }?.ring_entries(ring))
}

/// How many sockets there are; 0 for NULL, and before xsk_client_bind() for XSK_CLIENT_BOUND.
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
