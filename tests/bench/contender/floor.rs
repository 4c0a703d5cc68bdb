//! The floor: rings by hand, and not one check. It believes the kernel, the other side's indexes and its own luck, so
//! that it is for this bench and nothing else.

#![expect(unsafe_code, reason = "it is the point of it")]

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicU32, Ordering, fence};

use anyhow::{Context, Result};
use rustix::io::Errno;
use rustix::net::{SendFlags, send};
use xsk_client::ring::Descriptor;
use xsk_client::sys::{self, BindFlags, Mapping, MmapOffsets, Prefault, Ring};

use crate::harness::{BATCH, CHUNK_BYTES, CHUNKS, Contender, FRAME_BYTES, Place, RING_ENTRIES};
use crate::raw;

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

    #[inline(always)]
    fn read(&self, offset: u32) -> T {
        // SAFETY: masked, so within the ring; the kernel has given it.
        unsafe { self.entry(offset).read() }
    }

    #[inline(always)]
    fn write(&self, offset: u32, value: T) {
        // SAFETY: masked, so within the ring.
        unsafe { self.entry(offset).write(value) }
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
        let socket = raw::handed_over(place)?;
        let memory = raw::umem()?;
        sys::register_umem(&socket, &memory, CHUNK_BYTES, 0).context("XDP_UMEM_REG")?;
        let at = sys::mmap_offsets(&socket)?;
        let fd = socket.as_fd();
        let mut fill = Bare::map(fd, Ring::Fill, &at)?;
        let (rx, tx) = (Bare::map(fd, Ring::Rx, &at)?, Bare::map(fd, Ring::Tx, &at)?);
        let completion = Bare::map(fd, Ring::Completion, &at)?;
        // Who only sends uses all chunks for that.
        let receiving = match place.mode.as_str() {
            "txonly" => 0,
            "pingpong" => CHUNKS / 2,
            _ => CHUNKS,
        };
        for chunk in 0..receiving {
            fill.write(chunk, u64::from((CHUNKS - 1 - chunk) * CHUNK_BYTES));
        }
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
        if count == 0 {
            return 0;
        }
        for offset in 0..count {
            self.fill.write(offset, self.rx.read(offset).address);
        }
        self.rx.advance(count);
        self.fill.advance(count);
        count
    }

    fn txonly(&mut self) -> u32 {
        let mut count = 0;
        if self.tx.free() >= BATCH {
            for offset in 0..BATCH {
                let descriptor = Descriptor {
                    address: u64::from((self.next + offset) % CHUNKS * CHUNK_BYTES),
                    length: FRAME_BYTES,
                    options: 0,
                };
                self.tx.write(offset, descriptor);
            }
            self.next = (self.next + BATCH) % CHUNKS;
            self.tx.advance(BATCH);
            count = BATCH;
        }
        self.kick();
        let sent = self.completion.ready();
        self.completion.advance(sent);
        count
    }

    fn l2fwd(&mut self) -> u32 {
        let sent = self.completion.ready();
        for offset in 0..sent {
            self.fill.write(offset, self.completion.read(offset));
        }
        self.completion.advance(sent);
        self.fill.advance(sent);

        let count = self.rx.ready();
        if count == 0 {
            return 0;
        }
        for offset in 0..count {
            let frame = self.rx.read(offset);
            raw::swap_addresses(raw::address(&self.memory, frame.address));
            self.tx.write(offset, frame);
        }
        self.rx.advance(count);
        self.tx.advance(count);
        self.kick();
        count
    }

    fn ping(&mut self) {
        let sent = self.completion.ready();
        self.completion.advance(sent);
        let descriptor = Descriptor {
            address: 0,
            length: FRAME_BYTES,
            options: 0,
        };
        self.tx.write(0, descriptor);
        self.tx.advance(1);
        self.kick();
    }

    fn pong(&mut self) -> bool {
        if self.rx.ready() == 0 {
            return false;
        }
        self.fill.write(0, self.rx.read(0).address);
        self.rx.advance(1);
        self.fill.advance(1);
        true
    }
}
