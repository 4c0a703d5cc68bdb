//! The kernel's news of devices: rtnetlink(7) tells of links, the generic family `ethtool` of their queues
//! (Documentation/networking/ethtool-netlink.rst). Nothing here needs a capability.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use netlink_packet_core::{NetlinkMessage, NetlinkPayload};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use netlink_sys::Socket;
use netlink_sys::protocols::{NETLINK_GENERIC, NETLINK_ROUTE};
use xsk_client::wire::InterfaceName;

use super::netlink::{Link, attribute, attributes_of, message_header, multicast_group, name_of, read_link};

/// RTNLGRP_LINK, include/uapi/linux/rtnetlink.h.
const RTNLGRP_LINK: u32 = 1;

/// One piece of news.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LinkEvent {
    /// There is such a device, and this is how it is now. Often nothing of it has changed.
    Now(u32, LinkNow),
    /// The device of this index is gone: deleted, or moved to another network namespace.
    Gone(u32),
    /// The device of this index may have more or fewer queues.
    Queues(u32),
    /// The kernel had more news than the socket could hold: look at every device.
    Lost,
}

/// What of a device may change at any time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LinkNow {
    /// Its name.
    pub name: InterfaceName,
    /// Whether it is up.
    pub up: bool,
    /// Whether it is up and has a carrier.
    pub carrier: bool,
    /// Its longest packet, in bytes.
    pub mtu: u32,
}

impl LinkNow {
    /// What of it there is in the kernel's answer.
    pub fn new(name: InterfaceName, link: &Link) -> Self {
        let &Link { up, carrier, mtu, .. } = link;
        Self {
            name,
            up,
            carrier,
            mtu,
        }
    }
}

/// News of one kind.
#[derive(Debug)]
pub struct LinkEvents {
    socket: Socket,
    kind: Kind,
}

#[derive(Debug, Clone, Copy)]
enum Kind {
    Links,
    Queues,
}

impl LinkEvents {
    /// Devices that come, change and go, in this network namespace.
    ///
    /// # Errors
    ///
    /// As socket(2), bind(2) and setsockopt(2).
    pub fn links() -> io::Result<Self> {
        Self::subscribe(NETLINK_ROUTE, RTNLGRP_LINK, Kind::Links)
    }

    /// Changes of queue counts, in this network namespace.
    ///
    /// # Errors
    ///
    /// As above; ENOENT before Linux 5.6.
    pub fn queues() -> io::Result<Self> {
        Self::subscribe(
            NETLINK_GENERIC,
            multicast_group(b"ethtool\0", b"monitor\0")?,
            Kind::Queues,
        )
    }

    fn subscribe(protocol: isize, group: u32, kind: Kind) -> io::Result<Self> {
        let mut socket = Socket::new(protocol)?;
        socket.bind_auto()?;
        socket.add_membership(group)?;
        socket.set_non_blocking(true)?;
        Ok(Self { socket, kind })
    }

    /// Another fd of the socket, readable when there is news.
    ///
    /// # Errors
    ///
    /// EMFILE.
    pub fn readable_fd(&self) -> io::Result<OwnedFd> {
        self.socket.as_fd().try_clone_to_owned()
    }

    /// Takes what has come. Empty: other news than what we look for.
    ///
    /// # Errors
    ///
    /// [`io::ErrorKind::WouldBlock`] where nothing has come.
    pub fn receive(&self) -> io::Result<Vec<LinkEvent>> {
        let datagram = match self.socket.recv_from_full() {
            Ok((datagram, _)) => datagram,
            Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => return Ok(vec![LinkEvent::Lost]),
            Err(error) => return Err(error),
        };
        let mut events = Vec::new();
        let mut rest = datagram.as_slice();
        while let Some((length, _)) = message_header(rest) {
            let Some(message) = rest.get(..length) else { break };
            events.extend(match self.kind {
                Kind::Links => link_event(message),
                Kind::Queues => queues_event(message),
            });
            rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        }
        Ok(events)
    }
}

fn link_event(message: &[u8]) -> Option<LinkEvent> {
    let message = NetlinkMessage::<RouteNetlinkMessage>::deserialize(message).ok()?;
    let NetlinkPayload::InnerMessage(message) = message.payload else {
        return None;
    };
    match message {
        // A port that comes to its bridge or leaves it makes such messages too, of family AF_BRIDGE.
        RouteNetlinkMessage::DelLink(link) if link.header.interface_family == AddressFamily::Unspec => {
            Some(LinkEvent::Gone(link.header.index))
        }
        RouteNetlinkMessage::NewLink(link) if link.header.interface_family == AddressFamily::Unspec => {
            // A device whose name no policy can speak of.
            let name = name_of(&link)?;
            let now = LinkNow::new(name, &read_link(&link));
            Some(LinkEvent::Now(link.header.index, now))
        }
        _ => None,
    }
}

/// include/uapi/linux/ethtool_netlink_generated.h.
fn queues_event(message: &[u8]) -> Option<LinkEvent> {
    const ETHTOOL_MSG_CHANNELS_NTF: u8 = 19;
    const ETHTOOL_A_CHANNELS_HEADER: u16 = 1;
    const ETHTOOL_A_HEADER_DEV_INDEX: u16 = 1;

    let (command, attributes) = attributes_of(message)?;
    if command != ETHTOOL_MSG_CHANNELS_NTF {
        return None;
    }
    let header = attribute(attributes, ETHTOOL_A_CHANNELS_HEADER)?;
    let index = attribute(header, ETHTOOL_A_HEADER_DEV_INDEX)?;
    Some(LinkEvent::Queues(u32::from_ne_bytes(
        index.get(..4)?.try_into().ok()?,
    )))
}
