//! A bound socket with its four rings and its umem: the frames layer.
//!
//! Chunks go round: free list, fill ring, RX ring, batch, and back; or free list, TX ring, completion ring, and back.
//! The free list stands between all of them, so that nothing depends on as many fill entries being free as frames were
//! received: for about a microsecond after a batch they are not.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};
use std::{io, thread};

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags};

use crate::chunks::Chunks;
use crate::error::{Error, Queue};
use crate::frame::{Frame, Unsent, UnsentReason};
use crate::receive::{Received, TxRun};
use crate::ring::{CompletionRing, CorruptRing, FillRing, RxRing, TxRing};
use crate::setup::{BindOptions, Unbound};
use crate::sys::{self, Statistics};
use crate::transmit::Transmit;
use crate::umem::{Pool, Umem};
use crate::wire::BindMode;

/// How many frames one call sends in copy mode (`TX_BATCH_SIZE`, net/xdp/xsk.c; `__xsk_generic_xmit` says EAGAIN where
/// there are more).
const KICK_FRAMES: u32 = 32;

/// How long `wait` sleeps at most before it looks whether the device is still there: poll() does not tell
/// (`xsk_poll`, net/xdp/xsk.c).
const DEVICE_CHECK: Duration = Duration::from_secs(1);

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
    rx: RxRing,
    tx: TxRing,
    fill: FillRing,
    completion: CompletionRing,
    pub(crate) chunks: Chunks,
    /// Chunks that are kept from the fill ring, so that a busy receiver can still make frames of its own.
    reserve: usize,
    /// Frames published to the TX ring that have not come back.
    in_flight: u32,
    /// The kernel may still have to be called for what was published.
    kick_again: bool,
    /// What went wrong where no error can be returned; the next call that can returns it.
    deferred: Option<Error>,
    mode: BindMode,
    queue: Queue,
    /// Closed last: the rings above are mappings of it.
    socket: OwnedFd,
}

impl Xsk {
    /// Registers the umem, maps the rings, gives the kernel its chunks, and binds, in this order: below Linux 6.4 the
    /// rings of a bound socket cannot be mapped, and a bound socket with an empty fill ring drops what arrives.
    pub(crate) fn bind(unbound: Unbound, umem: Umem, options: &BindOptions) -> Result<Self, Error> {
        unbound.register(&umem)?;
        let (rx, tx, fill, completion) = unbound.map_rings()?;
        let chunks = Chunks::new(Arc::new(Pool::new(umem)));
        let quarter = chunks.free().len() / 4;
        let reserve = quarter.min(tx.size() as usize);
        let mut xsk = Self {
            rx,
            tx,
            fill,
            completion,
            chunks,
            reserve,
            in_flight: 0,
            kick_again: false,
            deferred: None,
            mode: BindMode::Copy,
            queue: unbound.queue.clone(),
            socket: unbound.socket,
        };
        xsk.refill().map_err(|cause| xsk.corrupt(cause))?;
        xsk.mode = options.bind(xsk.socket.as_fd(), unbound.interface_index, &xsk.queue)?;
        xsk.kick_fill()?;
        Ok(xsk)
    }

    /// Takes up to `max` received frames. It does not wait, and it may give fewer than there are: call it until a batch
    /// is empty before [`Self::wait`].
    ///
    /// # Errors
    ///
    /// Whatever an earlier batch ran into while it was dropped; [`Error::Corrupt`]. That the device is gone shows when
    /// something is sent, and in [`Self::wait`]: a loop that only receives calls that now and then, with a timeout of zero.
    #[inline]
    pub fn receive(&mut self, max: u32) -> Result<Received<'_>, Error> {
        self.upkeep()?;
        // Every frame of the batch must find room on the free list. Since chunks only go round, it has; a peer that
        // invents descriptors is held back by this.
        let room = u32::try_from(self.chunks.spare().len()).unwrap_or(u32::MAX);
        match self.rx.ready_run(max.min(room)) {
            Ok(run) => Ok(Received::new(self, run)),
            Err(cause) => Err(self.corrupt(cause)),
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
    /// As [`Self::receive`].
    #[inline]
    pub fn transmit(&mut self, max: u32) -> Result<Transmit<'_>, Error> {
        self.upkeep()?;
        match self.tx.free_run(max) {
            Ok(run) => Ok(Transmit::new(self, run)),
            Err(cause) => Err(self.corrupt(cause)),
        }
    }

    /// Sends one owned frame. For several, [`Transmit::send_owned`] is cheaper.
    ///
    /// # Errors
    ///
    /// Gives the frame back where the TX ring is full or the frame belongs to another umem. What went wrong otherwise,
    /// the next [`Self::receive`], [`Self::transmit`] or [`Self::wait`] says.
    pub fn send(&mut self, frame: Frame) -> Result<(), Unsent<Frame>> {
        let prepared = self
            .upkeep()
            .and_then(|()| self.tx.free_run(1).map_err(|cause| self.corrupt(cause)));
        match prepared {
            Ok(run) => Transmit::new(self, run).send_owned(frame),
            Err(error) => {
                self.deferred = Some(error);
                Err(Unsent {
                    frame,
                    reason: UnsentReason::RingFull,
                })
            }
        }
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
            if self.rx.ready_run(1).map_err(|cause| self.corrupt(cause))?.count > 0 {
                return Ok(true);
            }
            let longest = self.longest_pause();
            let left = deadline.map_or(longest, |deadline| {
                deadline.saturating_duration_since(Instant::now())
            });
            let pause =
                Timespec::try_from(left.min(longest)).map_err(|_| self.failed("poll", Errno::INVAL))?;
            let mut fds = [PollFd::new(&self.socket, PollFlags::IN)];
            match rustix::event::poll(&mut fds, Some(&pause)) {
                Ok(0) => self.check_device()?,
                Ok(_) => return Ok(true),
                Err(Errno::INTR) => return Ok(false),
                Err(errno) => return Err(self.failed("poll", errno)),
            }
            if deadline.is_some_and(|deadline| Instant::now() >= deadline) {
                return Ok(false);
            }
        }
    }

    /// All that the kernel has counted for this socket.
    ///
    /// # Errors
    ///
    /// None on a working socket.
    pub fn statistics(&self) -> Result<Statistics, Error> {
        sys::statistics(&self.socket).map_err(|cause| self.socket_error("XDP_STATISTICS", cause))
    }

    /// How many descriptors were dropped here because they named memory that they may not name. Anything but 0 means
    /// that another process writes to this socket's rings.
    pub fn refused_descriptors(&self) -> u64 {
        self.chunks.refused()
    }

    /// Copy or zero-copy, as the kernel says.
    pub fn mode(&self) -> BindMode {
        self.mode
    }

    /// The queue that it is bound to.
    pub fn queue(&self) -> &Queue {
        &self.queue
    }

    /// How many frames were given to the kernel to send and have not come back.
    pub fn in_flight(&self) -> u32 {
        self.in_flight
    }

    /// Gives the kernel what a batch leaves behind.
    pub(crate) fn finish_receive(&mut self, looked_at: u32, free_top: *const u64, sent: u32) {
        let bottom = self.chunks.stack().as_ptr();
        self.chunks
            .set_free_count((free_top.addr() - bottom.addr()) / size_of::<u64>());
        if looked_at > 0 {
            self.rx.release(looked_at);
            self.refill_and_kick();
        }
        self.finish_send(sent);
    }

    /// As `finish_receive`, for frames made here.
    pub(crate) fn finish_transmit(&mut self, free: usize, sent: u32) {
        self.chunks.set_free_count(free);
        self.finish_send(sent);
    }

    /// More TX entries for a batch that has used up `run`.
    #[cold]
    pub(crate) fn more_tx(&mut self, run: TxRun, wanted: u32) -> TxRun {
        self.stage(run.written());
        match self.tx.free_run(wanted) {
            Ok(run) => TxRun::new(run),
            Err(cause) => {
                self.deferred = Some(self.corrupt(cause));
                TxRun::NONE
            }
        }
    }

    /// Counts TX entries as written.
    fn stage(&mut self, count: u32) {
        self.tx.advance(count);
        self.in_flight = self.in_flight.saturating_add(count);
        self.kick_again |= count > 0;
    }

    fn finish_send(&mut self, count: u32) {
        self.stage(count);
        if self.kick_again {
            self.tx.publish();
            if let Err(error) = self.kick_tx() {
                self.deferred = Some(error);
            }
        }
    }

    /// How long `wait` may sleep without looking. Completions and frames that come back from their owners do not wake
    /// it, and a small umem may need just those to receive anything.
    fn longest_pause(&self) -> Duration {
        if self.kick_again {
            Duration::from_millis(1)
        } else if self.in_flight > 0 || self.chunks.any_owned() {
            Duration::from_millis(10)
        } else {
            DEVICE_CHECK
        }
    }

    /// What is done before each batch: errors told, chunks collected, the kernel called again where it had no room.
    fn upkeep(&mut self) -> Result<(), Error> {
        if let Some(error) = self.deferred.take() {
            return Err(error);
        }
        if self.chunks.any_owned() {
            self.chunks.collect();
            self.refill().map_err(|cause| self.corrupt(cause))?;
        }
        if self.in_flight > 0 {
            self.reap().map_err(|cause| self.corrupt(cause))?;
        }
        if self.kick_again {
            self.kick_tx()?;
        }
        Ok(())
    }

    /// Takes back what the kernel has sent.
    fn reap(&mut self) -> Result<(), CorruptRing> {
        let taken = self.completion.consume(self.chunks.spare())?;
        if taken > 0 {
            self.in_flight = self
                .in_flight
                .saturating_sub(u32::try_from(taken).unwrap_or(u32::MAX));
            self.chunks.set_free_count(self.chunks.free().len() + taken);
            self.refill()?;
        }
        Ok(())
    }

    /// Moves free chunks to the fill ring, as many as fit and are not kept for sending.
    fn refill(&mut self) -> Result<(), CorruptRing> {
        let free = self.chunks.free();
        if let Some(usable) = free.get(self.reserve..) {
            let left = free.len() - self.fill.produce_last(usable)?;
            self.chunks.set_free_count(left);
        }
        Ok(())
    }

    fn refill_and_kick(&mut self) {
        let done = self
            .refill()
            .map_err(|cause| self.corrupt(cause))
            .and_then(|()| self.kick_fill());
        if let Err(error) = done {
            self.deferred = Some(error);
        }
    }

    /// Calls the kernel for the fill ring, if it asks for that. In copy mode it never does.
    fn kick_fill(&mut self) -> Result<(), Error> {
        if self.mode == BindMode::Copy || !self.fill.needs_wakeup() {
            return Ok(());
        }
        let nothing: &mut [u8] = &mut [];
        match rustix::net::recv(&self.socket, nothing, RecvFlags::DONTWAIT) {
            Ok(_) | Err(Errno::AGAIN | Errno::BUSY | Errno::NOBUFS | Errno::NETDOWN | Errno::INTR) => Ok(()),
            Err(errno) => Err(self.kick_error("recvfrom", errno)),
        }
    }

    /// Calls the kernel for the TX ring, if it asks for that: as often as it takes for what is in flight, as long as it
    /// makes progress.
    fn kick_tx(&mut self) -> Result<(), Error> {
        self.kick_again = false;
        if !self.tx.needs_wakeup() {
            return Ok(());
        }
        for _ in 0..=self.in_flight / KICK_FRAMES {
            // A full batch of the kernel's ends with EAGAIN, whether there is more or not.
            if self.tx.is_drained() {
                self.kick_again = false;
                return Ok(());
            }
            match rustix::net::send(&self.socket, &[], SendFlags::DONTWAIT) {
                Ok(_) => {
                    self.kick_again = false;
                    return Ok(());
                }
                // More than it sends at once; or no room for completions or in the socket's send buffer.
                Err(Errno::AGAIN) => self.kick_again = true,
                // The device has no room, or is down for now: the frames wait in the ring.
                Err(Errno::BUSY | Errno::NOBUFS | Errno::NETDOWN | Errno::INTR) => {
                    self.kick_again = true;
                    return Ok(());
                }
                Err(errno) => return Err(self.kick_error("sendto", errno)),
            }
        }
        Ok(())
    }

    /// A device that goes leaves ENETDOWN on its sockets (`xsk_notifier`, net/xdp/xsk.c).
    fn check_device(&self) -> Result<(), Error> {
        match rustix::net::sockopt::socket_error(&self.socket) {
            Ok(Err(Errno::NETDOWN | Errno::NXIO)) => Err(self.gone()),
            _ => Ok(()),
        }
    }

    #[cold]
    fn kick_error(&self, call: &'static str, errno: Errno) -> Error {
        match errno {
            // `xsk_sendmsg`, net/xdp/xsk.c: no longer bound.
            Errno::NXIO => self.gone(),
            _ => self.failed(call, errno),
        }
    }

    fn gone(&self) -> Error {
        Error::DeviceGone {
            queue: self.queue.clone(),
        }
    }

    fn failed(&self, call: &'static str, errno: Errno) -> Error {
        self.socket_error(call, errno.into())
    }

    fn socket_error(&self, call: &'static str, cause: io::Error) -> Error {
        Error::Socket {
            call,
            queue: self.queue.clone(),
            cause,
        }
    }

    #[cold]
    fn corrupt(&self, cause: CorruptRing) -> Error {
        Error::Corrupt {
            queue: self.queue.clone(),
            cause,
        }
    }
}

impl AsFd for Xsk {
    /// The socket, for poll and epoll. Polling it sends what is in the TX ring.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// Sleeps before the next try, and says whether there is one.
pub(crate) fn pause_until(deadline: Instant, pause: Duration) -> bool {
    let left = deadline.saturating_duration_since(Instant::now());
    thread::sleep(left.min(pause));
    !left.is_zero()
}

const _: () = {
    const fn is_send<T: Send>() {}
    is_send::<Xsk>();
    is_send::<Frame>();
};
