//! A batch of frames made here.
//!
//! Free chunks and TX entries are used up in step, as long as every frame is sent: a _window_ of as many of both, from
//! the top of the free list and from the free run of the TX ring, in which one offset counts up to 0 for both. A frame
//! that is dropped just does not step. Whatever takes only a chunk or only an entry is rare, and closes or shrinks the
//! window. Everything is published once, when the batch is dropped; leaked, it publishes nothing, and its chunks are
//! still free.

mod frame;
mod window;

use std::ptr::NonNull;
use std::sync::Arc;
use std::{fmt, hint};

pub use frame::TxFrame;
use window::{STEP, Window};

use crate::cast;
use crate::frame::{Frame, Unsent, UnsentReason};
use crate::pool::Pool;
use crate::ring::{Descriptor, Run};
use crate::xsk::Core;

/// Empty frames to fill and send, from [`Xsk::transmit`](crate::Xsk::transmit).
pub struct Transmit<'x> {
    core: &'x mut Core,
    window: Window,
    umem: NonNull<u8>,
    /// How many bytes a frame has.
    frame_bytes: u64,
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
            free_end: core.chunks.free.top(),
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
        let beside = cast::count(self.core.chunks.free.len()).saturating_sub(self.window.count);
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
        let (left, written) = (window.left(), window.written());
        if self.core.finish_transmit(window.count, left, written) {
            self.core.kick_once();
        }
    }
}

impl fmt::Debug for Transmit<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Transmit")
            .field("written", &self.window.written())
            .finish_non_exhaustive()
    }
}
