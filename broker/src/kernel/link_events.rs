//! The kernel's news of devices: rtnetlink(7) tells of links, routes and addresses, the generic family `ethtool` of their queues
//! (Documentation/networking/ethtool-netlink.rst). Nothing here needs a capability.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use netlink_packet_core::{NetlinkMessage, NetlinkPayload};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use netlink_sys::Socket;
use netlink_sys::protocols::{NETLINK_GENERIC, NETLINK_ROUTE};
use xsk_client::wire::InterfaceName;

use super::netlink::{
    Link, attribute, attributes_of, message_header, multicast_group, name_of, read_link,
    speaks_of_default_route,
};

/// include/uapi/linux/rtnetlink.h.
const RTNLGRP_LINK: u32 = 1;
const RTNLGRP_IPV4_IFADDR: u32 = 5;
const RTNLGRP_IPV4_ROUTE: u32 = 7;
const RTNLGRP_IPV6_IFADDR: u32 = 9;
const RTNLGRP_IPV6_ROUTE: u32 = 11;
const RTM_NEWADDR: u16 = 20;
const RTM_DELADDR: u16 = 21;
const RTM_NEWROUTE: u16 = 24;
const RTM_DELROUTE: u16 = 25;

/// One piece of news.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LinkEvent {
    /// There is such a device, and this is how it is now. Often nothing of it has changed.
    Now(u32, LinkNow),
    /// The device of this index is gone: deleted, or moved to another network namespace.
    Gone(u32),
    /// The device of this index may have more or fewer queues.
    Queues(u32),
    /// Default routes may leave by other devices.
    Routes,
    /// The device of this index has another address, or one less.
    Address(u32),
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
    /// The bridge, bond or other device that it is a port of. Of no concern to leases as such.
    pub controller: Option<u32>,
}

impl LinkNow {
    /// The same, as the port of something.
    #[must_use]
    pub fn as_port_of(self, controller: Option<u32>) -> Self {
        Self { controller, ..self }
    }

    /// What of it there is in the kernel's answer.
    pub fn new(name: InterfaceName, link: &Link) -> Self {
        let &Link {
            up,
            carrier,
            mtu,
            controller,
            ..
        } = link;
        Self {
            name,
            up,
            carrier,
            mtu,
            controller,
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
    Routes,
}

impl LinkEvents {
    /// Devices that come, change and go, in this network namespace.
    ///
    /// # Errors
    ///
    /// As socket(2), bind(2) and setsockopt(2).
    pub fn links() -> io::Result<Self> {
        Self::subscribe(NETLINK_ROUTE, &[RTNLGRP_LINK], Kind::Links)
    }

    /// Changes of default routes, in this network namespace; of addresses as well, since the kernel says nothing of routes that
    /// go with one (`fib_sync_down_addr`, net/ipv4/fib_semantics.c).
    ///
    /// # Errors
    ///
    /// As above.
    pub fn routes() -> io::Result<Self> {
        let groups = [
            RTNLGRP_IPV4_ROUTE,
            RTNLGRP_IPV6_ROUTE,
            RTNLGRP_IPV4_IFADDR,
            RTNLGRP_IPV6_IFADDR,
        ];
        Self::subscribe(NETLINK_ROUTE, &groups, Kind::Routes)
    }

    /// Changes of queue counts, in this network namespace.
    ///
    /// # Errors
    ///
    /// As above; ENOENT before Linux 5.6.
    pub fn queues() -> io::Result<Self> {
        Self::subscribe(
            NETLINK_GENERIC,
            &[multicast_group(b"ethtool\0", b"monitor\0")?],
            Kind::Queues,
        )
    }

    fn subscribe(protocol: isize, groups: &[u32], kind: Kind) -> io::Result<Self> {
        let mut socket = Socket::new(protocol)?;
        socket.bind_auto()?;
        for group in groups {
            socket.add_membership(*group)?;
        }
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
                Kind::Routes => routes_event(message),
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

/// Of each route no more is read than whether it is a default route: a host may have very many.
fn routes_event(message: &[u8]) -> Option<LinkEvent> {
    /// `ifa_index` of `struct ifaddrmsg`.
    const INDEX: usize = 16 + 4;

    let (_, kind) = message_header(message)?;
    match kind {
        RTM_NEWROUTE | RTM_DELROUTE => speaks_of_default_route(message).then_some(LinkEvent::Routes),
        RTM_NEWADDR | RTM_DELADDR => {
            let index = message.get(INDEX..INDEX + 4)?.try_into().ok()?;
            Some(LinkEvent::Address(u32::from_ne_bytes(index)))
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
