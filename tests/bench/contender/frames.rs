//! The frames layer of xsk-client: safe code only.

use std::os::fd::{AsFd, AsRawFd, RawFd};

use anyhow::{Result, ensure};
use xsk_client::{BindOptions, Umem, UmemOptions, Xsk};

use crate::handed_over;
use crate::harness::{self, BATCH, CHUNK_BYTES, CHUNKS, Contender, FRAME_BYTES, Place};

pub(crate) struct Frames {
    xsk: Xsk,
}

impl Frames {
    pub(crate) fn new(place: &Place) -> Result<Self> {
        let grant = handed_over::grant(place)?;
        let umem = Umem::new(&UmemOptions::new().chunks(CHUNKS).chunk_bytes(CHUNK_BYTES))?;
        let mut xsk = grant.bind_one(umem, &BindOptions::new())?.into_inner();
        if place.mode != "rxdrop" && place.mode != "l2fwd" {
            write_frames(&mut xsk)?;
        }
        Ok(Self { xsk })
    }
}

/// Writes the frame into every chunk that is free, once: a generator of traffic has no need to do it again.
fn write_frames(xsk: &mut Xsk) -> Result<()> {
    let mut written = Vec::new();
    loop {
        let before = written.len();
        let mut batch = xsk.transmit(BATCH)?;
        while let Some(mut frame) = batch.next_frame() {
            frame[..harness::frame().len()].copy_from_slice(&harness::frame());
            written.push(frame.into_owned());
        }
        if written.len() == before {
            break;
        }
    }
    ensure!(!written.is_empty(), "no chunk is free");
    // They come back with the next batch, which is not to be a measured one.
    drop(written);
    xsk.transmit(0)?;
    Ok(())
}

/// What went wrong ends the run: a figure obtained in spite of it would be none.
#[expect(clippy::panic, reason = "this is a program under test, not a library")]
fn sound<T>(result: Result<T, xsk_client::Error>) -> T {
    match result {
        Ok(value) => value,
        Err(error) => panic!("{error}"),
    }
}

impl Contender for Frames {
    fn fd(&self) -> RawFd {
        self.xsk.as_fd().as_raw_fd()
    }

    fn rxdrop(&mut self) -> u32 {
        let mut batch = sound(self.xsk.receive(BATCH));
        let count = batch.len() as u32;
        while let Some(_frame) = batch.next_frame() {}
        count
    }

    fn txonly(&mut self) -> u32 {
        let mut batch = sound(self.xsk.transmit(BATCH));
        batch.send_each(|_written_before| FRAME_BYTES as usize) as u32
    }

    fn l2fwd(&mut self) -> u32 {
        let mut count = 0;
        let mut batch = sound(self.xsk.receive(BATCH));
        while let Some(mut frame) = batch.next_frame() {
            if let Some(addresses) = frame.first_chunk_mut::<12>() {
                let (to, from) = addresses.split_at_mut(6);
                to.swap_with_slice(from);
                if frame.send().is_ok() {
                    count += 1;
                }
            }
        }
        count
    }

    #[inline(always)]
    fn ping(&mut self) {
        let mut batch = sound(self.xsk.transmit(1));
        if let Some(frame) = batch.next_frame() {
            frame.send(FRAME_BYTES as usize).ok();
        }
    }

    #[inline(always)]
    fn pong(&mut self) -> bool {
        let mut batch = sound(self.xsk.receive(1));
        batch.next_frame().is_some()
    }
}
