//! Turns a packet round: the answer to an ARP request, an ICMP echo request or a UDP datagram, written over it.
//!
//! No packet makes it panic: every field is read through a checked slice, and what is not understood is left alone.

/// Offsets in an Ethernet frame without VLAN tag.
const ETHERTYPE: usize = 12;
const PAYLOAD: usize = 14;

/// Writes the answer over `packet`, and says how long it is. `None`: nothing to answer; the packet may have changed.
///
/// `our_ip` limits the answers to that address; `None` answers for every address.
pub(crate) fn turn(packet: &mut [u8], our_ip: Option<[u8; 4]>) -> Option<usize> {
    let ethertype = bytes(packet, ETHERTYPE)?;
    let length = match ethertype {
        [0x08, 0x06] => arp(packet.get_mut(PAYLOAD..)?, our_ip),
        [0x08, 0x00] => ipv4(packet.get_mut(PAYLOAD..)?, our_ip),
        _ => None,
    }?;
    swap(packet, 0, 6, 6)?;
    if ethertype == [0x08, 0x06] {
        // The request came by broadcast; the answer is from us, as it says inside.
        let ours: [u8; 6] = bytes(packet, PAYLOAD + 8)?;
        packet.get_mut(6..12)?.copy_from_slice(&ours);
    }
    Some(PAYLOAD + length)
}

/// A made-up hardware address, locally administered: 02:00 and the IP address that it stands for.
fn hardware_address(ip: [u8; 4]) -> [u8; 6] {
    [2, 0, ip[0], ip[1], ip[2], ip[3]]
}

/// "Who has `ip`?": we have.
fn arp(message: &mut [u8], our_ip: Option<[u8; 4]>) -> Option<usize> {
    // Ethernet, IPv4, request.
    if bytes(message, 0)? != [0, 1, 8, 0, 6, 4, 0, 1] {
        return None;
    }
    let wanted: [u8; 4] = bytes(message, 24)?;
    if our_ip.is_some_and(|ip| ip != wanted) {
        return None;
    }
    message[7] = 2;
    swap(message, 8, 18, 10)?;
    message.get_mut(8..14)?.copy_from_slice(&hardware_address(wanted));
    Some(28)
}

/// Swapping the addresses leaves the header's checksum as it was: it is a sum.
fn ipv4(header: &mut [u8], our_ip: Option<[u8; 4]>) -> Option<usize> {
    let [version_and_length] = bytes(header, 0)?;
    let header_length = usize::from(version_and_length & 15) * 4;
    let total = usize::from(u16::from_be_bytes(bytes(header, 2)?));
    let fragment = u16::from_be_bytes(bytes(header, 6)?) & 0x3fff;
    let [protocol] = bytes(header, 9)?;
    let meant_for_us = our_ip.is_none_or(|ip| bytes(header, 16) == Some(ip));
    if version_and_length >> 4 != 4 || header_length < 20 || fragment != 0 || !meant_for_us {
        return None;
    }
    let payload = header.get_mut(header_length..total)?;
    match protocol {
        1 => icmp(payload),
        17 => udp(payload),
        _ => None,
    }?;
    swap(header, 12, 16, 4)?;
    Some(total)
}

/// Echo request becomes echo reply. The type falls by 8, so the checksum rises by 8 in the same byte (RFC 1624).
fn icmp(message: &mut [u8]) -> Option<()> {
    let [8, 0] = bytes(message, 0)? else { return None };
    let sum = u16::from_be_bytes(bytes(message, 2)?);
    let (sum, carry) = sum.overflowing_add(0x0800);
    message[0] = 0;
    message
        .get_mut(2..4)?
        .copy_from_slice(&(sum + u16::from(carry)).to_be_bytes());
    Some(())
}

/// Swapping ports and addresses leaves the checksum as it was.
fn udp(datagram: &mut [u8]) -> Option<()> {
    bytes::<8>(datagram, 0)?;
    swap(datagram, 0, 2, 2)
}

/// `N` bytes from `start` on.
fn bytes<const N: usize>(packet: &[u8], start: usize) -> Option<[u8; N]> {
    packet.get(start..)?.first_chunk().copied()
}

/// Swaps two fields of `length` bytes; the second one begins behind the first.
fn swap(packet: &mut [u8], first: usize, second: usize, length: usize) -> Option<()> {
    let (before, from_second) = packet.split_at_mut_checked(second)?;
    before
        .get_mut(first..first + length)?
        .swap_with_slice(from_second.get_mut(..length)?);
    Some(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const CLIENT_MAC: [u8; 6] = [2, 1, 1, 1, 1, 1];
    const OUR_MAC: [u8; 6] = [2, 0, 10, 0, 0, 2];

    fn frame(to: [u8; 6], ethertype: [u8; 2], payload: &[u8]) -> Vec<u8> {
        [&to[..], &CLIENT_MAC, &ethertype, payload].concat()
    }

    fn ip(protocol: u8, payload: &[u8]) -> Vec<u8> {
        let total = u16::try_from(20 + payload.len()).unwrap().to_be_bytes();
        let header = [
            0x45, 0, total[0], total[1], 0, 0, 0x40, 0, 64, protocol, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2,
        ];
        frame(OUR_MAC, [8, 0], &[&header[..], payload].concat())
    }

    fn internet_checksum(bytes: &[u8]) -> u16 {
        let sum: u32 = bytes
            .chunks(2)
            .map(|pair| u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0)))
            .sum();
        let sum = (sum & 0xffff) + (sum >> 16);
        u16::try_from((sum & 0xffff) + (sum >> 16)).unwrap()
    }

    #[test]
    fn arp_is_answered_for_our_address() {
        let request = [
            &[0, 1, 8, 0, 6, 4, 0, 1][..],
            &CLIENT_MAC,
            &[10, 0, 0, 1],
            &[0; 6],
            &[10, 0, 0, 2],
        ]
        .concat();
        let mut packet = frame([0xff; 6], [8, 6], &request);
        packet.extend([0; 18]);
        assert_eq!(turn(&mut packet.clone(), Some([10, 0, 0, 3])), None);
        assert_eq!(turn(&mut packet, Some([10, 0, 0, 2])), Some(42));
        let answer = [
            &[0, 1, 8, 0, 6, 4, 0, 2][..],
            &OUR_MAC,
            &[10, 0, 0, 2],
            &CLIENT_MAC,
            &[10, 0, 0, 1],
        ]
        .concat();
        assert_eq!(packet[..12], [CLIENT_MAC, OUR_MAC].concat());
        assert_eq!(packet[14..42], answer);
    }

    #[test]
    fn icmp_echo_keeps_a_valid_checksum() {
        for sequence in 0..=u16::MAX {
            let mut message = [[8, 0, 0, 0, 1, 2], [0, 0, b'x', b'y', b'z', b'!']].concat();
            message[6..8].copy_from_slice(&sequence.to_be_bytes());
            let sum = !internet_checksum(&message);
            message[2..4].copy_from_slice(&sum.to_be_bytes());
            let mut packet = ip(1, &message);
            let length = packet.len();
            assert_eq!(turn(&mut packet, None), Some(length));
            assert_eq!(packet[34], 0);
            assert_eq!(internet_checksum(&packet[34..]), 0xffff, "sequence {sequence}");
            assert_eq!(packet[26..34], [10, 0, 0, 2, 10, 0, 0, 1]);
        }
    }

    #[test]
    fn udp_goes_back_to_its_port() {
        let mut packet = ip(17, &[0x10, 0x00, 0x00, 0x07, 0, 12, 0xab, 0xcd, 1, 2, 3, 4]);
        assert_eq!(turn(&mut packet, Some([10, 0, 0, 2])), Some(46));
        assert_eq!(packet[..12], [CLIENT_MAC, OUR_MAC].concat());
        assert_eq!(
            packet[34..46],
            [0x00, 0x07, 0x10, 0x00, 0, 12, 0xab, 0xcd, 1, 2, 3, 4]
        );
    }

    #[test]
    fn no_packet_makes_it_panic() {
        let mut state = 1_u64;
        let mut byte = move || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            state.to_be_bytes()[0]
        };
        let whole = [
            ip(17, &[0; 12]),
            ip(1, &[8; 12]),
            frame(OUR_MAC, [8, 6], &[0; 28]),
        ];
        for packet in &whole {
            for length in 0..packet.len() {
                turn(&mut packet[..length].to_vec(), None);
                for _ in 0..200 {
                    let mut garbled = packet[..length].to_vec();
                    let places = garbled.len().max(1);
                    if let Some(place) = garbled.get_mut(usize::from(byte()) % places) {
                        *place = byte();
                    }
                    turn(&mut garbled, None);
                }
            }
        }
    }
}
