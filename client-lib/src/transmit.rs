//! A batch of frames made here.
//!
//! Free chunks and TX entries are used up in step, as long as every frame is sent: a _window_ of as many of both, from
//! the top of the free list and from the free run of the TX ring, in which one offset counts up to 0 for both. A frame
//! that is dropped just does not step. Whatever takes only a chunk or only an entry is rare, and closes or shrinks the
//! window. Everything is published once, when the batch is dropped; leaked, it publishes nothing, and its chunks are
//! still free.

#![expect(
    unsafe_code,
    reason = "slices over free chunks, and batches walked by pointer"
)]

use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;
use std::sync::Arc;
use std::{fmt, hint, slice};

use crate::cast;
use crate::entries::write_entry;
use crate::frame::{Frame, Unsent, UnsentReason};
use crate::metadata::TxMetadata;
use crate::pool::Pool;
use crate::ring::{Descriptor, PACKET_CONTINUES, Run, TX_METADATA};
use crate::stamps::TxRequest;
use crate::xsk::Core;

/// The size of a free list's entry, as steps are counted.
const STEP: isize = size_of::<u64>().cast_signed();
/// The least that any frame has room for: the smallest chunk (`XDP_UMEM_MIN_CHUNK_SIZE`, include/net/xdp_sock.h) without
/// the most metadata.
const SMALLEST_FRAME: usize = 2048 - 256;
/// A TX entry is so much larger.
const RATIO: isize = size_of::<Descriptor>().cast_signed() / STEP;

/// Empty frames to fill and send, from [`Xsk::transmit`](crate::Xsk::transmit).
pub struct Transmit<'x> {
    core: &'x mut Core,
    window: Window,
    umem: NonNull<u8>,
    /// How many bytes a frame has.
    frame_bytes: u64,
}

/// The window, and the entries that are ours and not in it.
#[derive(Debug)]
struct Window {
    /// One past its last chunk, which is the top of the free list.
    free_end: *mut u64,
    /// One past its last TX entry.
    tx_end: *mut Descriptor,
    /// The next chunk, in bytes from `free_end`: 0 when it is used up, or closed.
    next: isize,
    /// How many chunks and entries it had.
    count: u32,
    /// How many entries are ours beyond `tx_end`.
    beyond: u32,
    /// How many more the caller may want than these.
    wanted: u32,
    /// The first entry that was not counted as written.
    tx_first: *mut Descriptor,
    /// How many were counted.
    staged: u32,
}

impl Window {
    /// Has something rare done to a copy, by single fields: so the compiler keeps the original in registers.
    #[inline]
    fn with_copy(&mut self, core: &mut Core, change: impl FnOnce(&mut Self, &mut Core)) {
        let mut copy = Self {
            free_end: self.free_end,
            tx_end: self.tx_end,
            next: self.next,
            count: self.count,
            beyond: self.beyond,
            wanted: self.wanted,
            tx_first: self.tx_first,
            staged: self.staged,
        };
        change(&mut copy, core);
        self.free_end = copy.free_end;
        self.tx_end = copy.tx_end;
        self.next = copy.next;
        self.count = copy.count;
        self.beyond = copy.beyond;
        self.wanted = copy.wanted;
        self.tx_first = copy.tx_first;
        self.staged = copy.staged;
    }

    /// Opens it on as many chunks and entries as there are of both; on one where each chunk must be admitted.
    #[inline]
    fn open(&mut self, core: &mut Core) {
        self.count = core.chunks.open_top(self.beyond.min(cast::count(core.chunks.free_count())));
        self.beyond -= self.count;
        let bytes = (self.count as usize).cast_signed() * STEP;
        self.free_end = core.chunks.top();
        self.tx_end = self.tx_end.wrapping_byte_offset(bytes * RATIO);
        self.next = -bytes;
    }

    /// Takes what was used off the free list. The entries that were not used are beyond.
    #[inline]
    fn close(&mut self, core: &mut Core) {
        let left = self.left();
        self.tx_end = self.entry();
        self.beyond += left;
        core.chunks.take_from_top(self.count, left);
        self.count = 0;
        self.next = 0;
    }

    /// A new one, if there are chunks and entries after all.
    #[inline(never)]
    extern "C" fn reopen(&mut self, core: &mut Core) {
        self.close(core);
        if self.beyond == 0 {
            self.more_entries(core);
        }
        self.open(core);
    }

    /// The next chunk is not free any more: the last of the window stands in for it. That closes the window: what it had
    /// must be admitted anew, since a hostile ring may have named that chunk twice.
    #[inline(never)]
    extern "C" fn remove_chunk(&mut self, core: &mut Core) {
        let place = self.free_end.wrapping_byte_offset(self.next);
        self.free_end = self.free_end.wrapping_sub(1);
        // SAFETY: the window has an entry, and this is its last one.
        let last = unsafe { self.free_end.read() };
        // SAFETY: the window's next entry, or its last.
        unsafe { place.write(last) };
        core.chunks.drop_top();
        self.count -= 1;
        self.beyond += 1;
        self.tx_end = self.tx_end.wrapping_sub(1);
        self.next += STEP;
        self.close(core);
    }

    /// More entries, where all were written and no window is open: the run before ended with the ring, perhaps.
    #[inline(never)]
    extern "C" fn more_entries(&mut self, core: &mut Core) {
        let written = self.written();
        self.staged += written;
        let run = core.more_tx(written, self.wanted);
        self.tx_first = run.start.as_ptr();
        self.tx_end = run.start.as_ptr();
        self.beyond = run.count;
        self.wanted -= self.beyond;
    }

    /// Writes an entry that has no chunk of the window's.
    fn write_beyond(&mut self, core: &mut Core, address: u64, length: u32) -> Result<(), UnsentReason> {
        if self.count > 0 {
            self.close(core);
        }
        if self.beyond == 0 {
            self.more_entries(core);
        }
        if self.beyond == 0 {
            return Err(UnsentReason::RingFull);
        }
        // SAFETY: there is one more, and no window is open, so that it comes next.
        unsafe { write_entry(self.tx_end, address, length, 0) };
        self.tx_end = self.tx_end.wrapping_add(1);
        self.beyond -= 1;
        Ok(())
    }

    /// Where the next frame begins. The window is open.
    #[inline]
    fn chunk(&self) -> u64 {
        let free = self.free_end.wrapping_byte_offset(self.next);
        // SAFETY: in the window, so an entry of the free list, which the socket keeps.
        unsafe { free.read() }
    }

    /// The next TX entry.
    #[inline]
    fn entry(&self) -> *mut Descriptor {
        self.tx_end.wrapping_byte_offset(self.next * RATIO)
    }

    /// How many chunks are left.
    #[inline]
    fn left(&self) -> u32 {
        cast::count((-self.next).cast_unsigned() / size_of::<u64>())
    }

    #[inline]
    fn written(&self) -> u32 {
        cast::count((self.entry().addr() - self.tx_first.addr()) / size_of::<Descriptor>())
    }
}

impl<'x> Transmit<'x> {
    /// `run` was reserved in the TX ring, where the caller wants `max` entries.
    #[inline]
    pub(crate) fn new(core: &'x mut Core, run: Run<Descriptor>, max: u32) -> Self {
        let umem = core.chunks.umem();
        let chunk_bytes = u64::from(umem.chunk_bytes());
        let frame_bytes = chunk_bytes - u64::from(umem.tx_offset());
        let memory = umem.memory().start();
        let mut window = Window {
            free_end: core.chunks.top(),
            tx_end: run.start.as_ptr(),
            tx_first: run.start.as_ptr(),
            staged: 0,
            next: 0,
            count: 0,
            beyond: run.count,
            wanted: max - run.count,
        };
        window.open(core);
        Self {
            window,
            umem: memory,
            frame_bytes,
            core,
        }
    }

    /// The next empty frame: a whole chunk, with whatever was left in it. `None` where the TX ring has no room or the
    /// umem no free chunk. Dropping it gives the chunk back.
    #[inline]
    pub fn next_frame(&mut self) -> Option<TxFrame<'_, 'x>> {
        if self.window.next == 0 {
            hint::cold_path();
            if self.window.beyond == 0 && self.window.wanted == 0 {
                return None;
            }
            self.window.with_copy(self.core, |window, core| {
                window.reopen(core);
            });
            if self.window.next == 0 {
                return None;
            }
        }
        Some(self.frame())
    }

    /// How many frames are left to fill, without a look at what the kernel has sent meanwhile.
    pub fn len(&self) -> usize {
        let window = self.window.left();
        let beside = self.core.chunks.free_count_beside(self.window.count);
        (window + self.window.beyond.min(beside)) as usize
    }

    /// Whether none is left.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Fills and sends frames as long as there are any, and says how many: for who has as many as there is room for. `fill`
    /// is given all bytes of a frame and returns how many of them are to be sent; more than there are is all of them.
    ///
    /// ```no_run
    /// # fn run(xsk: &mut xsk_client::Xsk) -> Result<(), xsk_client::Error> {
    /// let mut number = 0_u64;
    /// xsk.transmit(64)?.send_each(|frame| {
    ///     frame[..60].fill(0xff);
    ///     frame[52..60].copy_from_slice(&number.to_be_bytes());
    ///     number += 1;
    ///     60
    /// });
    /// # Ok(())
    /// # }
    /// ```
    #[inline]
    pub fn send_each(&mut self, mut fill: impl FnMut(&mut [u8]) -> usize) -> usize {
        const UNROLLED: isize = 8;
        let before = self.sent();
        let most = cast::offset(self.frame_bytes);
        let mut fill_and_send = |mut frame: TxFrame<'_, '_>| {
            let length = fill(&mut frame);
            // It has room for that, so that it is sent.
            frame.send(length.min(most)).ok();
        };
        while let Some(frame) = self.next_frame() {
            fill_and_send(frame);
            // The others of the window, without a look at each step whether it is still open.
            while self.window.next <= -(UNROLLED * STEP) {
                for _ in 0..UNROLLED {
                    fill_and_send(self.frame());
                }
            }
        }
        self.sent() - before
    }

    /// The frame that the window is open on.
    #[inline]
    fn frame(&mut self) -> TxFrame<'_, 'x> {
        debug_assert_ne!(self.window.next, 0, "the window is closed");
        TxFrame {
            address: self.window.chunk(),
            batch: self,
        }
    }

    /// How many frames were sent in this batch.
    pub fn sent(&self) -> usize {
        (self.window.staged + self.window.written()) as usize
    }

    /// Sends an owned frame within this batch.
    ///
    /// # Errors
    ///
    /// Gives it back where the TX ring has no room, or the frame belongs to another umem.
    pub fn send_owned(&mut self, frame: Frame) -> Result<(), Unsent<Frame>> {
        let (address, length) = frame.parts();
        match self.take_in(frame.pool(), address, length) {
            Ok(()) => {
                frame.forget();
                Ok(())
            }
            Err(reason) => Err(Unsent { frame, reason }),
        }
    }

    /// Sends what its caller holds in a chunk of `pool` and gives up, if there is no error.
    #[inline]
    pub(crate) fn take_in(
        &mut self,
        pool: &Arc<Pool>,
        address: u64,
        length: u32,
    ) -> Result<(), UnsentReason> {
        if !Arc::ptr_eq(pool, self.core.chunks.pool()) {
            return Err(UnsentReason::ForeignUmem);
        }
        let mut written = Ok(());
        self.window.with_copy(self.core, |window, core| {
            written = window.write_beyond(core, address, length);
        });
        written?;
        self.core.chunks.enter(address);
        Ok(())
    }
}

impl Drop for Transmit<'_> {
    #[inline]
    fn drop(&mut self) {
        let window = &self.window;
        self.core
            .finish_transmit(window.count, window.left(), window.written());
    }
}

impl fmt::Debug for Transmit<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Transmit")
            .field("written", &self.window.written())
            .finish_non_exhaustive()
    }
}

/// An empty frame: all bytes of a chunk, by `Deref`.
pub struct TxFrame<'b, 'x> {
    batch: &'b mut Transmit<'x>,
    address: u64,
}

impl TxFrame<'_, '_> {
    /// Sends its first `length` bytes. The kernel learns of it when the batch is dropped.
    ///
    /// # Errors
    ///
    /// Gives it back where it has fewer bytes.
    #[inline]
    pub fn send(self, length: usize) -> Result<(), Unsent<Self>> {
        self.send_as(length, 0)
    }

    /// Sends its first `length` bytes as a part of a packet that goes on with the next frame that is sent. Make sure that
    /// there is one ([`Transmit::len`]): what is sent next belongs to this packet in any case.
    ///
    /// # Errors
    ///
    /// Gives it back where it has fewer bytes, or the socket was not bound with
    /// [`BindOptions::multi_buffer`](crate::BindOptions::multi_buffer).
    pub fn send_more(self, length: usize) -> Result<(), Unsent<Self>> {
        if !self.batch.core.multi_buffer {
            return Err(Unsent {
                frame: self,
                reason: UnsentReason::OneBuffer,
            });
        }
        self.send_as(length, PACKET_CONTINUES)
    }

    /// Sends its first `length` bytes, and asks the device for something.
    ///
    /// # Errors
    ///
    /// Gives it back where it has fewer bytes, or the umem was not made with
    /// [`UmemOptions::tx_metadata`](crate::UmemOptions::tx_metadata).
    pub fn send_with(self, length: usize, request: TxRequest) -> Result<(), Unsent<Self>> {
        let chunk = self.batch.core.chunks.umem().chunk_of(self.address);
        let (Some(stamps), Some(chunk)) = (&mut self.batch.core.stamps, chunk) else {
            return Err(Unsent {
                frame: self,
                reason: UnsentReason::NoMetadata,
            });
        };
        stamps.expect(chunk, request.tag);
        let before = self
            .start()
            .wrapping_sub(TxMetadata::BYTES)
            .cast::<[u8; TxMetadata::BYTES]>();
        // SAFETY: the frame begins so far into its chunk (`Umem::tx_offset`), which is ours as a whole.
        unsafe { before.write(request.metadata().to_bytes()) };
        self.send_as(length, TX_METADATA)
    }

    #[inline]
    fn send_as(self, length: usize, options: u32) -> Result<(), Unsent<Self>> {
        // No frame has room for less, so that a constant length is checked by the compiler.
        if length > SMALLEST_FRAME && length > self.len() {
            return Err(Unsent {
                frame: self,
                reason: UnsentReason::TooLong,
            });
        }
        let entry = self.batch.window.entry();
        // SAFETY: the entry that goes with this frame's chunk: `next_frame` found the window open, and this frame has
        // borrowed the batch since. The socket, and so the ring, is borrowed by the batch.
        unsafe { write_entry(entry, self.address, cast::count(length), options) };
        // The chunk is the kernel's now.
        self.batch.window.next += STEP;
        Ok(())
    }

    /// Makes it an owned frame, which may outlive the batch.
    pub fn into_owned(self) -> Frame {
        self.batch.core.chunks.leave(self.address);
        let batch = &mut *self.batch;
        batch.window.with_copy(batch.core, |window, core| {
            window.remove_chunk(core);
        });
        let length = cast::count(cast::offset(self.batch.frame_bytes));
        Frame::new(self.batch.core.chunks.pool().clone(), self.address, length)
    }

    #[inline]
    fn start(&self) -> *mut u8 {
        // SAFETY: a window has only addresses in the umem (`Chunks::open_top`), which the socket keeps mapped.
        unsafe { self.batch.umem.add(cast::offset(self.address)).as_ptr() }
    }
}

impl Deref for TxFrame<'_, '_> {
    type Target = [u8];

    #[inline]
    fn deref(&self) -> &[u8] {
        // SAFETY: as in `deref_mut`.
        unsafe { slice::from_raw_parts(self.start(), cast::offset(self.batch.frame_bytes)) }
    }
}

impl DerefMut for TxFrame<'_, '_> {
    #[inline]
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: a window has only chunks of the umem that are here (`Chunks::open_top`), and so no owned frame's and no
        // other socket's, and it lends one frame at a time: no other slice of ours covers it. A memfd's bytes are
        // initialised. The kernel has given the chunk back, by the completion or the RX ring, or never had it.
        unsafe { slice::from_raw_parts_mut(self.start(), cast::offset(self.batch.frame_bytes)) }
    }
}

impl fmt::Debug for TxFrame<'_, '_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TxFrame")
            .field("address", &self.address)
            .finish_non_exhaustive()
    }
}
