//! Requests come in pieces, several at once, late, and with fds that nobody wants.

use std::os::fd::AsFd;
use std::thread;
use std::time::{Duration, Instant};

use e2e::leaks::Fds;
use e2e::raw_client::{PATIENCE, RawClient};
use e2e::world::World;

use crate::scene::{Scene, explain, is_served};

#[test]
fn a_request_may_be_cut_anywhere() {
    let world = World::new().unwrap();
    let scene = Scene::new(&world);
    let mut client = scene.client();
    let expected = client.exchange(&explain(1)).unwrap().unwrap();
    let mut message = explain(1);
    message.push(0);
    for cut in 1..message.len() {
        client.send(&message[..cut]).unwrap();
        // Else the kernel may join the parts again.
        client.wait_read().unwrap();
        client.send(&message[cut..]).unwrap();
        assert_eq!(
            client.receive().unwrap().as_ref(),
            Some(&expected),
            "cut after {cut} bytes"
        );
    }
    drop(client);
    scene.finish();
}

#[test]
fn requests_in_one_write_are_answered_in_order() {
    let world = World::new().unwrap();
    let scene = Scene::new(&world);
    let mut client = scene.client();
    let mut message = Vec::new();
    for queue in [1, 2, 5, 3] {
        message.extend(explain(queue));
        message.push(0);
    }
    // The last one's beginning is in the same write, its end is not.
    let last = message.len() - 10;
    client.send(&message[..last]).unwrap();
    for queue in [1, 2, 5] {
        let reply = client.receive().unwrap().unwrap();
        assert_eq!(reply["parameters"]["granted"], queue != 5, "{reply}");
    }
    client.send(&message[last..]).unwrap();
    assert_eq!(client.receive().unwrap().unwrap()["parameters"]["granted"], true);
    drop(client);
    scene.finish();
}

#[test]
fn a_request_has_one_deadline_however_it_drips() {
    let world = World::new().unwrap();
    let scene = Scene::new(&world);
    let mut idle = scene.client();
    let mut once_served = scene.client();
    assert!(is_served(&mut once_served));
    thread::scope(|scope| {
        let dripping = scope.spawn(|| closed_after(scene.client(), Some(b' ')));
        let silent = scope.spawn(|| closed_after(scene.client(), None));
        // Others are served meanwhile.
        let mut good = scene.client();
        while !(dripping.is_finished() && silent.is_finished()) {
            assert!(is_served(&mut good));
            thread::sleep(Duration::from_millis(20));
        }
        for (name, took) in [
            ("dripping", dripping.join().unwrap()),
            ("silent", silent.join().unwrap()),
        ] {
            let bounds = Duration::from_millis(4500)..Duration::from_secs(8);
            assert!(bounds.contains(&took), "{name}: {took:?}");
        }
    });
    // Who asks for nothing has no deadline.
    assert!(is_served(&mut idle));
    assert!(is_served(&mut once_served));
    drop((idle, once_served));
    scene.finish();
}

/// How long it takes from the first byte of a request that never ends until the connection is closed.
fn closed_after(mut client: RawClient, drip: Option<u8>) -> Duration {
    let start = Instant::now();
    client.send(b"{").unwrap();
    while !client.is_closed().unwrap() {
        assert!(start.elapsed() < PATIENCE);
        if let Some(byte) = drip {
            // It may be closed since the look.
            drop(client.send(&[byte]));
        }
        thread::sleep(Duration::from_millis(50));
    }
    start.elapsed()
}

#[test]
fn fds_that_clients_send_are_never_the_brokers() {
    let world = World::new().unwrap();
    let scene = Scene::new(&world);
    let mut client = scene.client();
    assert!(is_served(&mut client));
    let before = Fds::of(scene.broker.process().pid()).unwrap();
    let file = std::fs::File::open("/dev/null").unwrap();
    let fds = vec![file.as_fd(); 200];
    for _ in 0..20 {
        match client.send_with_fds(&[&explain(1)[..], b"\0"].concat(), &fds) {
            Ok(()) => {
                let reply = client.receive().unwrap().unwrap();
                assert_eq!(reply["parameters"]["granted"], true);
            }
            // SO_PASSRIGHTS, since Linux 6.16: it is the sender who is refused.
            Err(error) => assert_eq!(error.kind(), std::io::ErrorKind::PermissionDenied),
        }
        let now = Fds::of(scene.broker.process().pid()).unwrap();
        assert_eq!(now.differences(&before).collect::<Vec<_>>(), Vec::<String>::new());
    }
    assert!(is_served(&mut client));
    drop(client);
    scene.finish();
}
