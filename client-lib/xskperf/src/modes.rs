//! The loops: one batch each, as short as they can be.

use std::time::{Duration, Instant};

use anyhow::Result;
use xsk_client::Xsk;
use xsk_client::sys::Statistics;

use crate::arguments::{Mode, Options};
use crate::latency::Latencies;

/// How long a sleep may last: rates are printed, and an end is noticed, in between.
const LONGEST_SLEEP: Duration = Duration::from_millis(50);
/// A packet that has not come back by then is lost.
const LOST_AFTER: Duration = Duration::from_millis(500);
/// The type of local experiments (IEEE 802), so that nobody takes our packets for something else.
const ETHERTYPE: [u8; 2] = [0x88, 0xb5];
const ADDRESSES: usize = 12;
const HEADER: usize = ADDRESSES + ETHERTYPE.len();
/// Where a ping has its number.
const NUMBER: std::ops::Range<usize> = HEADER..HEADER + 8;

/// Packets and bytes.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Counts {
    pub(crate) rx_packets: u64,
    pub(crate) rx_bytes: u64,
    pub(crate) tx_packets: u64,
    pub(crate) tx_bytes: u64,
    /// Round trips that did not end.
    pub(crate) lost: u64,
}

/// The socket at work.
pub(crate) struct Worker {
    xsk: Xsk,
    batch: u32,
    busy: bool,
    frags: bool,
    packet: Vec<u8>,
    counts: Counts,
    next_ping: u64,
    /// Whether the last turn took its time.
    has_waited: bool,
}

impl Worker {
    pub(crate) fn new(xsk: Xsk, options: &Options) -> Self {
        let mut packet = vec![0; options.frame_bytes as usize];
        packet[..6].copy_from_slice(&options.destination.0);
        packet[6..ADDRESSES].copy_from_slice(&options.source.0);
        packet[ADDRESSES..HEADER].copy_from_slice(&ETHERTYPE);
        Self {
            xsk,
            batch: options.batch,
            busy: options.busy,
            frags: options.frags,
            packet,
            counts: Counts::default(),
            next_ping: 0,
            has_waited: false,
        }
    }

    /// Whether there was nothing to do in the last turn: then the clock may be asked, whatever that costs.
    pub(crate) fn has_waited(&mut self) -> bool {
        std::mem::take(&mut self.has_waited)
    }

    pub(crate) fn counts(&self) -> Counts {
        self.counts
    }

    /// What `--packets` counts.
    pub(crate) fn done(&self, mode: Mode) -> u64 {
        match mode {
            Mode::Rxdrop | Mode::Pingpong => self.counts.rx_packets,
            Mode::Txonly | Mode::L2fwd => self.counts.tx_packets,
        }
    }

    pub(crate) fn statistics(&self) -> Result<Statistics> {
        Ok(self.xsk.statistics()?)
    }

    /// Descriptors that the library did not believe.
    pub(crate) fn refused(&self) -> u64 {
        self.xsk.refused_descriptors()
    }

    pub(crate) fn receive_and_drop(&mut self) -> Result<()> {
        let (mut packets, mut bytes) = (0, 0);
        if self.frags {
            let mut batch = self.xsk.receive_packets(self.batch)?;
            while let Some(packet) = batch.next_packet() {
                packets += 1;
                bytes += packet.len() as u64;
            }
        } else {
            let mut batch = self.xsk.receive(self.batch)?;
            while let Some(frame) = batch.next_frame() {
                packets += 1;
                bytes += frame.len() as u64;
            }
        }
        self.counts.rx_packets += packets;
        self.counts.rx_bytes += bytes;
        self.rest_unless(packets > 0)
    }

    pub(crate) fn send(&mut self) -> Result<()> {
        let mut packets = 0;
        if self.frags {
            let mut batch = self.xsk.transmit_packets()?;
            while packets < u64::from(self.batch) && batch.send(&self.packet).is_ok() {
                packets += 1;
            }
        } else {
            let mut batch = self.xsk.transmit(self.batch)?;
            while let Some(mut frame) = batch.next_frame() {
                // A chunk keeps what was written to it, but none tells which one it is.
                frame[..self.packet.len()].copy_from_slice(&self.packet);
                match frame.send(self.packet.len()) {
                    Ok(()) => packets += 1,
                    Err(_unsent) => break,
                }
            }
        }
        self.counts.tx_packets += packets;
        self.counts.tx_bytes += packets * self.packet.len() as u64;
        if packets == 0 && !self.busy {
            // The device takes no more for now; what it has sent comes back without waking anybody.
            self.has_waited = true;
            self.xsk.wait(Some(Duration::from_millis(1)))?;
        }
        Ok(())
    }

    pub(crate) fn forward(&mut self) -> Result<()> {
        if self.frags {
            return self.forward_packets();
        }
        let mut batch = self.xsk.receive(self.batch)?;
        let mut received = false;
        while let Some(mut frame) = batch.next_frame() {
            received = true;
            let bytes = frame.len() as u64;
            self.counts.rx_packets += 1;
            self.counts.rx_bytes += bytes;
            let Some(addresses) = frame.first_chunk_mut() else {
                continue;
            };
            swap(addresses);
            // Where the TX ring is full the frame is recycled, as a switch would drop it: rx and tx differ by these.
            if frame.send().is_ok() {
                self.counts.tx_packets += 1;
                self.counts.tx_bytes += bytes;
            }
        }
        drop(batch);
        self.rest_unless(received)
    }

    /// The same, where a packet may be of several frames.
    fn forward_packets(&mut self) -> Result<()> {
        let mut batch = self.xsk.receive_packets(self.batch)?;
        let mut received = false;
        while let Some(mut packet) = batch.next_packet() {
            received = true;
            let bytes = packet.len() as u64;
            self.counts.rx_packets += 1;
            self.counts.rx_bytes += bytes;
            let addresses = packet.frame_mut(0).and_then(|frame| frame.first_chunk_mut());
            let Some(addresses) = addresses else { continue };
            swap(addresses);
            if packet.send().is_ok() {
                self.counts.tx_packets += 1;
                self.counts.tx_bytes += bytes;
            }
        }
        drop(batch);
        self.rest_unless(received)
    }

    /// One round trip.
    pub(crate) fn ping(&mut self, latencies: &mut Latencies) -> Result<()> {
        let number = self.next_ping.to_be_bytes();
        self.next_ping += 1;
        let sent = Instant::now();
        let mut batch = self.xsk.transmit(1)?;
        let mut is_sent = false;
        if let Some(mut frame) = batch.next_frame() {
            frame[..self.packet.len()].copy_from_slice(&self.packet);
            frame[NUMBER].copy_from_slice(&number);
            is_sent = frame.send(self.packet.len()).is_ok();
        }
        drop(batch);
        if !is_sent {
            return self.rest_unless(false);
        }
        self.counts.tx_packets += 1;
        self.counts.tx_bytes += self.packet.len() as u64;
        loop {
            let mut batch = self.xsk.receive(self.batch)?;
            let mut is_back = false;
            while let Some(frame) = batch.next_frame() {
                is_back |= frame.get(ADDRESSES..HEADER) == Some(&ETHERTYPE[..])
                    && frame.get(NUMBER) == Some(&number[..]);
            }
            drop(batch);
            let elapsed = sent.elapsed();
            if is_back {
                self.counts.rx_packets += 1;
                self.counts.rx_bytes += self.packet.len() as u64;
                latencies.add(elapsed);
                return Ok(());
            }
            if elapsed > LOST_AFTER {
                self.counts.lost += 1;
                self.has_waited = true;
                return Ok(());
            }
            if !self.busy {
                self.xsk.wait(Some(LOST_AFTER - elapsed))?;
            }
        }
    }

    fn rest_unless(&mut self, moved: bool) -> Result<()> {
        if !moved && !self.busy {
            self.has_waited = true;
            self.xsk.wait(Some(LONGEST_SLEEP))?;
        }
        Ok(())
    }
}

/// Back to where it came from.
fn swap(addresses: &mut [u8; ADDRESSES]) {
    let (to, from) = addresses.split_at_mut(ADDRESSES / 2);
    to.swap_with_slice(from);
}
