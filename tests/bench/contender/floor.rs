//! The floor: rings by hand, and not one check. It believes the kernel, the other side's indexes and its own luck, so
//! that it is for this bench and nothing else.

#![expect(unsafe_code, reason = "it is the point of it")]

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicU32, Ordering, fence};

use anyhow::{Context, Result};
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use rustix::io::Errno;
use rustix::net::{SendFlags, send};
use xsk_client::ring::Descriptor;
use xsk_client::sys::{self, BindFlags, Mapping, MmapOffsets, Prefault, Ring};

use crate::harness::{BATCH, CHUNK_BYTES, CHUNKS, Contender, FRAME_BYTES, Place, RING_ENTRIES};
use crate::{handed_over, memory};

const MASK: u32 = RING_ENTRIES - 1;

/// One ring, seen from this side. What the other side was last seen at is not even kept.
struct Bare<T> {
    ours: *mut u32,
    theirs: *const AtomicU32,
    flags: *const AtomicU32,
    entries: *mut T,
    index: u32,
    _mapping: Mapping,
}

impl<T: Copy> Bare<T> {
    fn map(socket: BorrowedFd<'_>, ring: Ring, at: &MmapOffsets) -> Result<Self> {
        let at = ring.offset_in(at);
        let bytes = usize::try_from(at.desc)? + RING_ENTRIES as usize * size_of::<T>();
        let mapping = Mapping::new(socket, ring.page_offset(), bytes, Prefault::Yes)?;
        let part = |offset: u64| mapping.start().as_ptr().wrapping_add(offset as usize);
        let (ours, theirs) = match ring {
            Ring::Fill | Ring::Tx => (at.producer, at.consumer),
            Ring::Rx | Ring::Completion => (at.consumer, at.producer),
        };
        Ok(Self {
            ours: part(ours).cast(),
            theirs: part(theirs).cast::<AtomicU32>(),
            flags: part(at.flags.context("a kernel below 5.4")?).cast::<AtomicU32>(),
            entries: part(at.desc).cast(),
            index: 0,
            _mapping: mapping,
        })
    }

    #[inline(always)]
    fn theirs(&self) -> u32 {
        // SAFETY: the kernel put an index there, and the mapping lives as long as `self`.
        let theirs = unsafe { &*self.theirs };
        theirs.load(Ordering::Acquire)
    }

    /// Entries that may be read, up to a batch.
    #[inline(always)]
    fn ready(&self) -> u32 {
        self.theirs().wrapping_sub(self.index).min(BATCH)
    }

    /// Entries that may be written.
    #[inline(always)]
    fn free(&self) -> u32 {
        RING_ENTRIES - self.index.wrapping_sub(self.theirs())
    }

    #[inline(always)]
    fn entry(&self, offset: u32) -> *mut T {
        self.entries
            .wrapping_add((self.index.wrapping_add(offset) & MASK) as usize)
    }

    /// How many entries there are from this one on, `count` at most, until the ring's end.
    #[inline(always)]
    fn run(&self, offset: u32, count: u32) -> u32 {
        count.min(RING_ENTRIES - (self.index.wrapping_add(offset) & MASK))
    }

    /// Calls `step` with `count` entries.
    #[inline(always)]
    fn each(&self, count: u32, mut step: impl FnMut(*mut T)) {
        let mut done = 0;
        while done < count {
            let mut entry = self.entry(done);
            let run = self.run(done, count - done);
            in_blocks(run, || {
                step(entry);
                entry = entry.wrapping_add(1);
            });
            done += run;
        }
    }

    #[inline(always)]
    fn advance(&mut self, count: u32) {
        self.index = self.index.wrapping_add(count);
        // SAFETY: as in `theirs`.
        let ours = unsafe { AtomicU32::from_ptr(self.ours) };
        ours.store(self.index, Ordering::Release);
    }

    #[inline(always)]
    fn needs_wakeup(&self) -> bool {
        fence(Ordering::SeqCst);
        // SAFETY: as in `theirs`.
        let flags = unsafe { &*self.flags };
        flags.load(Ordering::Relaxed) & 1 != 0
    }
}

pub(crate) struct Floor {
    rx: Bare<Descriptor>,
    tx: Bare<Descriptor>,
    fill: Bare<u64>,
    completion: Bare<u64>,
    memory: Mapping,
    next: u32,
    socket: OwnedFd,
}

impl Floor {
    pub(crate) fn new(place: &Place) -> Result<Self> {
        let socket = handed_over::socket(place)?;
        let memory = umem()?;
        sys::register_umem(&socket, &memory, CHUNK_BYTES, 0).context("XDP_UMEM_REG")?;
        let at = sys::mmap_offsets(&socket)?;
        let fd = socket.as_fd();
        let mut fill = Bare::<u64>::map(fd, Ring::Fill, &at)?;
        let (rx, tx) = (Bare::map(fd, Ring::Rx, &at)?, Bare::map(fd, Ring::Tx, &at)?);
        let completion = Bare::map(fd, Ring::Completion, &at)?;
        // Who only sends uses all chunks for that.
        let receiving = match place.mode.as_str() {
            "txonly" => 0,
            "pingpong" => CHUNKS / 2,
            _ => CHUNKS,
        };
        let mut chunk = CHUNKS;
        fill.each(receiving, |entry: *mut u64| {
            chunk -= 1;
            // SAFETY: an entry of the fill ring, which is all free.
            unsafe { entry.write(u64::from(chunk * CHUNK_BYTES)) };
        });
        fill.advance(receiving);
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

    #[inline(always)]
    fn forget_completed(&mut self) {
        let sent = self.completion.ready();
        self.completion.advance(sent);
    }

    #[inline(always)]
    fn kick(&self) {
        if self.tx.needs_wakeup() {
            for _ in 0..BATCH / 32 {
                if send(&self.socket, &[], SendFlags::DONTWAIT) != Err(Errno::AGAIN) {
                    break;
                }
            }
        }
    }
}

impl Contender for Floor {
    fn fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }

    fn rxdrop(&mut self) -> u32 {
        let count = self.rx.ready();
        // SAFETY: entries of both rings, which have as many.
        unsafe { step_by_step(&self.rx, &self.fill, count, |frame| frame.address) };
        self.rx.advance(count);
        self.fill.advance(count);
        count
    }

    fn txonly(&mut self) -> u32 {
        let mut count = 0;
        if self.tx.free() >= BATCH {
            let mut number = self.next;
            self.tx.each(BATCH, |entry| {
                let descriptor = Descriptor {
                    address: u64::from(number % CHUNKS * CHUNK_BYTES),
                    length: FRAME_BYTES,
                    options: 0,
                };
                number += 1;
                // SAFETY: a free entry.
                unsafe { entry.write(descriptor) };
            });
            self.next = number % CHUNKS;
            self.tx.advance(BATCH);
            count = BATCH;
        }
        self.kick();
        self.forget_completed();
        count
    }

    fn l2fwd(&mut self) -> u32 {
        let sent = self.completion.ready();
        // SAFETY: entries of both rings: what was sent was not in the fill ring.
        unsafe { step_by_step(&self.completion, &self.fill, sent, |chunk| chunk) };
        self.completion.advance(sent);
        self.fill.advance(sent);

        let count = self.rx.ready();
        let umem = self.memory.start();
        let swap = |frame: Descriptor| {
            // SAFETY: the kernel names frames in the umem, and the chunk is ours until it is in the TX ring.
            unsafe { memory::swap_addresses(umem, frame.address) };
            frame
        };
        // SAFETY: entries of both rings, which have as many.
        unsafe { step_by_step(&self.rx, &self.tx, count, swap) };
        self.rx.advance(count);
        self.tx.advance(count);
        self.kick();
        count
    }

    #[inline(always)]
    fn ping(&mut self) {
        self.forget_completed();
        let descriptor = Descriptor {
            address: 0,
            length: FRAME_BYTES,
            options: 0,
        };
        // SAFETY: there is always room for one.
        unsafe { self.tx.entry(0).write(descriptor) };
        self.tx.advance(1);
        self.kick();
    }

    #[inline(always)]
    fn pong(&mut self) -> bool {
        if self.rx.ready() == 0 {
            return false;
        }
        // SAFETY: an entry that the kernel has given, and one of a chunk that is not in the fill ring.
        unsafe { step_by_step(&self.rx, &self.fill, 1, |frame| frame.address) };
        self.rx.advance(1);
        self.fill.advance(1);
        true
    }
}

/// Writes what `change` makes of `count` entries to another ring.
///
/// # Safety
///
/// They are there, and free in the other.
#[inline(always)]
unsafe fn step_by_step<F: Copy, T: Copy>(
    from: &Bare<F>,
    to: &Bare<T>,
    count: u32,
    mut change: impl FnMut(F) -> T,
) {
    let mut done = 0;
    while done < count {
        let (mut source, mut target) = (from.entry(done), to.entry(done));
        let run = from.run(done, to.run(done, count - done));
        in_blocks(run, || {
            // SAFETY: the caller's promise.
            let entry = unsafe { source.read() };
            // SAFETY: as above.
            unsafe { target.write(change(entry)) };
            source = source.wrapping_add(1);
            target = target.wrapping_add(1);
        });
        done += run;
    }
}

/// So many steps, a few in each turn of the loop.
#[inline(always)]
fn in_blocks(count: u32, mut step: impl FnMut()) {
    const BLOCK: u32 = 8;
    for _ in 0..count / BLOCK {
        for _ in 0..BLOCK {
            step();
        }
    }
    for _ in 0..count % BLOCK {
        step();
    }
}

/// Memory for the umem, with the frame in every chunk.
fn umem() -> Result<Mapping> {
    let memfd = memfd_create("bench", MemfdFlags::CLOEXEC)?;
    let bytes = u64::from(CHUNKS) * u64::from(CHUNK_BYTES);
    ftruncate(&memfd, bytes)?;
    let memory = Mapping::new(&memfd, 0, usize::try_from(bytes)?, Prefault::Yes)?;
    // SAFETY: it was just made, as long as that.
    unsafe { memory::write_frames(memory.start()) };
    Ok(memory)
}
