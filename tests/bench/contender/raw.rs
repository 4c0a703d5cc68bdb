//! The raw layer of xsk-client: rings and descriptors, by its batch calls.

#![expect(unsafe_code, reason = "frames are looked at where a descriptor says they are")]

use std::os::fd::{AsFd, AsRawFd, RawFd};

use anyhow::{Context, Result};
use xsk_client::raw::{self, CompletionRing, Descriptor, FillRing, RxRing, TxRing};
use xsk_client::{BindOptions, UmemOptions};

use crate::harness::{BATCH, CHUNK_BYTES, CHUNKS, Contender, FRAME_BYTES, Place};
use crate::{handed_over, memory};

pub(crate) struct Raw {
    rx: RxRing,
    tx: TxRing,
    fill: FillRing,
    completion: CompletionRing,
    socket: raw::Socket,
    umem: raw::Umem,
    /// The next chunk to send, in turn.
    next: u64,
}

/// What went wrong ends the run: a figure obtained in spite of it would be none.
#[expect(clippy::panic, reason = "this is a program under test, not a library")]
fn sound<T, E: std::fmt::Display>(result: Result<T, E>) -> T {
    match result {
        Ok(value) => value,
        Err(error) => panic!("{error}"),
    }
}

impl Raw {
    pub(crate) fn new(place: &Place) -> Result<Self> {
        let umem = raw::Umem::new(&UmemOptions::new().chunks(CHUNKS).chunk_bytes(CHUNK_BYTES))?;
        // SAFETY: it was just made.
        unsafe { memory::write_frames(umem.start()) };
        let mut bound = handed_over::grant(place)?.bind_raw(&umem, &BindOptions::new())?;
        // Who only sends uses all chunks for that.
        let receiving = match place.mode.as_str() {
            "txonly" => 0,
            "pingpong" => CHUNKS / 2,
            _ => CHUNKS,
        };
        let chunks: Vec<u64> = (CHUNKS - receiving..CHUNKS)
            .map(|chunk| u64::from(chunk * CHUNK_BYTES))
            .collect();
        for xsk in bound.sockets_mut() {
            xsk.fill.produce(&chunks)?;
        }
        let xsk = bound.into_inner().pop().context("no socket")?;
        Ok(Self {
            rx: xsk.rx.context("no RX ring")?,
            tx: xsk.tx.context("no TX ring")?,
            fill: xsk.fill,
            completion: xsk.completion,
            socket: xsk.socket,
            umem,
            next: 0,
        })
    }

    #[inline]
    fn kick(&mut self) {
        // What the kernel has no room for now is for the next turn's kick.
        let _done_or_again = sound(self.socket.kick_tx(&mut self.tx));
    }

    #[inline]
    fn forget_completed(&mut self) {
        if let Some(sent) = sound(self.completion.peek(..=BATCH)) {
            sent.release_all();
        }
    }
}

impl Contender for Raw {
    fn fd(&self) -> RawFd {
        self.socket.as_fd().as_raw_fd()
    }

    fn rxdrop(&mut self) -> u32 {
        sound(self.rx.recycle(&mut self.fill, BATCH))
    }

    fn txonly(&mut self) -> u32 {
        let mut count = 0;
        if let Some(mut free) = sound(self.tx.reserve(BATCH)) {
            free.write_from((self.next..).map(|number| Descriptor {
                address: number % u64::from(CHUNKS) * u64::from(CHUNK_BYTES),
                length: FRAME_BYTES,
                options: 0,
            }));
            count = free.commit();
            self.next += u64::from(count);
        }
        self.kick();
        self.forget_completed();
        count
    }

    fn l2fwd(&mut self) -> u32 {
        // What was sent goes back to where frames are received.
        sound(self.completion.recycle(&mut self.fill, BATCH));
        let umem = self.umem.start();
        let forwarded = self.rx.transfer(&mut self.tx, BATCH, |frame| {
            // SAFETY: the kernel names frames in the umem, and the chunk is ours until it is in the TX ring.
            unsafe { memory::swap_addresses(umem, frame.address) };
            frame
        });
        self.kick();
        sound(forwarded)
    }

    #[inline(always)]
    fn ping(&mut self) {
        self.forget_completed();
        let frame = Descriptor {
            address: 0,
            length: FRAME_BYTES,
            options: 0,
        };
        sound(self.tx.produce(&[frame]));
        self.kick();
    }

    #[inline(always)]
    fn pong(&mut self) -> bool {
        sound(self.rx.recycle(&mut self.fill, 1)) > 0
    }
}
