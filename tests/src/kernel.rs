//! What this kernel has, asked of it directly and not of the broker: for tests that must tell, and judge, what the broker
//! says of it.

use std::io::{self, Write};
use std::os::unix::net::UnixStream;

use anyhow::{Context, Result};
use netlink_sys::{Socket, protocols::NETLINK_GENERIC};
use rustix::io::Errno;
use rustix::net::xdp::SocketAddrXdpFlags;

use crate::raw_xsk::RawXsk;
use crate::skip::Skip;
use crate::sys;
use crate::world::{Side, World};

/// A pidfd of who connected (`SO_PEERPIDFD`, Linux 6.5).
pub fn has_peer_pidfd() -> Result<bool> {
    const SO_PEERPIDFD: i32 = 77;
    let (ours, _theirs) = UnixStream::pair()?;
    known(sys::get_fd_option(&ours, libc::SOL_SOCKET, SO_PEERPIDFD).map(drop))
}

/// A socket that takes no fds (`SO_PASSRIGHTS`, Linux 6.16).
pub fn has_passrights() -> Result<bool> {
    const SO_PASSRIGHTS: i32 = 83;
    let (ours, _theirs) = UnixStream::pair()?;
    known(sys::set_socket_option(
        &ours,
        libc::SOL_SOCKET,
        SO_PASSRIGHTS,
        &0i32.to_ne_bytes(),
    ))
}

fn known(answer: io::Result<()>) -> Result<bool> {
    match answer {
        Ok(()) => Ok(true),
        Err(error) if error.raw_os_error() == Some(libc::ENOPROTOOPT) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// The generic netlink family that tells what a driver has (Linux 6.3).
pub fn has_netdev_family() -> Result<bool> {
    const GENL_ID_CTRL: u16 = 0x10;
    const NLM_F_REQUEST: u16 = 1;
    const CTRL_CMD_GETFAMILY: u8 = 3;
    const CTRL_ATTR_FAMILY_NAME: u16 = 2;
    const NLMSG_ERROR: u16 = 2;

    let mut attribute = Vec::new();
    attribute.extend(11u16.to_ne_bytes());
    attribute.extend(CTRL_ATTR_FAMILY_NAME.to_ne_bytes());
    attribute.extend(b"netdev\0\0");
    let mut question = Vec::new();
    question.extend(32u32.to_ne_bytes());
    question.extend(GENL_ID_CTRL.to_ne_bytes());
    question.extend(NLM_F_REQUEST.to_ne_bytes());
    question.extend([0; 8]);
    question.extend([CTRL_CMD_GETFAMILY, 1, 0, 0]);
    question.extend(attribute);
    let mut socket = Socket::new(NETLINK_GENERIC).context("socket(NETLINK_GENERIC)")?;
    socket.bind_auto()?;
    socket.send(&question, 0)?;
    let (answer, _) = socket.recv_from_full()?;
    let kind = answer.get(4..6).and_then(|kind| kind.try_into().ok());
    Ok(kind
        .map(u16::from_ne_bytes)
        .context("an answer without a header")?
        != NLMSG_ERROR)
}

/// Rings of a socket that is bound can be mapped (from about Linux 6.4).
pub fn maps_rings_of_bound_sockets() -> Result<bool> {
    let world = World::new()?;
    let index = world.device(Side::Host).index;
    let socket = world.run_in(Side::Host, || RawXsk::new(1))??;
    socket
        .bind(index, 0, SocketAddrXdpFlags::XDP_COPY)
        .context("bind(AF_XDP)")?;
    match socket.map_fill_ring_again() {
        Ok(()) => Ok(true),
        Err(error) if error.downcast_ref::<Errno>() == Some(&Errno::BUSY) => Ok(false),
        Err(error) => Err(error),
    }
}

/// A socket can be bound for frames of several chunks (`XDP_USE_SG`, Linux 6.6): by binding one.
pub fn has_multi_buffer() -> Result<bool> {
    let world = World::new()?;
    let index = world.device(Side::Host).index;
    let socket = world.run_in(Side::Host, || RawXsk::new(1))??;
    let flags = SocketAddrXdpFlags::XDP_COPY | SocketAddrXdpFlags::XDP_USE_SG;
    match socket.bind(index, 0, flags) {
        Ok(()) => Ok(true),
        Err(Errno::INVAL) => Ok(false),
        Err(error) => Err(error).context("bind(AF_XDP, XDP_USE_SG)"),
    }
}

/// Why a test of kind `bound` cannot run here, if it cannot.
pub fn lacks_for_bound() -> Option<Skip> {
    let maps = maps_rings_of_bound_sockets();
    (!maps.is_ok_and(|maps| maps)).then(|| Skip::KernelLacks {
        probe: "mmap of a ring of a bound socket: EBUSY".to_owned(),
    })
}

/// Tells what was found out about this kernel, for the table of `cargo xtask vm`.
pub fn tell(name: &str, value: &str) -> Result<()> {
    // Past libtest's capturing.
    writeln!(io::stderr(), "FACT {name}: {value}").context("telling of a fact")
}
