//! Frames: built and taken apart by hand, so that hostile ones can be built as well.

use std::fmt;
use std::net::Ipv4Addr;

/// An Ethernet address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Mac(pub [u8; 6]);

impl Mac {
    /// To everybody.
    pub const BROADCAST: Self = Self([0xff; 6]);
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

/// `ETH_P_IP`
pub const ETHERTYPE_IPV4: u16 = 0x0800;
/// `ETH_P_ARP`
pub const ETHERTYPE_ARP: u16 = 0x0806;
/// `IPPROTO_ICMP`
pub const PROTOCOL_ICMP: u8 = 1;
/// `IPPROTO_UDP`
pub const PROTOCOL_UDP: u8 = 17;

/// One end of a packet's way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct End {
    /// Its Ethernet address.
    pub mac: Mac,
    /// Its IPv4 address.
    pub address: Ipv4Addr,
    /// Its UDP port; the identifier of an ICMP echo.
    pub port: u16,
}

/// An Ethernet frame.
pub fn ethernet(to: Mac, from: Mac, ethertype: u16, payload: &[u8]) -> Vec<u8> {
    let mut frame = Vec::with_capacity(14 + payload.len());
    frame.extend(to.0);
    frame.extend(from.0);
    frame.extend(ethertype.to_be_bytes());
    frame.extend(payload);
    frame
}

/// An IPv4 packet without options, with a right checksum. A payload beyond 65,515 bytes is cut.
pub fn ipv4(from: Ipv4Addr, to: Ipv4Addr, protocol: u8, payload: &[u8]) -> Vec<u8> {
    let payload = &payload[..payload.len().min(usize::from(u16::MAX) - 20)];
    let total = u16::try_from(20 + payload.len()).unwrap_or(u16::MAX);
    let mut packet = vec![0x45, 0, 0, 0, 0, 0, 0x40, 0, 64, protocol, 0, 0];
    packet[2..4].copy_from_slice(&total.to_be_bytes());
    packet.extend(from.octets());
    packet.extend(to.octets());
    let sum = checksum(&packet);
    packet[10..12].copy_from_slice(&sum.to_be_bytes());
    packet.extend(payload);
    packet
}

/// A whole frame with a UDP datagram, with a right checksum.
pub fn udp(from: End, to: End, payload: &[u8]) -> Vec<u8> {
    let len = u16::try_from(8 + payload.len()).unwrap_or(u16::MAX);
    let mut datagram = Vec::with_capacity(8 + payload.len());
    datagram.extend(from.port.to_be_bytes());
    datagram.extend(to.port.to_be_bytes());
    datagram.extend(len.to_be_bytes());
    datagram.extend([0, 0]);
    datagram.extend(payload);

    let mut covered = Vec::with_capacity(12 + datagram.len());
    covered.extend(from.address.octets());
    covered.extend(to.address.octets());
    covered.extend([0, PROTOCOL_UDP]);
    covered.extend(len.to_be_bytes());
    covered.extend(&datagram);
    // 0 means "no checksum", so a sum of 0 is sent as its other representation.
    let sum = match checksum(&covered) {
        0 => 0xffff,
        sum => sum,
    };
    datagram[6..8].copy_from_slice(&sum.to_be_bytes());
    ethernet(
        to.mac,
        from.mac,
        ETHERTYPE_IPV4,
        &ipv4(from.address, to.address, PROTOCOL_UDP, &datagram),
    )
}

/// A whole frame that asks who has `wanted`.
pub fn arp_request(from: End, wanted: Ipv4Addr) -> Vec<u8> {
    let mut request = vec![0, 1, 8, 0, 6, 4, 0, 1];
    request.extend(from.mac.0);
    request.extend(from.address.octets());
    request.extend([0; 6]);
    request.extend(wanted.octets());
    ethernet(Mac::BROADCAST, from.mac, ETHERTYPE_ARP, &request)
}

/// A whole frame with an ICMP echo request; the identifier is the sender's `port`.
pub fn echo_request(from: End, to: End, sequence: u16, payload: &[u8]) -> Vec<u8> {
    let mut message = vec![8, 0, 0, 0];
    message.extend(from.port.to_be_bytes());
    message.extend(sequence.to_be_bytes());
    message.extend(payload);
    let sum = checksum(&message);
    message[2..4].copy_from_slice(&sum.to_be_bytes());
    ethernet(
        to.mac,
        from.mac,
        ETHERTYPE_IPV4,
        &ipv4(from.address, to.address, PROTOCOL_ICMP, &message),
    )
}

/// What a frame holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Parsed<'a> {
    /// UDP over IPv4.
    Udp {
        /// Who sent it.
        from: End,
        /// To whom.
        to: End,
        /// Whether both checksums are right; UDP's may be absent.
        checksums: Checksums,
        /// Its contents.
        payload: &'a [u8],
    },
    /// An ARP message.
    Arp {
        /// 1 asks, 2 answers.
        operation: u16,
        /// Who has it.
        sender: (Mac, Ipv4Addr),
        /// Who is asked, or answered.
        target: (Mac, Ipv4Addr),
    },
    /// An ICMP message.
    Icmp {
        /// Who sent it.
        from: Ipv4Addr,
        /// To whom.
        to: Ipv4Addr,
        /// 8 is an echo request, 0 its reply.
        kind: u8,
        /// An echo's identifier.
        identifier: u16,
        /// An echo's number.
        sequence: u16,
        /// Whether both checksums are right.
        checksums: Checksums,
        /// An echo's contents.
        payload: &'a [u8],
    },
    /// Something else, by its Ethernet type.
    Other(u16),
}

/// Whether a packet's checksums fit its contents.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Checksums {
    /// They do.
    Right,
    /// One does not.
    Wrong,
}

/// Takes a frame apart; `None` where it is shorter than it says.
pub fn parse(frame: &[u8]) -> Option<Parsed<'_>> {
    let (to, from) = (Mac(array(frame, 0)?), Mac(array(frame, 6)?));
    let ethertype = half(frame, 12)?;
    match ethertype {
        ETHERTYPE_ARP => Some(Parsed::Arp {
            operation: half(frame, 20)?,
            sender: (Mac(array(frame, 22)?), address(frame, 28)?),
            target: (Mac(array(frame, 32)?), address(frame, 38)?),
        }),
        ETHERTYPE_IPV4 => parse_ipv4(from, to, frame.get(14..)?),
        other => Some(Parsed::Other(other)),
    }
}

fn parse_ipv4(from_mac: Mac, to_mac: Mac, packet: &[u8]) -> Option<Parsed<'_>> {
    let packet = packet.get(..usize::from(half(packet, 2)?))?;
    let header = usize::from(packet.first()? & 0x0f) * 4;
    let (from, to) = (address(packet, 12)?, address(packet, 16)?);
    let body = packet.get(header..)?;
    let header_is_right = checksum(packet.get(..header)?) == 0;
    match *packet.get(9)? {
        PROTOCOL_UDP => {
            let datagram = body.get(..usize::from(half(body, 4)?))?;
            let mut covered = [from.octets(), to.octets()].concat();
            covered.extend([0, PROTOCOL_UDP]);
            covered.extend(array::<2>(datagram, 4)?);
            covered.extend(datagram);
            let right = header_is_right && (half(datagram, 6)? == 0 || checksum(&covered) == 0);
            Some(Parsed::Udp {
                from: End {
                    mac: from_mac,
                    address: from,
                    port: half(datagram, 0)?,
                },
                to: End {
                    mac: to_mac,
                    address: to,
                    port: half(datagram, 2)?,
                },
                checksums: if right { Checksums::Right } else { Checksums::Wrong },
                payload: datagram.get(8..)?,
            })
        }
        PROTOCOL_ICMP => {
            let right = header_is_right && checksum(body) == 0;
            Some(Parsed::Icmp {
                from,
                to,
                kind: *body.first()?,
                identifier: half(body, 4)?,
                sequence: half(body, 6)?,
                checksums: if right { Checksums::Right } else { Checksums::Wrong },
                payload: body.get(8..)?,
            })
        }
        _ => Some(Parsed::Other(ETHERTYPE_IPV4)),
    }
}

/// The Internet checksum (RFC 1071): over data that holds its own checksum it is 0.
pub fn checksum(data: &[u8]) -> u16 {
    let mut sum: u32 = data
        .chunks(2)
        .map(|pair| u32::from(u16::from_be_bytes([pair[0], pair.get(1).copied().unwrap_or(0)])))
        .sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !u16::try_from(sum).unwrap_or(u16::MAX)
}

fn array<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..at + N)?.try_into().ok()
}

fn half(bytes: &[u8], at: usize) -> Option<u16> {
    array(bytes, at).map(u16::from_be_bytes)
}

fn address(bytes: &[u8], at: usize) -> Option<Ipv4Addr> {
    array::<4>(bytes, at).map(Ipv4Addr::from)
}
