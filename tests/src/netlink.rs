//! Links, addresses and neighbours of one network namespace, by rtnetlink.
//!
//! The socket stays in the namespace in which it was made, so that nobody has to enter it again.

use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use anyhow::{Context, Result, bail};
use netlink_packet_core::{
    NLM_F_ACK, NLM_F_APPEND, NLM_F_CREATE, NLM_F_DUMP, NLM_F_EXCL, NLM_F_REPLACE, NLM_F_REQUEST,
    NetlinkHeader, NetlinkMessage, NetlinkPayload,
};
use netlink_packet_route::address::{AddressAttribute, AddressMessage};
use netlink_packet_route::link::{
    InfoData, InfoKind, InfoVeth, LinkAttribute, LinkFlags, LinkInfo, LinkMessage, LinkXdp, Prop,
};
use netlink_packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourMessage, NeighbourState,
};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use netlink_sys::{Socket, protocols::NETLINK_ROUTE};

use crate::packets::Mac;

/// A connection to rtnetlink in the namespace of the thread that made it.
#[derive(Debug)]
pub struct Netlink {
    // A mutex, since an answer must not be read by another thread than its asker.
    socket: std::sync::Mutex<Socket>,
}

/// One device, as the kernel lists it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Link {
    /// Its index.
    pub index: u32,
    /// Its name.
    pub name: String,
    /// Whether it is set up (not whether it has a carrier).
    pub up: bool,
    /// Whether it has a carrier.
    pub carrier: bool,
    /// How often it has lost or got it.
    pub carrier_changes: u32,
    /// The id of the XDP program attached to it.
    pub xdp: Option<u32>,
}

/// One end of a veth pair to be made.
#[derive(Debug)]
pub struct VethEnd<'a> {
    /// Its name.
    pub name: &'a str,
    /// Its Ethernet address.
    pub mac: Mac,
    /// How many queues it gets, each of rx and tx.
    pub queues: u32,
    /// The namespace that it is made in.
    pub net: &'a OwnedFd,
}

impl Netlink {
    /// Connects, in the calling thread's network namespace.
    pub fn new() -> Result<Self> {
        let mut socket = Socket::new(NETLINK_ROUTE).context("socket(NETLINK_ROUTE)")?;
        socket.bind_auto().context("binding the netlink socket")?;
        Ok(Self {
            socket: std::sync::Mutex::new(socket),
        })
    }

    /// Makes a veth pair, both ends down.
    pub fn add_veth(&self, one: &VethEnd<'_>, other: &VethEnd<'_>) -> Result<()> {
        let mut message = veth_end(one);
        message.attributes.push(LinkAttribute::LinkInfo(vec![
            LinkInfo::Kind(InfoKind::Veth),
            LinkInfo::Data(InfoData::Veth(InfoVeth::Peer(veth_end(other)))),
        ]));
        self.change(RouteNetlinkMessage::NewLink(message), NLM_F_CREATE | NLM_F_EXCL)
            .with_context(|| format!("making the veth pair {} and {}", one.name, other.name))
    }

    /// Gives a device an address in a network of 24 bits.
    pub fn add_address(&self, index: u32, address: Ipv4Addr) -> Result<()> {
        let mut message = AddressMessage::default();
        message.header.family = AddressFamily::Inet;
        message.header.prefix_len = 24;
        message.header.index = index;
        message
            .attributes
            .push(AddressAttribute::Local(IpAddr::V4(address)));
        message
            .attributes
            .push(AddressAttribute::Address(IpAddr::V4(address)));
        self.change(
            RouteNetlinkMessage::NewAddress(message),
            NLM_F_CREATE | NLM_F_REPLACE,
        )
        .with_context(|| format!("adding {address} to device {index}"))
    }

    /// Gives a device an alternative name, which the kernel takes in place of its own.
    pub fn add_alternative_name(&self, index: u32, name: &str) -> Result<()> {
        let mut message = LinkMessage::default();
        message.header.index = index;
        let names = vec![Prop::AltIfName(name.to_owned())];
        message.attributes.push(LinkAttribute::PropList(names));
        self.change(
            RouteNetlinkMessage::NewLinkProp(message),
            NLM_F_CREATE | NLM_F_EXCL | NLM_F_APPEND,
        )
        .with_context(|| format!("giving device {index} the name {name} too"))
    }

    /// Makes a neighbour known for good, so that nobody has to ask for it by ARP.
    pub fn add_neighbour(&self, index: u32, address: Ipv4Addr, mac: Mac) -> Result<()> {
        let mut message = NeighbourMessage::default();
        message.header.family = AddressFamily::Inet;
        message.header.ifindex = index;
        message.header.state = NeighbourState::Permanent;
        message.header.kind = RouteType::Unicast;
        message
            .attributes
            .push(NeighbourAttribute::Destination(NeighbourAddress::Inet(address)));
        message
            .attributes
            .push(NeighbourAttribute::LinkLayerAddress(mac.0.to_vec()));
        self.change(
            RouteNetlinkMessage::NewNeighbour(message),
            NLM_F_CREATE | NLM_F_REPLACE,
        )
        .with_context(|| format!("adding neighbour {address} to device {index}"))
    }

    /// Sets a device up or down.
    pub fn set_link(&self, index: u32, state: LinkState) -> Result<()> {
        let mut message = link(index);
        message.header.change_mask = LinkFlags::Up;
        if state == LinkState::Up {
            message.header.flags = LinkFlags::Up;
        }
        self.change(RouteNetlinkMessage::SetLink(message), 0)
            .with_context(|| format!("setting device {index} {state:?}"))
    }

    /// Has a device take frames for any address, or only for its own.
    pub fn set_promiscuous(&self, index: u32, promiscuous: bool) -> Result<()> {
        let mut message = link(index);
        message.header.change_mask = LinkFlags::Promisc;
        if promiscuous {
            message.header.flags = LinkFlags::Promisc;
        }
        self.change(RouteNetlinkMessage::SetLink(message), 0)
            .with_context(|| format!("making device {index} promiscuous, or not"))
    }

    /// Renames a device that is up: down for the while, as kernels before 6.2 want it.
    pub fn rename(&self, index: u32, name: &str) -> Result<()> {
        self.set_link(index, LinkState::Down)?;
        let mut message = link(index);
        message.attributes.push(LinkAttribute::IfName(name.to_owned()));
        self.change(RouteNetlinkMessage::SetLink(message), 0)
            .with_context(|| format!("renaming device {index} to {name}"))?;
        self.set_link(index, LinkState::Up)
    }

    /// Sets a device's MTU.
    pub fn set_mtu(&self, index: u32, bytes: u32) -> Result<()> {
        let mut message = link(index);
        message.attributes.push(LinkAttribute::Mtu(bytes));
        self.change(RouteNetlinkMessage::SetLink(message), 0)
            .with_context(|| format!("setting the MTU of device {index} to {bytes}"))
    }

    /// Moves a device to another network namespace.
    pub fn move_to(&self, index: u32, net: impl AsFd) -> Result<()> {
        let mut message = link(index);
        message
            .attributes
            .push(LinkAttribute::NetNsFd(net.as_fd().as_raw_fd()));
        self.change(RouteNetlinkMessage::SetLink(message), 0)
            .with_context(|| format!("moving device {index}"))
    }

    /// Deletes a device, and with a veth its other end.
    pub fn delete(&self, index: u32) -> Result<()> {
        self.change(RouteNetlinkMessage::DelLink(link(index)), 0)
            .with_context(|| format!("deleting device {index}"))
    }

    /// Makes a bridge.
    pub fn add_bridge(&self, name: &str) -> Result<()> {
        let mut message = LinkMessage::default();
        message.attributes = vec![
            LinkAttribute::IfName(name.to_owned()),
            LinkAttribute::LinkInfo(vec![LinkInfo::Kind(InfoKind::Bridge)]),
        ];
        self.change(RouteNetlinkMessage::NewLink(message), NLM_F_CREATE | NLM_F_EXCL)
            .with_context(|| format!("making the bridge {name}"))
    }

    /// Makes a device a port of a bridge.
    pub fn set_controller(&self, index: u32, controller: u32) -> Result<()> {
        let mut message = link(index);
        message.attributes.push(LinkAttribute::Controller(controller));
        self.change(RouteNetlinkMessage::SetLink(message), 0)
            .with_context(|| format!("making device {index} a port of {controller}"))
    }

    /// Adds a default route by a device; those of several devices differ by their metric.
    pub fn add_default_route(&self, index: u32, gateway: Ipv4Addr, metric: u32) -> Result<()> {
        let mut message = RouteMessage::default();
        message.header.address_family = AddressFamily::Inet;
        message.header.table = RouteHeader::RT_TABLE_MAIN;
        message.header.protocol = RouteProtocol::Static;
        message.header.scope = RouteScope::Universe;
        message.header.kind = RouteType::Unicast;
        message.attributes = vec![
            RouteAttribute::Oif(index),
            RouteAttribute::Gateway(RouteAddress::Inet(gateway)),
            RouteAttribute::Priority(metric),
        ];
        self.change(RouteNetlinkMessage::NewRoute(message), NLM_F_CREATE | NLM_F_EXCL)
            .with_context(|| format!("adding a default route by device {index}"))
    }

    /// Lists all devices.
    pub fn links(&self) -> Result<Vec<Link>> {
        let answers = self
            .request(RouteNetlinkMessage::GetLink(LinkMessage::default()), NLM_F_DUMP)
            .context("listing devices")?;
        Ok(answers
            .into_iter()
            .filter_map(|answer| match answer {
                RouteNetlinkMessage::NewLink(message) => Some(described(message)),
                _ => None,
            })
            .collect())
    }

    /// The device of that name.
    pub fn link(&self, name: &str) -> Result<Link> {
        let links = self.links()?;
        links
            .into_iter()
            .find(|link| link.name == name)
            .with_context(|| format!("there is no device {name}"))
    }

    /// Asks for a change and waits for the kernel's word on it.
    pub(crate) fn change(&self, message: RouteNetlinkMessage, flags: u16) -> Result<()> {
        self.request(message, NLM_F_ACK | flags).map(drop)
    }

    fn request(&self, message: RouteNetlinkMessage, flags: u16) -> Result<Vec<RouteNetlinkMessage>> {
        let mut header = NetlinkHeader::default();
        header.flags = NLM_F_REQUEST | flags;
        let mut request = NetlinkMessage::new(header, NetlinkPayload::from(message));
        request.finalize();
        let mut bytes = vec![0; request.buffer_len()];
        request.serialize(&mut bytes);

        let socket = self
            .socket
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        socket.send(&bytes, 0).context("sending to the kernel")?;
        let mut answers = Vec::new();
        loop {
            let (datagram, _) = socket.recv_from_full().context("receiving from the kernel")?;
            let mut rest = datagram.as_slice();
            while !rest.is_empty() {
                let answer = NetlinkMessage::<RouteNetlinkMessage>::deserialize(rest)?;
                let len = usize::try_from(answer.header.length)?.next_multiple_of(4);
                rest = rest.get(len..).unwrap_or_default();
                match answer.payload {
                    NetlinkPayload::Error(error) if error.code.is_some() => return Err(error.to_io().into()),
                    NetlinkPayload::Error(_) | NetlinkPayload::Done(_) => return Ok(answers),
                    NetlinkPayload::InnerMessage(inner) => answers.push(inner),
                    NetlinkPayload::Noop => {}
                    other => bail!("unexpected netlink message {other:?}"),
                }
            }
        }
    }
}

/// What [`Netlink::set_link`] makes of a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LinkState {
    /// It carries packets.
    Up,
    /// It does not.
    Down,
}

fn link(index: u32) -> LinkMessage {
    let mut message = LinkMessage::default();
    message.header.index = index;
    message
}

fn veth_end(end: &VethEnd<'_>) -> LinkMessage {
    let mut message = LinkMessage::default();
    message.attributes = vec![
        LinkAttribute::IfName(end.name.to_owned()),
        LinkAttribute::Address(end.mac.0.to_vec()),
        LinkAttribute::NumTxQueues(end.queues),
        LinkAttribute::NumRxQueues(end.queues),
        LinkAttribute::NetNsFd(end.net.as_raw_fd()),
    ];
    message
}

fn described(message: LinkMessage) -> Link {
    let mut link = Link {
        index: message.header.index,
        name: String::new(),
        up: message.header.flags.contains(LinkFlags::Up),
        carrier: message.header.flags.contains(LinkFlags::LowerUp),
        carrier_changes: 0,
        xdp: None,
    };
    for attribute in message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => link.name = name,
            LinkAttribute::CarrierChanges(count) => link.carrier_changes = count,
            LinkAttribute::Xdp(parts) => {
                link.xdp = parts.into_iter().find_map(|part| match part {
                    LinkXdp::ProgId(id) => Some(id),
                    _ => None,
                });
            }
            _ => {}
        }
    }
    link
}
