//! What confines an unbound socket, and how one tells whether it is bound (F3, F34).

use e2e::netlink::LinkState;
use e2e::raw_xsk::{RawXsk, bind_to_device, is_bound};
use e2e::uids::Uid;
use e2e::world::{Side, World};
use rustix::io::Errno;
use rustix::net::xdp::SocketAddrXdpFlags;

const COPY: SocketAddrXdpFlags = SocketAddrXdpFlags::XDP_COPY;

#[test]
fn so_bindtodevice_pins_the_device_for_who_has_no_capability() {
    let world = World::builder().peers(2).build().unwrap();
    let (granted, other) = (world.wire(0).host.clone(), world.wire(1).host.clone());
    let socket = world.run_in(Side::Host, || RawXsk::new(2)).unwrap().unwrap();
    bind_to_device(&socket, &granted.name).unwrap();

    let uid = Uid::take().unwrap();
    // The holder may be anywhere: the device is looked up where the socket was made.
    uid.user()
        .run(world.namespace(Side::PEER), move || {
            assert_eq!(
                socket.bind(other.index, 0, COPY),
                Err(Errno::INVAL),
                "another device"
            );
            for device in [other.name.as_str(), ""] {
                let error = bind_to_device(&socket, device).unwrap_err();
                assert_eq!(error.raw_os_error(), Some(libc::EPERM), "rebinding to {device:?}");
            }
            assert!(!is_bound(&socket).unwrap());
            socket.bind(granted.index, 5, COPY).unwrap();
            assert!(is_bound(&socket).unwrap());
            assert_eq!(
                socket.bind(granted.index, 6, COPY),
                Err(Errno::BUSY),
                "a second bind"
            );
        })
        .unwrap();
}

#[test]
fn asking_whether_it_is_bound_has_no_effect() {
    let world = World::new().unwrap();
    let index = world.device(Side::Host).index;
    let socket = world.run_in(Side::Host, || RawXsk::new(2)).unwrap().unwrap();
    for _ in 0..100 {
        assert!(!is_bound(&socket).unwrap());
    }
    socket.bind(index, 7, COPY).unwrap();
    for _ in 0..100 {
        assert!(is_bound(&socket).unwrap());
    }

    // A bare one, which has no ring at all, tells as well.
    let bare = world
        .run_in(Side::Host, e2e::raw_xsk::bare_socket)
        .unwrap()
        .unwrap();
    assert!(!is_bound(&bare).unwrap());

    // It asks whether the socket was ever bound: one whose device has gone away says yes as well.
    world
        .netlink(Side::Host)
        .set_link(index, LinkState::Down)
        .unwrap();
    assert!(is_bound(&socket).unwrap());
    world.netlink(Side::Host).delete(index).unwrap();
    assert!(is_bound(&socket).unwrap());
}
