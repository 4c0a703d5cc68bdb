//! The fixture's packets are right, and its echo loop sees what goes wrong.

use std::net::{Ipv4Addr, UdpSocket};
use std::time::Duration;

use e2e::echo_loop::EchoLoop;
use e2e::packets::{Checksums, End, Mac, Parsed, arp_request, checksum, echo_request, parse, udp};

const ONE: End = End {
    mac: Mac([2, 0, 0, 0, 0, 1]),
    address: Ipv4Addr::new(10, 0, 0, 1),
    port: 1111,
};
const OTHER: End = End {
    mac: Mac([2, 0, 0, 0, 0, 2]),
    address: Ipv4Addr::new(10, 0, 0, 2),
    port: 2222,
};

#[test]
fn what_is_built_parses_back() {
    for len in [0, 1, 2, 17, 1472] {
        let payload: Vec<u8> = (0..len).map(|i: u32| i.to_le_bytes()[0]).collect();
        let frame = udp(ONE, OTHER, &payload);
        let parsed = Parsed::Udp {
            from: ONE,
            to: OTHER,
            checksums: Checksums::Right,
            payload: &payload,
        };
        assert_eq!(parse(&frame), Some(parsed));

        let mut spoiled = frame.clone();
        spoiled[30] ^= 1;
        assert!(matches!(
            parse(&spoiled),
            Some(Parsed::Udp {
                checksums: Checksums::Wrong,
                ..
            })
        ));
        for end in 0..frame.len() {
            assert!(
                !matches!(parse(&frame[..end]), Some(Parsed::Udp { .. })),
                "cut at {end}"
            );
        }
    }
    let asked = arp_request(ONE, OTHER.address);
    let expected = Parsed::Arp {
        operation: 1,
        sender: (ONE.mac, ONE.address),
        target: (Mac([0; 6]), OTHER.address),
    };
    assert_eq!(parse(&asked), Some(expected));
    let ping = echo_request(ONE, OTHER, 5, b"abc");
    let Some(Parsed::Icmp {
        kind: 8,
        identifier: 1111,
        sequence: 5,
        checksums,
        payload,
        ..
    }) = parse(&ping)
    else {
        panic!("{:?}", parse(&ping))
    };
    assert_eq!((checksums, payload), (Checksums::Right, b"abc".as_slice()));
}

#[test]
fn the_checksum_is_that_of_rfc_1071() {
    assert_eq!(
        checksum(&[0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7]),
        !0xddf2
    );
    assert_eq!(checksum(&[0xff]), !0xff00);
    assert_eq!(checksum(&[]), 0xffff);
}

/// What an unfaithful echo does to the n-th datagram.
fn unfaithful(count: u32, answer: impl Fn(u32, &[u8]) -> Vec<Vec<u8>> + Send + 'static) -> String {
    let server = UdpSocket::bind("127.0.0.1:0").unwrap();
    let target = server.local_addr().unwrap();
    let thread = std::thread::spawn(move || {
        let mut buffer = [0; 2048];
        for number in 0..count {
            let (len, from) = server.recv_from(&mut buffer).unwrap();
            for datagram in answer(number, &buffer[..len]) {
                server.send_to(&datagram, from).unwrap();
            }
        }
    });
    let client = UdpSocket::bind("127.0.0.1:0").unwrap();
    let mut echo = EchoLoop::new(target, count);
    echo.patience = Duration::from_millis(200);
    let counted = echo.run(&client).unwrap();
    thread.join().unwrap();
    assert_eq!(counted.sent, count);
    format!(
        "echoed {} lost {} duplicated {} corrupted {}",
        counted.echoed, counted.lost, counted.duplicated, counted.corrupted
    )
}

#[test]
fn the_echo_loop_counts_what_goes_wrong() {
    let same = |_, data: &[u8]| vec![data.to_vec()];
    assert_eq!(
        unfaithful(100, same),
        "echoed 100 lost 0 duplicated 0 corrupted 0"
    );
    let lossy = |number, data: &[u8]| if number == 7 { vec![] } else { vec![data.to_vec()] };
    assert_eq!(
        unfaithful(100, lossy),
        "echoed 99 lost 1 duplicated 0 corrupted 0"
    );
    let twice = |number, data: &[u8]| vec![data.to_vec(); if number == 99 { 2 } else { 1 }];
    assert_eq!(
        unfaithful(100, twice),
        "echoed 100 lost 0 duplicated 1 corrupted 0"
    );
    let flipped = |number, data: &[u8]| {
        let mut data = data.to_vec();
        if number == 3 {
            *data.last_mut().unwrap() ^= 1;
        }
        vec![data]
    };
    assert_eq!(
        unfaithful(100, flipped),
        "echoed 99 lost 1 duplicated 0 corrupted 1"
    );
    let longer = |number, data: &[u8]| vec![[data, if number == 3 { b"x" } else { b"" }].concat()];
    assert_eq!(
        unfaithful(100, longer),
        "echoed 99 lost 1 duplicated 0 corrupted 1"
    );
    // The contents of another's number under one's own.
    let swapped = |number, data: &[u8]| {
        let mut data = data.to_vec();
        if number == 5 {
            data[11] ^= 1;
        }
        vec![data]
    };
    assert_eq!(
        unfaithful(100, swapped),
        "echoed 99 lost 1 duplicated 0 corrupted 1"
    );
}
