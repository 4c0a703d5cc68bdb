//! The raw layer of xsk-client: rings and descriptors, memory of one's own.

#![expect(
    unsafe_code,
    reason = "who maps a ring answers for the memory that its descriptors name"
)]

use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::ptr::NonNull;

use anyhow::{Context, Result};
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use rustix::io::Errno;
use rustix::net::{SendFlags, send};
use xsk_client::ring::{CompletionRing, CorruptRing, Descriptor, FillRing, RxRing, TxRing};
use xsk_client::sys::{self, BindFlags, Mapping, Prefault};

use crate::harness::{self, BATCH, CHUNK_BYTES, CHUNKS, Contender, FRAME_BYTES, Place, RING_ENTRIES};

pub(crate) struct Raw {
    rx: RxRing,
    tx: TxRing,
    fill: FillRing,
    completion: CompletionRing,
    memory: Mapping,
    /// The next chunk to send, in turn.
    next: u64,
    socket: OwnedFd,
}

/// The socket that the parent has left to this process.
pub(crate) fn handed_over(place: &Place) -> Result<OwnedFd> {
    let fd = place.fd.context("no socket was handed over")?;
    // SAFETY: the bench left this fd to this process by number, nobody else here knows it, and each contender is made
    // once.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Memory for the umem, with the frame in every chunk.
pub(crate) fn umem() -> Result<Mapping> {
    let memfd = memfd_create("bench", MemfdFlags::CLOEXEC)?;
    let bytes = u64::from(CHUNKS) * u64::from(CHUNK_BYTES);
    ftruncate(&memfd, bytes)?;
    let memory = Mapping::new(&memfd, 0, usize::try_from(bytes)?, Prefault::Yes)?;
    let frame = harness::frame();
    for chunk in 0..CHUNKS {
        let start = address(&memory, u64::from(chunk * CHUNK_BYTES));
        // SAFETY: a frame fits in a chunk, the chunk is in the mapping, and nobody else knows of it yet.
        unsafe { start.copy_from_nonoverlapping(NonNull::from(&frame).cast(), frame.len()) };
    }
    Ok(memory)
}

/// Where that address of the umem is. Its callers take it from a ring of the kernel's, or below `CHUNKS`.
#[inline]
pub(crate) fn address(memory: &Mapping, address: u64) -> NonNull<u8> {
    debug_assert!(address < memory.len() as u64);
    // SAFETY: the kernel names addresses in the umem only, which the mapping is.
    unsafe { memory.start().add(address as usize) }
}

/// Swaps the two Ethernet addresses of a frame.
#[inline]
pub(crate) fn swap_addresses(frame: NonNull<u8>) {
    let addresses = frame.cast::<[[u8; 6]; 2]>();
    // SAFETY: the chunk is ours from the RX ring until it is in the TX ring, and longer than two addresses.
    let [to, from] = unsafe { addresses.read() };
    // SAFETY: as above.
    unsafe { addresses.write([from, to]) };
}

#[expect(clippy::panic, reason = "this is a program under test, not a library")]
fn sound<T>(result: Result<T, CorruptRing>) -> T {
    match result {
        Ok(value) => value,
        Err(error) => panic!("{error}"),
    }
}

impl Raw {
    pub(crate) fn new(place: &Place) -> Result<Self> {
        let socket = handed_over(place)?;
        let memory = umem()?;
        sys::register_umem(&socket, &memory, CHUNK_BYTES, 0).context("XDP_UMEM_REG")?;
        let at = sys::mmap_offsets(&socket)?;
        let fd = socket.as_fd();
        // SAFETY: the chunks produced here are used for nothing else, and this is the only producer.
        let mut fill = unsafe { FillRing::map(fd, &at, RING_ENTRIES) }?;
        // SAFETY: frames are written before they are sent, by the only producer.
        let tx = unsafe { TxRing::map(fd, &at, RING_ENTRIES) }?;
        // SAFETY: the only consumer.
        let rx = unsafe { RxRing::map(fd, &at, RING_ENTRIES) }?;
        // SAFETY: the only consumer.
        let completion = unsafe { CompletionRing::map(fd, &at, RING_ENTRIES) }?;
        // Who only sends uses all chunks for that.
        let receiving = match place.mode.as_str() {
            "txonly" => 0,
            "pingpong" => CHUNKS / 2,
            _ => CHUNKS,
        };
        let chunks: Vec<u64> = (CHUNKS - receiving..CHUNKS)
            .map(|chunk| u64::from(chunk * CHUNK_BYTES))
            .collect();
        fill.produce(&chunks)?;
        let flags = BindFlags::XDP_COPY | BindFlags::XDP_USE_NEED_WAKEUP;
        sys::bind(&socket, place.interface_index, place.queue, flags).context("bind")?;
        Ok(Self {
            rx,
            tx,
            fill,
            completion,
            memory,
            next: 0,
            socket,
        })
    }

    /// Has the kernel send what is in the TX ring: 32 frames at a time in copy mode, and EAGAIN where there are more.
    #[inline]
    fn kick(&mut self) {
        if self.tx.needs_wakeup() {
            for _ in 0..BATCH / 32 {
                if send(&self.socket, &[], SendFlags::DONTWAIT) != Err(Errno::AGAIN) {
                    break;
                }
            }
        }
    }

    #[inline]
    fn forget_completed(&mut self) {
        if let Some(mut sent) = sound(self.completion.peek(0..=BATCH)) {
            (&mut sent).for_each(drop);
            sent.release();
        }
    }
}

impl Contender for Raw {
    fn fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }

    fn rxdrop(&mut self) -> u32 {
        let Some(mut received) = sound(self.rx.peek(0..=BATCH)) else {
            return 0;
        };
        let count = received.len() as u32;
        let Some(mut free) = sound(self.fill.reserve(count..=count)) else {
            return 0;
        };
        for frame in &mut received {
            free.write(frame.address).ok();
        }
        received.release();
        free.commit()
    }

    fn txonly(&mut self) -> u32 {
        let mut count = 0;
        if let Some(mut free) = sound(self.tx.reserve(BATCH..=BATCH)) {
            for number in self.next..self.next + u64::from(BATCH) {
                let descriptor = Descriptor {
                    address: number % u64::from(CHUNKS) * u64::from(CHUNK_BYTES),
                    length: FRAME_BYTES,
                    options: 0,
                };
                free.write(descriptor).ok();
            }
            count = free.commit();
            self.next += u64::from(BATCH);
        }
        self.kick();
        self.forget_completed();
        count
    }

    fn l2fwd(&mut self) -> u32 {
        // What was sent goes back to where frames are received.
        if let Some(mut sent) = sound(self.completion.peek(0..=BATCH))
            && let Some(mut free) = sound(self.fill.reserve(sent.len() as u32..=sent.len() as u32))
        {
            for chunk in &mut sent {
                free.write(chunk).ok();
            }
            sent.release();
            free.commit();
        }
        let Some(mut received) = sound(self.rx.peek(0..=BATCH)) else {
            self.kick();
            return 0;
        };
        let count = received.len() as u32;
        let Some(mut free) = sound(self.tx.reserve(count..=count)) else {
            self.kick();
            return 0;
        };
        for frame in &mut received {
            swap_addresses(address(&self.memory, frame.address));
            free.write(frame).ok();
        }
        received.release();
        let count = free.commit();
        self.kick();
        count
    }

    fn ping(&mut self) {
        self.forget_completed();
        if let Some(mut free) = sound(self.tx.reserve(1..=1)) {
            let descriptor = Descriptor {
                address: 0,
                length: FRAME_BYTES,
                options: 0,
            };
            free.write(descriptor).ok();
            free.commit();
        }
        self.kick();
    }

    fn pong(&mut self) -> bool {
        let mut chunk = [Descriptor::default()];
        match sound(self.rx.consume(&mut chunk)) {
            0 => false,
            _ => {
                sound(self.fill.produce(&[chunk[0].address]));
                true
            }
        }
    }
}
