//! Where a socket is from: the network namespace that it was made in, and the device that it is confined to.
//!
//! `sk_getsockopt`, net/core/sock.c. Neither changes anything about the socket, nor waits for anybody.

#![expect(unsafe_code, reason = "getsockopt that rustix does not offer")]

use std::io;
use std::os::fd::{AsFd, AsRawFd};

use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};

/// The network namespace of a socket, by a number that is never another's (`SO_NETNS_COOKIE`, Linux 5.14).
///
/// # Errors
///
/// As getsockopt(2).
pub fn network_namespace(socket: impl AsFd) -> io::Result<u64> {
    let mut cookie = 0_u64;
    get(socket, libc::SO_NETNS_COOKIE, &mut cookie)?;
    Ok(cookie)
}

/// The network namespace of the calling thread.
///
/// # Errors
///
/// As socket(2) and getsockopt(2).
pub fn own_network_namespace() -> io::Result<u64> {
    let socket = socket_with(AddressFamily::UNIX, SocketType::DGRAM, SocketFlags::CLOEXEC, None)?;
    network_namespace(&socket)
}

/// The index of the device that a socket is confined to, 0 for none (`SO_BINDTOIFINDEX`).
///
/// # Errors
///
/// As getsockopt(2).
pub fn confined_to(socket: impl AsFd) -> io::Result<u32> {
    let mut index: libc::c_int = 0;
    get(socket, libc::SO_BINDTOIFINDEX, &mut index)?;
    u32::try_from(index).map_err(io::Error::other)
}

fn get<T: Number>(socket: impl AsFd, option: libc::c_int, value: &mut T) -> io::Result<()> {
    let mut bytes = libc::socklen_t::try_from(size_of::<T>()).map_err(io::Error::other)?;
    // SAFETY: pointer and length are those of `value`, which is a number, so that whatever is written to it is one.
    let result = unsafe {
        libc::getsockopt(
            socket.as_fd().as_raw_fd(),
            libc::SOL_SOCKET,
            option,
            std::ptr::from_mut(value).cast(),
            &raw mut bytes,
        )
    };
    match result {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// What any bytes are a value of.
trait Number {}
impl Number for u64 {}
impl Number for libc::c_int {}

#[cfg(test)]
mod tests {
    use xsk_client::sys;

    use super::*;

    #[test]
    fn a_socket_tells_its_namespace_and_its_device() {
        let own = own_network_namespace().unwrap();
        let Ok(socket) = sys::xdp_socket() else {
            println!("skipped: socket(AF_XDP) needs CAP_NET_RAW");
            return;
        };
        assert_eq!(network_namespace(&socket).unwrap(), own);
        assert_eq!(confined_to(&socket).unwrap(), 0);
        sys::confine_to_device(&socket, 1).unwrap();
        assert_eq!(confined_to(&socket).unwrap(), 1);
    }
}
