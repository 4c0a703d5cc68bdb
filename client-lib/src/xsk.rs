//! A bound socket with its rings and its share of a umem: the frames layer.
//!
//! Chunks go round: free list, fill ring, RX ring, batch, and back; or free list, TX ring, completion ring, and back.
//! The free list stands between all of them, so that nothing depends on as many fill entries being free as frames were
//! received: for about a microsecond after a batch they are not.

mod core;
mod packets;
mod upkeep;

pub(crate) use core::Core;
#[cfg(feature = "tokio")]
pub(crate) use upkeep::DEVICE_CHECK;

use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

use rustix::event::PollFlags;

use crate::bind::{BindOptions, mode_of};
use crate::error::{Error, Queue};
use crate::frame::{Frame, Unsent, UnsentReason};
use crate::packet::{ReceivedPackets, TransmitPackets};
use crate::pool::{Pool, Share};
use crate::receive::Received;
use crate::ring::{Descriptor, RxRing};
use crate::setup::Opened;
#[cfg(any(test, fuzzing))]
use crate::setup::Rings;
use crate::socket::Polled;
use crate::stamps::{Stamps, TxTimestamp};
use crate::sys::{Ring, Statistics};
use crate::transmit::Transmit;
use crate::umem::Umem;
use crate::wire::BindMode;

/// A bound AF_XDP socket.
///
/// It comes from a [`Grant`](crate::Grant). Everything on it that moves packets works in batches, takes no lock,
/// allocates nothing, and makes no system call but those that the kernel asks for (`XDP_USE_NEED_WAKEUP`). For a few
/// frames, that call is made in the function in which the batch is dropped: for the shortest round trips, let that be the
/// one that waits for the answer.
///
/// ```no_run
/// # fn run(xsk: &mut xsk_client::Xsk) -> Result<(), xsk_client::Error> {
/// loop {
///     xsk.wait(None)?;
///     let mut batch = xsk.receive(64)?;
///     while let Some(mut frame) = batch.next_frame() {
///         if let Some((to, from)) = frame.split_at_mut_checked(6) {
///             to.swap_with_slice(&mut from[..6]);
///             // Where the TX ring is full, the frame comes back in the error and is recycled.
///             frame.send().ok();
///         }
///     }
/// }
/// # }
/// ```
#[derive(Debug)]
pub struct Xsk {
    /// Where descriptors are copied to that were received: as many as the RX ring has.
    copies: Box<[Descriptor]>,
    core: Core,
}

impl Xsk {
    /// Registers the umem, maps the rings, gives the kernel its chunks, and binds, in this order: below Linux 6.4 the
    /// rings of a bound socket cannot be mapped, and a bound socket with an empty fill ring drops what arrives.
    ///
    /// The first socket takes the umem, and the others share it.
    pub(crate) fn bind(opened: Vec<Opened>, umem: Umem, options: &BindOptions) -> Result<Vec<Self>, Error> {
        let (chunks, sockets) = (umem.chunks(), opened.len());
        let shares = Pool::divide(umem, sockets).ok_or(Error::UmemShares { chunks, sockets })?;
        let mut bound: Vec<Self> = Vec::new();
        for (opened, share) in opened.into_iter().zip(shares) {
            let interface_index = opened.interface_index;
            if bound.is_empty() {
                opened.register(&share.pool().umem().region())?;
            }
            let mut core = Core::new(opened, share)?;
            let (fd, queue) = (core.socket.as_fd(), &core.socket.queue);
            core.socket.mode = match bound.first() {
                None => options.bind(fd, interface_index, queue)?,
                Some(first) => options.bind_shared(fd, interface_index, queue, first.as_fd())?,
            };
            core.multi_buffer = options.is_multi_buffer();
            bound.push(Self::new(core)?);
        }
        Ok(bound)
    }

    /// Takes up a socket that is bound, with the umem of which `share` is a part. Needs Linux 6.4.
    pub(crate) fn adopt(opened: Opened, share: Share) -> Result<Self, Error> {
        let mut core = Core::new(opened, share)?;
        core.socket.mode = mode_of(&core.socket, &core.socket.queue)?;
        Self::new(core)
    }

    /// A socket that no kernel knows, for those who write to its rings in its place.
    #[cfg(any(test, fuzzing))]
    pub(crate) fn over(
        opened: Opened,
        rings: Rings,
        share: Share,
        mode: BindMode,
        options: &BindOptions,
    ) -> Result<Self, Error> {
        let mut core = Core::over(opened, rings, share)?;
        core.socket.mode = mode;
        core.multi_buffer = options.is_multi_buffer();
        Self::new(core)
    }

    /// `core` is bound.
    fn new(core: Core) -> Result<Self, Error> {
        core.kick_fill()?;
        let entries = core.rings.rx.as_ref().map_or(0, RxRing::size);
        Ok(Self {
            copies: (0..entries).map(|_| Descriptor::default()).collect(),
            core,
        })
    }

    /// Takes up to `max` received frames. It does not wait, and it may give fewer than there are: call it until a batch
    /// is empty before [`Self::wait`].
    ///
    /// # Errors
    ///
    /// Whatever an earlier batch ran into while it was dropped; [`Error::Corrupt`]; [`Error::NoRing`] where the socket
    /// was granted for sending only. That the device is gone shows when
    /// something is sent, and in [`Self::wait`]: a loop that only receives calls that now and then, with a timeout of zero.
    #[inline(always)]
    pub fn receive(&mut self, max: u32) -> Result<Received<'_>, Error> {
        let run = self.core.ready_run(max)?;
        Ok(Received::new(&mut self.core, &mut self.copies, &run))
    }

    /// Prepares to send up to `max` frames made here.
    ///
    /// ```no_run
    /// # fn run(xsk: &mut xsk_client::Xsk, packet: &[u8]) -> Result<(), xsk_client::Error> {
    /// let mut batch = xsk.transmit(64)?;
    /// while let Some(mut frame) = batch.next_frame() {
    ///     frame[..packet.len()].copy_from_slice(packet);
    ///     frame.send(packet.len()).ok();
    /// }
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// As [`Self::receive`]; [`Error::NoRing`] where the socket was granted for receiving only.
    #[inline(always)]
    pub fn transmit(&mut self, max: u32) -> Result<Transmit<'_>, Error> {
        let run = self.core.free_run(max)?;
        Ok(Transmit::new(&mut self.core, run, max))
    }

    /// Takes received packets whole, however many frames each is of: up to `max` frames in all, or one packet that has more.
    /// For sockets that are bound with [`BindOptions::multi_buffer`]; of others, each frame is a packet.
    ///
    /// ```no_run
    /// # fn run(xsk: &mut xsk_client::Xsk) -> Result<(), xsk_client::Error> {
    /// let mut batch = xsk.receive_packets(64)?;
    /// while let Some(mut packet) = batch.next_packet() {
    ///     // The headers are in the first frame.
    ///     if let Some((to, from)) = packet.frame_mut(0).and_then(|frame| frame.split_at_mut_checked(6)) {
    ///         to.swap_with_slice(&mut from[..6]);
    ///         // Where the TX ring has no room for all of it, the packet comes back in the error and is recycled.
    ///         packet.send().ok();
    ///     }
    /// }
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// As [`Self::receive`].
    pub fn receive_packets(&mut self, max: u32) -> Result<ReceivedPackets<'_>, Error> {
        let count = self.core.ready_packets(max, &mut self.copies)?;
        let frames = self.copies.get_mut(..count).unwrap_or_default();
        Ok(ReceivedPackets::new(&mut self.core, frames))
    }

    /// Prepares to send packets made here, each as a whole.
    ///
    /// ```no_run
    /// # fn run(xsk: &mut xsk_client::Xsk, packet: &[u8]) -> Result<(), Box<dyn std::error::Error>> {
    /// xsk.transmit_packets()?.send(packet)?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// As [`Self::transmit`].
    pub fn transmit_packets(&mut self) -> Result<TransmitPackets<'_>, Error> {
        self.core.upkeep()?;
        match self.core.sends() {
            true => Ok(TransmitPackets::new(&mut self.core)),
            false => Err(self.core.socket.lacks(Ring::Tx)),
        }
    }

    /// Sends one owned frame. For several, [`Transmit::send_owned`] is cheaper.
    ///
    /// # Errors
    ///
    /// Gives the frame back where the TX ring is full or the frame belongs to another umem. What went wrong otherwise,
    /// the next [`Self::receive`], [`Self::transmit`] or [`Self::wait`] says.
    pub fn send(&mut self, frame: Frame) -> Result<(), Unsent<Frame>> {
        let reason = match self.core.free_run(1) {
            Ok(run) => return Transmit::new(&mut self.core, run, 1).send_owned(frame),
            Err(Error::NoRing { .. }) => UnsentReason::NoRing,
            Err(error) => {
                self.core.deferred = Some(error);
                UnsentReason::RingFull
            }
        };
        Err(Unsent { frame, reason })
    }

    /// Waits until there is something to receive, or for `timeout` (`None`: for as long as it takes), or for a signal. Says
    /// whether there is. Like any poll(2) it sends what is in the TX ring.
    ///
    /// # Errors
    ///
    /// As [`Self::receive`]; [`Error::DeviceGone`] within a second of the event.
    pub fn wait(&mut self, timeout: Option<Duration>) -> Result<bool, Error> {
        let deadline = timeout.and_then(|timeout| Instant::now().checked_add(timeout));
        loop {
            self.core.upkeep()?;
            if self.core.has_received()? {
                return Ok(true);
            }
            let longest = self.core.longest_pause();
            let left = deadline.map_or(longest, |deadline| {
                deadline.saturating_duration_since(Instant::now())
            });
            match self.core.socket.wait_readable(Some(left.min(longest)))? {
                Polled::Ready => return Ok(true),
                Polled::Interrupted => return Ok(false),
                Polled::TimedOut => self.core.socket.check_device()?,
            }
            if deadline.is_some_and(|deadline| Instant::now() >= deadline) {
                return Ok(false);
            }
        }
    }

    /// Whether there is something to receive, now.
    #[cfg(feature = "tokio")]
    pub(crate) fn is_readable(&mut self) -> Result<bool, Error> {
        self.core.upkeep()?;
        self.core.has_received()
    }

    #[cfg(feature = "tokio")]
    pub(crate) fn longest_pause(&self) -> Duration {
        self.core.longest_pause()
    }

    #[cfg(feature = "tokio")]
    pub(crate) fn check_device(&self) -> Result<(), Error> {
        self.core.socket.check_device()
    }

    #[cfg(feature = "tokio")]
    pub(crate) fn failed(&self, call: &'static str, cause: std::io::Error) -> Error {
        self.core.socket.error(call, cause)
    }

    /// Waits until half of the TX ring is free, or for `timeout`, or for a signal, and says whether it is. For loops that
    /// have more to send than there is room for.
    ///
    /// # Errors
    ///
    /// As [`Self::transmit`]; [`Error::DeviceGone`].
    pub fn wait_to_send(&mut self, timeout: Duration) -> Result<bool, Error> {
        self.core.upkeep()?;
        if self.core.rings.tx.is_none() {
            return Err(self.core.socket.lacks(Ring::Tx));
        }
        let polled = self.core.socket.poll(PollFlags::OUT, Some(timeout))?;
        self.core.socket.check_device()?;
        Ok(polled == Polled::Ready)
    }

    /// How many frames one call into the kernel sends at most, in copy mode: 32 at first, at most what the TX ring has
    /// (`XDP_MAX_TX_SKB_BUDGET`, Linux 6.17). Fewer calls for large batches; others on this CPU wait longer.
    ///
    /// # Errors
    ///
    /// [`Error::Socket`]: EACCES for a number that the kernel does not take, ENOPROTOOPT where it has no such option.
    pub fn set_tx_budget(&mut self, frames: u32) -> Result<(), Error> {
        self.core.socket.set_kick_frames(frames)
    }

    /// Lowers for how many packets (`budget`, `SO_BUSY_POLL_BUDGET`) and for how long (`SO_BUSY_POLL`) a call into the kernel
    /// polls the device, where the socket was asked for with that ([`Request::busy_poll`](crate::Request::busy_poll)). From
    /// Linux 5.11.
    ///
    /// # Errors
    ///
    /// [`Error::Socket`]: EPERM for more than the socket has.
    pub fn lower_busy_poll(&mut self, budget: u16, microseconds: u32) -> Result<(), Error> {
        self.core.socket.lower_busy_poll(budget, microseconds)
    }

    /// The next time stamp that was asked for ([`TxRequest::timestamp`](crate::TxRequest::timestamp)), in the order in
    /// which frames came back. The latest are kept, as many as the umem has chunks.
    ///
    /// # Errors
    ///
    /// As [`Self::receive`].
    pub fn next_timestamp(&mut self) -> Result<Option<TxTimestamp>, Error> {
        self.core.upkeep()?;
        Ok(self.core.stamps.as_mut().and_then(Stamps::next))
    }

    /// All that the kernel has counted for this socket since it was made; a system call, without effect.
    ///
    /// # Errors
    ///
    /// None on a working socket.
    pub fn statistics(&self) -> Result<Statistics, Error> {
        self.core.socket.statistics()
    }

    /// How many descriptors were dropped here because they named memory that they may not name. Anything but 0 means
    /// that another process writes to this socket's rings.
    pub fn refused_descriptors(&self) -> u64 {
        self.core.chunks.refused()
    }

    /// Copy or zero-copy, as the kernel says.
    pub fn mode(&self) -> BindMode {
        self.core.socket.mode
    }

    /// The queue that it is bound to.
    pub fn queue(&self) -> &Queue {
        &self.core.socket.queue
    }

    /// How many frames were given to the kernel to send and have not come back.
    pub fn in_flight(&self) -> u32 {
        self.core.in_flight
    }
}

impl AsFd for Xsk {
    /// The socket, for poll and epoll. Polling it sends what is in the TX ring.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.core.socket.as_fd()
    }
}

const _: () = {
    const fn is_send<T: Send>() {}
    is_send::<Xsk>();
    is_send::<Frame>();
};
