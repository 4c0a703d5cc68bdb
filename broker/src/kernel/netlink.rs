//! Questions to the kernel about devices and routes: rtnetlink(7), and the generic families `netdev`
//! (Documentation/netlink/specs/netdev.yaml) and `ethtool`. Nothing here needs a capability.
//!
//! Each question opens a socket of its own: a socket that was kept would carry the answers of one that failed.

use std::collections::HashSet;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload,
};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{LinkAttribute, LinkFlags, LinkMessage, LinkXdp, XdpAttached};
use netlink_packet_route::route::{RouteAttribute, RouteMessage, RouteNextHop};
use netlink_sys::protocols::{NETLINK_GENERIC, NETLINK_ROUTE};
use netlink_sys::{Socket, SocketAddr};
use xsk_client::wire::InterfaceName;

/// What rtnetlink says about one device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Link {
    /// Its index.
    pub index: u32,
    /// Whether it is up.
    pub up: bool,
    /// Whether it is up and has a carrier (IFF_LOWER_UP).
    pub carrier: bool,
    /// Its longest packet, in bytes without the Ethernet header.
    pub mtu: u32,
    /// RX and TX queues that were allocated for it.
    pub allocated_queues: u32,
    /// The bridge, bond or other device that it is a port of.
    pub controller: Option<u32>,
    /// The XDP program that is attached, and where.
    pub xdp: Option<(XdpAttached, u32)>,
}

/// Looks a device up by its index, in this network namespace.
///
/// # Errors
///
/// ENODEV where there is none.
pub fn link_of(index: u32) -> io::Result<Link> {
    let mut question = LinkMessage::default();
    question.header.index = index;
    let answers = ask(RouteNetlinkMessage::GetLink(question), NLM_F_REQUEST | NLM_F_ACK)?;
    let link = answers.into_iter().find_map(|answer| match answer {
        RouteNetlinkMessage::NewLink(link) => Some(link),
        _ => None,
    });
    link.as_ref()
        .map(read_link)
        .ok_or_else(|| io::Error::from_raw_os_error(libc::ENODEV))
}

/// Moves a device to another network namespace. Needs CAP_NET_ADMIN in both.
///
/// # Errors
///
/// As the kernel says; EINVAL for a device that cannot leave its namespace.
pub fn move_device(index: u32, to: &OwnedFd) -> io::Result<()> {
    let mut change = LinkMessage::default();
    change.header.index = index;
    change.attributes.push(LinkAttribute::NetNsFd(to.as_raw_fd()));
    ask(RouteNetlinkMessage::SetLink(change), NLM_F_REQUEST | NLM_F_ACK).map(drop)
}

/// Sets a device up. Needs CAP_NET_ADMIN.
///
/// # Errors
///
/// As the kernel says.
pub fn set_up(index: u32) -> io::Result<()> {
    let mut change = LinkMessage::default();
    change.header.index = index;
    change.header.flags = LinkFlags::Up;
    change.header.change_mask = LinkFlags::Up;
    ask(RouteNetlinkMessage::SetLink(change), NLM_F_REQUEST | NLM_F_ACK).map(drop)
}

/// All devices of this network namespace that have a name of ours.
///
/// # Errors
///
/// As the kernel says.
pub fn devices() -> io::Result<Vec<(InterfaceName, Link)>> {
    let answers = ask(
        RouteNetlinkMessage::GetLink(LinkMessage::default()),
        NLM_F_REQUEST | NLM_F_DUMP,
    )?;
    let devices = answers.iter().filter_map(|answer| match answer {
        RouteNetlinkMessage::NewLink(link) => Some((name_of(link)?, read_link(link))),
        _ => None,
    });
    Ok(devices.collect())
}

pub(super) fn name_of(message: &LinkMessage) -> Option<InterfaceName> {
    message.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::IfName(name) => name.parse().ok(),
        _ => None,
    })
}

pub(super) fn read_link(message: &LinkMessage) -> Link {
    let mut link = Link {
        index: message.header.index,
        mtu: 0,
        up: message.header.flags.contains(LinkFlags::Up),
        carrier: message.header.flags.contains(LinkFlags::LowerUp),
        allocated_queues: 1,
        controller: None,
        xdp: None,
    };
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::NumRxQueues(count) | LinkAttribute::NumTxQueues(count) => {
                link.allocated_queues = link.allocated_queues.max(*count);
            }
            LinkAttribute::Mtu(mtu) => link.mtu = *mtu,
            LinkAttribute::Controller(index) => link.controller = Some(*index),
            LinkAttribute::Xdp(xdp) => {
                let attached = xdp.iter().find_map(|info| match info {
                    LinkXdp::Attached(attached) if *attached != XdpAttached::None => Some(*attached),
                    _ => None,
                });
                let program = xdp.iter().find_map(|info| match info {
                    LinkXdp::ProgId(id) => Some(*id),
                    _ => None,
                });
                link.xdp = attached.map(|attached| (attached, program.unwrap_or(0)));
            }
            _ => {}
        }
    }
    link
}

/// The devices that default routes leave by, of IPv4 or IPv6 and in any table.
///
/// # Errors
///
/// As the kernel says.
pub fn default_route_devices() -> io::Result<HashSet<u32>> {
    let question = RouteNetlinkMessage::GetRoute(RouteMessage::default());
    let mut devices = HashSet::new();
    // One at a time, and of the others nothing is read: a host may have very many.
    for_each_answer(question, NLM_F_REQUEST | NLM_F_DUMP, |answer| {
        if !speaks_of_default_route(answer) {
            return Ok(());
        }
        if let Some(RouteNetlinkMessage::NewRoute(route)) = inner(answer)? {
            route.attributes.iter().for_each(|attribute| match attribute {
                RouteAttribute::Oif(out) => {
                    devices.insert(*out);
                }
                RouteAttribute::MultiPath(hops) => {
                    devices.extend(hops.iter().map(|hop: &RouteNextHop| hop.interface_index));
                }
                _ => {}
            });
        }
        Ok(())
    })?;
    Ok(devices)
}

/// Whether a message about a route is about one for all destinations, by `rtm_dst_len` of `struct rtmsg`.
pub(super) fn speaks_of_default_route(message: &[u8]) -> bool {
    const DESTINATION_PREFIX_LENGTH: usize = NLMSG_HEADER_BYTES + 1;
    message.get(DESTINATION_PREFIX_LENGTH) == Some(&0)
}

/// Sends one question and collects all answers.
pub(super) fn ask(question: RouteNetlinkMessage, flags: u16) -> io::Result<Vec<RouteNetlinkMessage>> {
    let mut answers = Vec::new();
    for_each_answer(question, flags, |answer| {
        answers.extend(inner(answer)?);
        Ok(())
    })?;
    Ok(answers)
}

fn for_each_answer(
    question: RouteNetlinkMessage,
    flags: u16,
    take: impl FnMut(&[u8]) -> io::Result<()>,
) -> io::Result<()> {
    let mut header = NetlinkHeader::default();
    header.flags = flags;
    let mut message = NetlinkMessage::new(header, NetlinkPayload::from(question));
    message.finalize();
    let mut bytes = vec![0; message.buffer_len()];
    message.serialize(&mut bytes);
    exchange(NETLINK_ROUTE, &bytes, flags & NLM_F_DUMP == NLM_F_DUMP, take)
}

fn inner(message: &[u8]) -> io::Result<Option<RouteNetlinkMessage>> {
    let message = NetlinkMessage::<RouteNetlinkMessage>::deserialize(message)
        .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error.to_string()))?;
    Ok(match message.payload {
        NetlinkPayload::InnerMessage(inner) => Some(inner),
        _ => None,
    })
}

/// Bit 3 of NETDEV_A_DEV_XDP_FEATURES (`NETDEV_XDP_ACT_XSK_ZEROCOPY`, include/uapi/linux/netdev.h).
const XSK_ZEROCOPY: u64 = 1 << 3;

/// Whether the driver says that it can do zero-copy AF_XDP. A "yes" is no proof (a virtio-net without IOMMU says
/// it too), a "no" is one: `xp_assign_dev` (net/xdp/xsk_buff_pool.c) goes by this bit.
///
/// # Errors
///
/// ENOENT before Linux 6.3, which has no such family.
pub fn may_do_zero_copy(index: u32) -> io::Result<bool> {
    const CTRL_ATTR_FAMILY_ID: u16 = 1;
    const NETDEV_CMD_DEV_GET: u8 = 1;
    const NETDEV_A_DEV_IFINDEX: u16 = 1;
    const NETDEV_A_DEV_XDP_FEATURES: u16 = 3;

    let invalid = || io::Error::from(io::ErrorKind::InvalidData);
    let family = family(b"netdev\0")?;
    let id = attribute(&family, CTRL_ATTR_FAMILY_ID).ok_or_else(invalid)?;
    let id = u16::from_ne_bytes(
        id.get(..2)
            .and_then(|id| id.try_into().ok())
            .ok_or_else(invalid)?,
    );
    let device = generic(id, NETDEV_CMD_DEV_GET, NETDEV_A_DEV_IFINDEX, &index.to_ne_bytes())?;
    let features = attribute(&device, NETDEV_A_DEV_XDP_FEATURES).ok_or_else(invalid)?;
    let features = u64::from_ne_bytes(
        features
            .get(..8)
            .and_then(|f| f.try_into().ok())
            .ok_or_else(invalid)?,
    );
    Ok(features & XSK_ZEROCOPY != 0)
}

/// The number of a multicast group of a generic family.
///
/// # Errors
///
/// ENOENT where the kernel has no such family, or the family no such group.
pub(super) fn multicast_group(name: &[u8], group: &[u8]) -> io::Result<u32> {
    const CTRL_ATTR_MCAST_GROUPS: u16 = 7;
    const CTRL_ATTR_MCAST_GRP_NAME: u16 = 1;
    const CTRL_ATTR_MCAST_GRP_ID: u16 = 2;
    /// More than any family has. They are numbered from 1 on.
    const GROUPS: u16 = 64;

    let family = family(name)?;
    let groups = attribute(&family, CTRL_ATTR_MCAST_GROUPS).unwrap_or_default();
    let id = (1..GROUPS)
        .filter_map(|number| attribute(groups, number))
        .filter(|one| attribute(one, CTRL_ATTR_MCAST_GRP_NAME) == Some(group))
        .find_map(|one| attribute(one, CTRL_ATTR_MCAST_GRP_ID)?.get(..4)?.try_into().ok());
    id.map(u32::from_ne_bytes)
        .ok_or_else(|| io::Error::from_raw_os_error(libc::ENOENT))
}

/// What the kernel says of a generic family (`ctrl_getfamily`, net/netlink/genetlink.c).
fn family(name: &[u8]) -> io::Result<Vec<u8>> {
    const GENL_ID_CTRL: u16 = 0x10;
    const CTRL_CMD_GETFAMILY: u8 = 3;
    const CTRL_ATTR_FAMILY_NAME: u16 = 2;

    generic(GENL_ID_CTRL, CTRL_CMD_GETFAMILY, CTRL_ATTR_FAMILY_NAME, name)
}

const NLMSG_HEADER_BYTES: usize = 16;
const GENL_HEADER_BYTES: usize = 4;
const ATTRIBUTE_HEADER_BYTES: usize = 4;

/// One generic netlink question with one attribute; gives the attributes of the answer.
fn generic(family: u16, command: u8, kind: u16, value: &[u8]) -> io::Result<Vec<u8>> {
    let length = ATTRIBUTE_HEADER_BYTES + value.len();
    let total = NLMSG_HEADER_BYTES + GENL_HEADER_BYTES + length.next_multiple_of(4);
    let mut bytes = Vec::with_capacity(total);
    bytes.extend(u32::try_from(total).map_err(io::Error::other)?.to_ne_bytes());
    bytes.extend(family.to_ne_bytes());
    bytes.extend((NLM_F_REQUEST | NLM_F_ACK).to_ne_bytes());
    // Sequence number and port: the kernel fills in the one, the other is 0 in the only question of a socket.
    bytes.extend([0; 8]);
    bytes.extend([command, 1, 0, 0]);
    bytes.extend(u16::try_from(length).map_err(io::Error::other)?.to_ne_bytes());
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(value);
    bytes.resize(total, 0);
    let mut answer = None;
    exchange(NETLINK_GENERIC, &bytes, false, |message| {
        answer.get_or_insert_with(|| message.to_vec());
        Ok(())
    })?;
    let answer = answer.ok_or_else(|| io::Error::from(io::ErrorKind::InvalidData))?;
    Ok(answer
        .get(NLMSG_HEADER_BYTES + GENL_HEADER_BYTES..)
        .unwrap_or_default()
        .to_vec())
}

/// Command and attributes of a generic message.
pub(super) fn attributes_of(message: &[u8]) -> Option<(u8, &[u8])> {
    let command = *message.get(NLMSG_HEADER_BYTES)?;
    Some((command, message.get(NLMSG_HEADER_BYTES + GENL_HEADER_BYTES..)?))
}

/// Finds an attribute among others.
pub(super) fn attribute(mut bytes: &[u8], wanted: u16) -> Option<&[u8]> {
    loop {
        let length = usize::from(u16::from_ne_bytes(bytes.get(..2)?.try_into().ok()?));
        let kind = u16::from_ne_bytes(bytes.get(2..4)?.try_into().ok()?);
        let value = bytes.get(ATTRIBUTE_HEADER_BYTES..length)?;
        if kind & 0x3fff == wanted {
            return Some(value);
        }
        bytes = bytes.get(length.next_multiple_of(4)..)?;
    }
}

/// Sends a question and has each message of the answer taken, until its acknowledgement or the end of the dump.
fn exchange(
    protocol: isize,
    question: &[u8],
    dump: bool,
    mut take: impl FnMut(&[u8]) -> io::Result<()>,
) -> io::Result<()> {
    const NLMSG_ERROR: u16 = 2;
    const NLMSG_DONE: u16 = 3;

    let socket = Socket::new(protocol)?;
    socket.send_to(question, &SocketAddr::new(0, 0), 0)?;
    loop {
        let (datagram, _) = socket.recv_from_full()?;
        let mut rest = datagram.as_slice();
        while let Some((length, kind)) = message_header(rest) {
            let Some(message) = rest.get(..length) else { break };
            match kind {
                NLMSG_ERROR => {
                    let code = message.get(16..20).and_then(|code| code.try_into().ok());
                    let code = i32::from_ne_bytes(code.unwrap_or_default());
                    // 0 is the acknowledgement that we asked for.
                    return if code == 0 {
                        Ok(())
                    } else {
                        Err(io::Error::from_raw_os_error(-code))
                    };
                }
                NLMSG_DONE if dump => return Ok(()),
                _ => take(message)?,
            }
            rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        }
    }
}

pub(super) fn message_header(bytes: &[u8]) -> Option<(usize, u16)> {
    let length = usize::try_from(u32::from_ne_bytes(bytes.get(..4)?.try_into().ok()?)).ok()?;
    let kind = u16::from_ne_bytes(bytes.get(4..6)?.try_into().ok()?);
    (length >= NLMSG_HEADER_BYTES).then_some((length, kind))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_namespace_has_a_loopback() {
        const LOOPBACK_IFINDEX: u32 = 1;
        let link = link_of(LOOPBACK_IFINDEX).unwrap();
        assert_eq!((link.controller, link.xdp), (None, None));
        assert!(!default_route_devices().unwrap().contains(&LOOPBACK_IFINDEX));
    }

    #[test]
    fn a_device_that_is_not_there_is_enodev() {
        let error = link_of(0x7fff_ffff).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::ENODEV));
    }

    #[test]
    fn loopback_has_no_zero_copy() {
        match may_do_zero_copy(1) {
            Ok(zero_copy) => assert!(!zero_copy),
            // Linux before 6.3.
            Err(error) => assert_eq!(error.raw_os_error(), Some(libc::ENOENT)),
        }
    }

    #[test]
    fn broken_attributes_are_none() {
        assert_eq!(attribute(&[], 1), None);
        assert_eq!(attribute(&[0, 0, 0, 0, 0, 0, 0, 0], 1), None);
        assert_eq!(attribute(&[255, 255, 1, 0], 1), None);
    }
}
