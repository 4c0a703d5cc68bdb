//! A bound socket with its rings and its share of a umem: the frames layer.
//!
//! Chunks go round: free list, fill ring, RX ring, batch, and back; or free list, TX ring, completion ring, and back.
//! The free list stands between all of them, so that nothing depends on as many fill entries being free as frames were
//! received: for about a microsecond after a batch they are not.

mod upkeep;

use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

use rustix::event::PollFlags;

use crate::bind::{BindOptions, mode_of};
use crate::chunks::Chunks;
use crate::error::{Error, Queue};
use crate::frame::{Frame, Unsent, UnsentReason};
use crate::pool::{Pool, Share};
use crate::receive::Received;
use crate::ring::{Descriptor, Run};
use crate::setup::{Opened, Rings};
use crate::socket::{Polled, Socket};
use crate::stamps::{Stamps, TxTimestamp};
use crate::sys::{self, Ring, Statistics};
use crate::transmit::Transmit;
use crate::umem::Umem;
use crate::wire::BindMode;

/// A bound AF_XDP socket.
///
/// It comes from a [`Grant`](crate::Grant). Everything on it that moves packets works in batches, takes no lock,
/// allocates nothing, and makes no system call but those that the kernel asks for (`XDP_USE_NEED_WAKEUP`).
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
    /// Mappings of the socket, closed before it.
    rings: Rings,
    pub(crate) chunks: Chunks,
    /// Chunks that are kept from the fill ring, so that a busy receiver can still make frames of its own.
    reserve: usize,
    /// Frames published to the TX ring that have not come back.
    in_flight: u32,
    /// The kernel may still have to be called for what was published.
    kick_again: bool,
    /// What went wrong where no error can be returned; the next call that can returns it.
    deferred: Option<Error>,
    /// Packets may be of several frames.
    pub(crate) multi_buffer: bool,
    /// The last frame that was sent is to be followed by another one of its packet.
    pub(crate) packet_open: bool,
    /// Time stamps that were asked for; where the umem has room for requests.
    pub(crate) stamps: Option<Stamps>,
    socket: Socket,
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
            let mut xsk = Self::new(opened, share)?;
            let (fd, queue) = (xsk.socket.as_fd(), &xsk.socket.queue);
            xsk.socket.mode = match bound.first() {
                None => options.bind(fd, interface_index, queue)?,
                Some(first) => options.bind_shared(fd, interface_index, queue, first.as_fd())?,
            };
            xsk.multi_buffer = options.is_multi_buffer();
            xsk.kick_fill()?;
            bound.push(xsk);
        }
        Ok(bound)
    }

    /// Takes up a socket that is bound, with the umem of which `share` is a part. Needs Linux 6.4.
    pub(crate) fn adopt(opened: Opened, share: Share) -> Result<Self, Error> {
        let mut xsk = Self::new(opened, share)?;
        xsk.socket.mode = mode_of(&xsk.socket, &xsk.socket.queue)?;
        xsk.kick_fill()?;
        Ok(xsk)
    }

    /// With its fill ring filled, which the mode is not known for yet.
    fn new(opened: Opened, share: Share) -> Result<Self, Error> {
        let rings = opened.map_rings()?;
        let chunks = Chunks::new(share);
        let stamps = Stamps::new(chunks.umem());
        let free = chunks.free().len();
        let reserve = match (&rings.rx, &rings.tx) {
            (Some(_), Some(tx)) => (free / 4).min(tx.size() as usize),
            (Some(_), None) => 0,
            // Some zero-copy drivers want a filled fill ring of a socket that only sends.
            (None, _) => free / 2,
        };
        let mut xsk = Self {
            rings,
            chunks,
            reserve,
            in_flight: 0,
            kick_again: false,
            deferred: None,
            multi_buffer: false,
            packet_open: false,
            stamps,
            socket: Socket::new(opened.socket, opened.queue, BindMode::Copy),
        };
        xsk.refill().map_err(|cause| xsk.socket.corrupt(cause))?;
        Ok(xsk)
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
        self.upkeep()?;
        // Every frame of the batch must find room on the free list. Since chunks only go round, it has; a peer that
        // invents descriptors is held back by this.
        let room = self.chunks.room();
        let Some(rx) = &mut self.rings.rx else {
            return Err(self.socket.lacks(Ring::Rx));
        };
        match rx.ready_run(max.min(room)) {
            Ok(run) => Ok(Received::new(self, run)),
            Err(cause) => Err(self.socket.corrupt(cause)),
        }
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
        let run = self.free_run(max)?;
        Ok(Transmit::new(self, run, max))
    }

    /// Sends one owned frame. For several, [`Transmit::send_owned`] is cheaper.
    ///
    /// # Errors
    ///
    /// Gives the frame back where the TX ring is full or the frame belongs to another umem. What went wrong otherwise,
    /// the next [`Self::receive`], [`Self::transmit`] or [`Self::wait`] says.
    pub fn send(&mut self, frame: Frame) -> Result<(), Unsent<Frame>> {
        let reason = match self.free_run(1) {
            Ok(run) => return Transmit::new(self, run, 1).send_owned(frame),
            Err(Error::NoRing { .. }) => UnsentReason::NoRing,
            Err(error) => {
                self.deferred = Some(error);
                UnsentReason::RingFull
            }
        };
        Err(Unsent { frame, reason })
    }

    #[inline]
    fn free_run(&mut self, max: u32) -> Result<Run<Descriptor>, Error> {
        self.upkeep()?;
        let Some(tx) = &mut self.rings.tx else {
            return Err(self.socket.lacks(Ring::Tx));
        };
        tx.free_run(max).map_err(|cause| self.socket.corrupt(cause))
    }

    /// Waits until there is something to receive, or for `timeout`, or for a signal. Says whether there is.
    ///
    /// # Errors
    ///
    /// As [`Self::receive`]; [`Error::DeviceGone`] within a second of the event.
    pub fn wait(&mut self, timeout: Option<Duration>) -> Result<bool, Error> {
        let deadline = timeout.and_then(|timeout| Instant::now().checked_add(timeout));
        loop {
            self.upkeep()?;
            let Some(rx) = &mut self.rings.rx else {
                return Err(self.socket.lacks(Ring::Rx));
            };
            let ready = rx.ready_run(1).map_err(|cause| self.socket.corrupt(cause))?;
            if ready.count > 0 {
                return Ok(true);
            }
            let longest = self.longest_pause();
            let left = deadline.map_or(longest, |deadline| {
                deadline.saturating_duration_since(Instant::now())
            });
            match self.socket.wait_readable(Some(left.min(longest)))? {
                Polled::Ready => return Ok(true),
                Polled::Interrupted => return Ok(false),
                Polled::TimedOut => self.socket.check_device()?,
            }
            if deadline.is_some_and(|deadline| Instant::now() >= deadline) {
                return Ok(false);
            }
        }
    }

    /// Waits until half of the TX ring is free, or for `timeout`, or for a signal, and says whether it is. For loops that
    /// have more to send than there is room for.
    ///
    /// # Errors
    ///
    /// As [`Self::transmit`]; [`Error::DeviceGone`].
    pub fn wait_to_send(&mut self, timeout: Duration) -> Result<bool, Error> {
        self.upkeep()?;
        if self.rings.tx.is_none() {
            return Err(self.socket.lacks(Ring::Tx));
        }
        let polled = self.socket.poll(PollFlags::OUT, Some(timeout))?;
        self.socket.check_device()?;
        Ok(polled == Polled::Ready)
    }

    /// How many frames one call into the kernel sends at most, in copy mode: 32 at first, at most what the TX ring has
    /// (`XDP_MAX_TX_SKB_BUDGET`, Linux 6.17). Fewer calls for large batches; others on this CPU wait longer.
    ///
    /// # Errors
    ///
    /// [`Error::Socket`]: EACCES for a number that the kernel does not take, ENOPROTOOPT where it has no such option.
    pub fn set_tx_budget(&mut self, frames: u32) -> Result<(), Error> {
        self.socket.set_kick_frames(frames)
    }

    /// Lowers how long (in microseconds) and for how many packets a call into the kernel polls the device, where who made
    /// the socket has switched that on. From Linux 5.11.
    ///
    /// # Errors
    ///
    /// [`Error::Socket`]: EPERM for more than the socket has.
    pub fn lower_busy_poll(&mut self, budget: u16, microseconds: u32) -> Result<(), Error> {
        sys::lower_busy_poll(&self.socket, budget, microseconds)
            .map_err(|cause| self.socket.error("SO_BUSY_POLL", cause))
    }

    /// The next time stamp that was asked for ([`TxRequest::timestamp`](crate::TxRequest::timestamp)), in the order in
    /// which frames came back. The latest are kept, as many as the umem has chunks.
    ///
    /// # Errors
    ///
    /// As [`Self::receive`].
    pub fn next_timestamp(&mut self) -> Result<Option<TxTimestamp>, Error> {
        self.upkeep()?;
        Ok(self.stamps.as_mut().and_then(Stamps::next))
    }

    /// All that the kernel has counted for this socket.
    ///
    /// # Errors
    ///
    /// None on a working socket.
    pub fn statistics(&self) -> Result<Statistics, Error> {
        self.socket.statistics()
    }

    /// How many descriptors were dropped here because they named memory that they may not name. Anything but 0 means
    /// that another process writes to this socket's rings.
    pub fn refused_descriptors(&self) -> u64 {
        self.chunks.refused()
    }

    /// Copy or zero-copy, as the kernel says.
    pub fn mode(&self) -> BindMode {
        self.socket.mode
    }

    /// The queue that it is bound to.
    pub fn queue(&self) -> &Queue {
        &self.socket.queue
    }

    /// How many frames were given to the kernel to send and have not come back.
    pub fn in_flight(&self) -> u32 {
        self.in_flight
    }
}

impl AsFd for Xsk {
    /// The socket, for poll and epoll. Polling it sends what is in the TX ring.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

const _: () = {
    const fn is_send<T: Send>() {}
    is_send::<Xsk>();
    is_send::<Frame>();
};
