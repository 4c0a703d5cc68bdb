//! The connection, and what is asked over it.

#![expect(unsafe_code, reason = "what C passes are pointers")]

use std::ffi::{CStr, c_char, c_int};
use std::ptr;

use xsk_client::Broker;
use xsk_client::wire::{Acquire, Direction, RingSizes, SocketKind, Target, UmemShape};

use crate::grant::Grant;
use crate::outcome::{Failure, guarded};

/// A connection to the broker, from xsk_client_connect() to xsk_client_close().
#[derive(Debug)]
pub struct Client(Broker);

/// In which state a socket is handed over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C)]
pub enum Kind {
    /// Without rings, as libxdp wants it, which makes them itself. The policy has to allow `bare`.
    XskClientBare = 0,
    /// With rings, for who maps them by hand. The policy has to allow `prepared`.
    XskClientPrepared = 1,
    /// Registered and bound by the broker, for who maps rings and memory by hand: nothing is left of it that could be
    /// changed, it needs no RLIMIT_MEMLOCK, and it can be had for one direction. The policy has to allow `bound`; from
    /// about Linux 6.4. See xsk_client_bind().
    XskClientBound = 2,
}

/// Which way frames go. Less than both for XSK_CLIENT_BOUND only.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C)]
pub enum Way {
    /// Both.
    XskClientRxTx = 0,
    /// The socket receives, and has no TX ring.
    XskClientRx = 1,
    /// The socket sends, and has no RX ring.
    XskClientTx = 2,
}

/// What to ask for. Zeroed, it asks for sockets of kind XSK_CLIENT_BARE; interface and queues are needed.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub struct Request {
    /// The device's name in the broker's network namespace: "eth0".
    pub interface: *const c_char,
    /// Which of its queues: "4", "2-4", "1,3". All of them, or none.
    pub queues: *const c_char,
    /// An enum xsk_client_kind.
    pub kind: u32,
    /// Entries of each ring, a power of two; 0 is the broker's default. Not for XSK_CLIENT_BARE.
    pub ring_entries: u32,
    /// An enum xsk_client_direction. For XSK_CLIENT_BOUND.
    pub direction: u32,
    /// The umem's chunks, an even number; 0 is 2048. For XSK_CLIENT_BOUND.
    pub chunks: u32,
    /// The size of a chunk, 2048 or 4096; 0 is 2048. For XSK_CLIENT_BOUND.
    pub chunk_bytes: u32,
    /// A text for the broker's log and list, or NULL.
    pub label: *const c_char,
}

/// Connects to the broker's socket at `path`. NULL is the path that the variable XSK_BROKER_SOCKET names, else
/// /run/xsk-broker/broker.sock. `*client` is set if 0 is returned, to be given to xsk_client_close(), and to NULL else.
///
/// Errors: XSK_CLIENT_UNREACHABLE, XSK_CLIENT_USAGE.
///
/// # Safety
///
/// `path` is NULL or a string, `client` NULL or a place for a pointer.
// SAFETY: no other function of this library has that name, and C's names beginning with xsk_client_ are ours.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn xsk_client_connect(path: *const c_char, client: *mut *mut Client) -> c_int {
    guarded(|| {
        // SAFETY: what the caller passes, by this function's contract.
        unsafe { set(client, ptr::null_mut(), "client") }?;
        let broker = match path.is_null() {
            true => Broker::connect()?,
            // SAFETY: as above.
            false => Broker::connect_to(unsafe { text(path, "path") }?)?,
        };
        // SAFETY: as above.
        unsafe { set(client, Box::into_raw(Box::new(Client(broker))), "client") }
    })
}

/// Closes a connection. The leases that were acquired over it go on: they live as long as the process.
///
/// # Safety
///
/// `client` is NULL or came from xsk_client_connect(), and is not used any more.
// SAFETY: as above.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn xsk_client_close(client: *mut Client) {
    guarded(|| {
        if !client.is_null() {
            // SAFETY: made by `Box::into_raw` in `xsk_client_connect`, and given back once, by this function's contract.
            drop(unsafe { Box::from_raw(client) });
        }
        Ok(())
    });
}

/// Asks for sockets. `*grant` is set if 0 is returned, to be given to xsk_grant_free(), and to NULL else. Bind them (or
/// call xsk_client_bind(), for XSK_CLIENT_BOUND), then call xsk_client_activate(), within the time that the broker gives
/// (five seconds, if the policy says nothing else): the lease ends by itself otherwise.
///
/// Errors: XSK_CLIENT_DENIED, XSK_CLIENT_BUSY, XSK_CLIENT_REFUSED, XSK_CLIENT_UNREACHABLE, XSK_CLIENT_USAGE.
///
/// # Safety
///
/// `client` came from xsk_client_connect(), `request` is a request whose members are strings or NULL, `grant` a place for
/// a pointer; or they are NULL.
// SAFETY: as above.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn xsk_client_acquire(
    client: *mut Client,
    request: *const Request,
    grant: *mut *mut Grant,
) -> c_int {
    guarded(|| {
        // SAFETY: what the caller passes, by this function's contract.
        unsafe { set(grant, ptr::null_mut(), "grant") }?;
        // SAFETY: as above; nobody else uses it meanwhile, as the header says.
        let client = unsafe { client.as_mut() }.ok_or_else(|| Failure::usage("client is NULL"))?;
        // SAFETY: as above.
        let request = unsafe { request.as_ref() }.ok_or_else(|| Failure::usage("request is NULL"))?;
        // SAFETY: as above.
        let acquire = unsafe { acquire(request) }?;
        let (acquired, sockets) = client.0.acquire(&acquire)?;
        let granted = Grant::new(&acquired, sockets)?;
        // SAFETY: as above.
        unsafe { set(grant, Box::into_raw(Box::new(granted)), "grant") }
    })
}

/// Has the broker bind the sockets of a grant of kind XSK_CLIENT_BOUND, once; the grant has them from then on. Before, map
/// xsk_grant_umem_fd() with MAP_SHARED and write to every page: all have to be there, so that your own cgroup pays for them,
/// and the kernel drops again what was only read (MAP_POPULATE).
/// After it, map the rings of each socket (XDP_MMAP_OFFSETS, XDP_PGOFF_RX_RING and so on; xsk_grant_ring_entries() tells
/// their sizes), fill the fill ring, and call xsk_client_activate(). The sockets share the umem: each needs chunks of its
/// own, and libxdp's functions for rings work on what was mapped, once its structs are set.
///
/// Errors: XSK_CLIENT_BUSY, XSK_CLIENT_REFUSED where a page is missing, the kernel is too old, or it was called before;
/// XSK_CLIENT_UNREACHABLE, XSK_CLIENT_USAGE.
///
/// # Safety
///
/// `client` came from xsk_client_connect(), `grant` from this library; or they are NULL.
// SAFETY: as above.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn xsk_client_bind(client: *mut Client, grant: *mut Grant) -> c_int {
    guarded(|| {
        // SAFETY: what the caller passes, by this function's contract; nobody else uses it meanwhile.
        let client = unsafe { client.as_mut() }.ok_or_else(|| Failure::usage("client is NULL"))?;
        // SAFETY: as above.
        let grant = unsafe { grant.as_mut() }.ok_or_else(|| Failure::usage("grant is NULL"))?;
        let (bound, sockets) = client.0.bind(grant.lease_to_bind()?)?;
        grant.take_in(&bound, sockets);
        Ok(())
    })
}

/// Has packets redirected to the sockets of a lease, once they are bound. It may be called again.
///
/// Errors: XSK_CLIENT_REFUSED where a socket is not bound, is bound to another queue, or the lease has ended;
/// XSK_CLIENT_UNREACHABLE, XSK_CLIENT_USAGE.
///
/// # Safety
///
/// `client` is NULL or came from xsk_client_connect().
// SAFETY: as above.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn xsk_client_activate(client: *mut Client, lease: u64) -> c_int {
    guarded(|| {
        // SAFETY: what the caller passes, by this function's contract.
        let client = unsafe { client.as_mut() }.ok_or_else(|| Failure::usage("client is NULL"))?;
        client.0.activate(lease)?;
        Ok(())
    })
}

/// Ends a lease: no more packets are redirected to its sockets. Close them too. It is no error where the lease has ended.
///
/// Errors: XSK_CLIENT_UNREACHABLE, XSK_CLIENT_USAGE.
///
/// # Safety
///
/// `client` is NULL or came from xsk_client_connect().
// SAFETY: as above.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn xsk_client_release(client: *mut Client, lease: u64) -> c_int {
    guarded(|| {
        // SAFETY: what the caller passes, by this function's contract.
        let client = unsafe { client.as_mut() }.ok_or_else(|| Failure::usage("client is NULL"))?;
        client.0.release(lease)?;
        Ok(())
    })
}

/// Puts a value where the caller has a place for it.
///
/// # Safety
///
/// `place` is null or may be written.
pub(crate) unsafe fn set<T>(place: *mut T, value: T, name: &str) -> Result<(), Failure> {
    if place.is_null() {
        return Err(Failure::usage(format!("{name} is NULL")));
    }
    // SAFETY: not null, and writable by the contract. What was there is a pointer, which needs no drop.
    unsafe { place.write(value) };
    Ok(())
}

/// A string of the caller's, for as long as the call lasts.
///
/// # Safety
///
/// `text` is null or a string that lives through the call.
unsafe fn text<'a>(text: *const c_char, name: &str) -> Result<&'a str, Failure> {
    if text.is_null() {
        return Err(Failure::usage(format!("{name} is NULL")));
    }
    // SAFETY: a string, by the contract.
    let text = unsafe { CStr::from_ptr(text) };
    text.to_str()
        .map_err(|_| Failure::usage(format!("{name} is not UTF-8")))
}

/// # Safety
///
/// The request's members are null or strings that live through the call.
unsafe fn acquire(request: &Request) -> Result<Acquire, Failure> {
    // SAFETY: by the contract.
    let interface = unsafe { text(request.interface, "interface") }?;
    // SAFETY: by the contract.
    let queues = unsafe { text(request.queues, "queues") }?;
    let target: Target = format!("{interface}:{queues}")
        .parse()
        .map_err(|error| Failure::usage(format!("{interface}:{queues}: {error}")))?;
    let kind = match request.kind {
        kind if kind == Kind::XskClientBare as u32 => SocketKind::Bare,
        kind if kind == Kind::XskClientPrepared as u32 => SocketKind::Prepared,
        kind if kind == Kind::XskClientBound as u32 => SocketKind::Bound,
        other => return Err(Failure::usage(format!("kind {other} is no enum xsk_client_kind"))),
    };
    let mut acquire = Acquire::new(target, kind);
    if request.ring_entries != 0 {
        if kind == SocketKind::Bare {
            return Err(Failure::usage(
                "ring_entries is not for XSK_CLIENT_BARE: a bare socket has no rings",
            ));
        }
        acquire.rings = Some(RingSizes::all(request.ring_entries));
    }
    if kind == SocketKind::Bound {
        acquire.direction = Some(direction(request.direction)?);
        let or_default = |value, default| if value == 0 { default } else { value };
        acquire.umem = Some(UmemShape {
            chunks: or_default(request.chunks, UmemShape::DEFAULT.chunks),
            chunk_bytes: or_default(request.chunk_bytes, UmemShape::DEFAULT.chunk_bytes),
            ..UmemShape::DEFAULT
        });
    } else if (request.direction, request.chunks, request.chunk_bytes) != (0, 0, 0) {
        return Err(Failure::usage(
            "direction, chunks and chunk_bytes are for XSK_CLIENT_BOUND: of others, memory and rings are yours to make",
        ));
    }
    if !request.label.is_null() {
        // SAFETY: by the contract.
        acquire.label = Some(unsafe { text(request.label, "label") }?.to_owned());
    }
    Ok(acquire)
}

fn direction(value: u32) -> Result<Direction, Failure> {
    match value {
        value if value == Way::XskClientRxTx as u32 => Ok(Direction::RxTx),
        value if value == Way::XskClientRx as u32 => Ok(Direction::Rx),
        value if value == Way::XskClientTx as u32 => Ok(Direction::Tx),
        other => Err(Failure::usage(format!(
            "direction {other} is no enum xsk_client_direction"
        ))),
    }
}
