//! One socket's book-keeping, without a socket.

use std::ptr::NonNull;

use super::*;
use crate::cast;
use crate::umem::UmemOptions;

fn sockets(chunks: u32, count: usize) -> Vec<Chunks> {
    let umem = Umem::new(&UmemOptions::new().chunks(chunks)).unwrap();
    let shares = Pool::divide(umem, count).unwrap();
    shares.into_iter().map(Chunks::new).collect()
}

fn sent(chunks: &mut Chunks, addresses: &[u64]) {
    let mut addresses = addresses.to_vec();
    let run = Run {
        start: NonNull::from(addresses.as_mut_slice()).cast(),
        count: cast::count(addresses.len()),
    };
    assert_eq!(chunks.take_sent(&run, None), run.count);
}

fn admits(chunks: &mut Chunks, address: u64, length: u64) -> bool {
    chunks.admit(address, length) != REFUSED
}

#[test]
fn unaligned_chunks_are_told_by_division() {
    let options = UmemOptions::new().chunk_bytes(3000).chunks(4).unaligned();
    let share = Pool::divide(Umem::new(&options).unwrap(), 1)
        .unwrap()
        .pop()
        .unwrap();
    let mut chunks = Chunks::new(share);
    assert_eq!(chunks.limit(), 0);
    assert_eq!(chunks.admit(3000 | 256 << 48, 2744), 3256);
    assert_eq!(chunks.admit(3000 | 256 << 48, 2745), REFUSED);
    assert_eq!(chunks.admit(4 * 3000, 1), REFUSED);
    assert_eq!(chunks.admit_free(6000 | 256 << 48), 6000);
    // A frame that was sent from within its chunk comes back as the chunk.
    chunks.free.set_len(3);
    sent(&mut chunks, &[3256]);
    assert_eq!(chunks.free.as_slice(), [9000, 6000, 3000, 3000]);
}

#[test]
fn what_a_ring_may_not_name() {
    let mut chunks = sockets(4, 1).pop().unwrap();
    assert!(admits(&mut chunks, 0, 2048));
    assert!(admits(&mut chunks, 3 * 2048 + 256, 2048 - 256));
    assert!(!admits(&mut chunks, 3 * 2048 + 256, 2048 - 255));
    assert!(!admits(&mut chunks, 4 * 2048, 1));
    assert!(!admits(&mut chunks, u64::MAX, 1));
    assert!(!admits(&mut chunks, 256, u64::MAX));
    assert!(!admits(&mut chunks, 256, u64::from(u32::MAX)));
    assert_eq!(chunks.refused(), 5);
    chunks.leave(2048 + 300);
    assert_eq!(chunks.limit(), 0);
    assert!(!admits(&mut chunks, 2048, 1));
    assert!(admits(&mut chunks, 0, 1));
    chunks.enter(2048);
    assert_eq!(chunks.limit(), 4 * 2048);
    assert!(admits(&mut chunks, 2048, 1));
}

#[test]
fn a_guest_goes_home_when_it_was_sent_and_nowhere_else() {
    let mut both = sockets(8, 2);
    let (mut other, mut home) = (both.pop().unwrap(), both.pop().unwrap());
    assert_eq!(home.free.as_slice(), [3 * 2048, 2 * 2048, 2048, 0]);
    assert_eq!(other.free.as_slice(), [7 * 2048, 6 * 2048, 5 * 2048, 4 * 2048]);
    assert!(admits(&mut home, 0, 1) && !admits(&mut home, 4 * 2048, 1));
    home.free.set_len(3);
    home.leave(256);
    other.enter(256);
    // On its way it is nobody's to lend.
    assert!(!admits(&mut home, 0, 1) && !admits(&mut other, 0, 1));
    // One of its own, the guest, the guest again, one that it never had.
    other.free.set_len(3);
    sent(&mut other, &[4 * 2048, 256, 256, 2048]);
    assert_eq!(other.free.as_slice().len(), 4);
    assert_eq!(other.refused(), 1 + 2);
    assert!(!admits(&mut home, 0, 1));
    home.collect();
    assert!(admits(&mut home, 0, 1));
    assert_eq!(home.free.as_slice(), [3 * 2048, 2 * 2048, 2048, 0]);
}
