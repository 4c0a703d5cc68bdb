//! Closing of bound sockets, which waits for all CPUs (`synchronize_net` in `xsk_unbind_dev`, net/xdp/xsk.c: 10 to 30 ms
//! each) and must not keep the engine. Several threads, since the wait is one and the same for all that wait at once.

use std::os::fd::OwnedFd;

/// More would be no faster, and a service manager counts them.
const THREADS: usize = 16;

/// Closes these some time soon.
pub(super) fn close_elsewhere(sockets: impl Iterator<Item = OwnedFd>) {
    let mut shares: Vec<Vec<OwnedFd>> = Vec::new();
    for (number, socket) in sockets.enumerate() {
        match shares.get_mut(number % THREADS) {
            Some(share) => share.push(socket),
            None => shares.push(vec![socket]),
        }
    }
    for share in shares {
        let closer = std::thread::Builder::new().name("closer".into());
        // Where there can be no more threads the share is dropped here, which closes it as well.
        if let Err(error) = closer.spawn(move || drop(share)) {
            tracing::warn!(%error, "no thread to close sockets on: everybody waits for it");
        }
    }
}
