//! What packets of several frames need of a socket: whole ones to look at, and room for all of one.

use crate::cast;
use crate::error::Error;
use crate::frame::UnsentReason;
use crate::packet::MOST_FRAMES;
use crate::ring::{Descriptor, PACKET_CONTINUES};
use crate::sys::Ring;
use crate::xsk::Core;

impl Core {
    /// Copies entries of the RX ring, of whole packets only, and says how many: those of up to `max` frames, or of one
    /// packet that has more. What is cut stays in the ring.
    pub(super) fn ready_packets(&mut self, max: u32, copies: &mut [Descriptor]) -> Result<usize, Error> {
        self.upkeep()?;
        let room = self.chunks.free.room();
        let Some(rx) = &mut self.rings.rx else {
            return Err(self.socket.lacks(Ring::Rx));
        };
        let most = rx.size().min(room);
        let peeked = rx.peek(..=most).map_err(|cause| self.socket.corrupt(cause))?;
        let Some(peeked) = peeked else {
            return Ok(0);
        };
        let (mut whole, mut read) = (0, 0);
        for (copy, entry) in copies.iter_mut().zip(peeked) {
            if whole > 0 && read >= max {
                break;
            }
            *copy = entry;
            read += 1;
            if entry.options & PACKET_CONTINUES == 0 {
                whole = read;
            }
        }
        // A full ring in which no packet ends is no kernel's work. It would stay so, and is one packet.
        Ok(match whole == 0 && read == most {
            true => read as usize,
            false => whole as usize,
        })
    }

    /// Whether a packet of so many frames can be sent now, as a whole.
    pub(crate) fn room_for_packet(&mut self, frames: u32) -> Result<(), UnsentReason> {
        let Some(tx) = &mut self.rings.tx else {
            return Err(UnsentReason::NoRing);
        };
        if frames > 1 && !self.multi_buffer {
            return Err(UnsentReason::OneBuffer);
        }
        if frames > MOST_FRAMES {
            return Err(UnsentReason::TooManyFrames);
        }
        match tx.free_entries(frames) == frames {
            true => Ok(()),
            false => Err(UnsentReason::RingFull),
        }
    }

    /// Publishes the frames of a packet, for which there is room. Their chunks are in no other ring.
    pub(crate) fn publish_packet(&mut self, frames: &mut [Descriptor]) {
        let last = frames.len().saturating_sub(1);
        for (position, frame) in frames.iter_mut().enumerate() {
            frame.options = if position < last { PACKET_CONTINUES } else { 0 };
        }
        let Some(tx) = &mut self.rings.tx else {
            return;
        };
        match tx.produce(frames) {
            Ok(count) => {
                debug_assert_eq!(count, frames.len(), "there was room for all");
                self.in_flight = self.in_flight.saturating_add(cast::count(count));
                self.kick_again = true;
                self.packet_open = false;
            }
            // Another process writes to the ring's indexes.
            Err(cause) => self.deferred = Some(self.socket.corrupt(cause)),
        }
    }

    /// Calls the kernel for what was published, if it asks for that.
    pub(crate) fn finish_packets(&mut self) {
        if self.kick_again && self.finish_send(0) {
            self.kick_once();
        }
    }
}
