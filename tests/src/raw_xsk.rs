//! An AF_XDP socket as the kernel gives it: for tests of what the kernel does, and for holders that misbehave.
//!
//! It is slow and simple on purpose, and shares nothing with the client library, which other tests judge by it.

#![expect(
    unsafe_code,
    reason = "rings and umem are memory that the kernel writes as well"
)]

use std::ffi::c_void;
use std::io;
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::mm::{MapFlags, ProtFlags, mmap, mmap_anonymous, munmap};
use rustix::net::xdp::{
    SocketAddrXdp, SocketAddrXdpFlags, XDP_PGOFF_RX_RING, XDP_PGOFF_TX_RING, XDP_UMEM_PGOFF_COMPLETION_RING,
    XDP_UMEM_PGOFF_FILL_RING, XdpDesc, XdpDescOptions, XdpRingOffset, XdpUmemReg, XdpUmemRegFlags,
};
use rustix::net::{AddressFamily, SendFlags, SocketFlags, SocketType, bind, send, socket_with, sockopt};

/// Bytes of one frame.
pub const CHUNK_BYTES: u32 = 4096;

/// A socket that can do nothing yet: no umem, no rings, not bound.
///
/// Made in the calling thread's network namespace, which is where it can be bound.
pub fn bare_socket() -> Result<OwnedFd> {
    socket_with(AddressFamily::XDP, SocketType::RAW, SocketFlags::CLOEXEC, None).context("socket(AF_XDP)")
}

/// `SO_BINDTODEVICE`
pub fn bind_to_device(socket: impl AsFd, device: &str) -> io::Result<()> {
    crate::sys::set_socket_option(socket, libc::SOL_SOCKET, libc::SO_BINDTODEVICE, device.as_bytes())
}

/// `bind(2)` to a queue.
pub fn bind_socket(
    socket: impl AsFd,
    interface_index: u32,
    queue: u32,
    flags: SocketAddrXdpFlags,
) -> rustix::io::Result<()> {
    bind(socket, &SocketAddrXdp::new(flags, interface_index, queue))
}

/// Whether a socket is bound, asked without any effect: a ring of 0 entries is EINVAL before the bind, and EBUSY, as
/// everything is, after it (`xsk_setsockopt`).
pub fn is_bound(socket: impl AsFd) -> rustix::io::Result<bool> {
    match sockopt::set_xdp_rx_ring_size(socket, 0) {
        Err(rustix::io::Errno::INVAL) => Ok(false),
        Err(rustix::io::Errno::BUSY) => Ok(true),
        Err(error) => Err(error),
        Ok(()) => Err(rustix::io::Errno::PROTO),
    }
}

/// How many entries the rings of a socket have.
#[derive(Debug, Clone, Copy)]
pub struct RingEntries {
    /// Of the fill ring.
    pub fill: u32,
    /// Of the completion ring.
    pub completion: u32,
    /// Of the RX ring, if there is one.
    pub rx: Option<u32>,
    /// Of the TX ring, if there is one.
    pub tx: Option<u32>,
}

impl RingEntries {
    /// All four, with so many entries each.
    pub fn all(entries: u32) -> Self {
        Self {
            fill: entries,
            completion: entries,
            rx: Some(entries),
            tx: Some(entries),
        }
    }
}

/// Whether a socket prefers busy polling (1 or 0), and for how many microseconds it does. Its budget cannot be read
/// (`sk_getsockopt`, net/core/sock.c).
pub fn busy_poll(socket: impl AsFd) -> io::Result<(i32, i32)> {
    let ask = |name| crate::sys::socket_option(&socket, libc::SOL_SOCKET, name);
    Ok((ask(libc::SO_PREFER_BUSY_POLL)?, ask(libc::SO_BUSY_POLL)?))
}

/// `SO_BUSY_POLL_BUDGET`
pub fn set_busy_poll_budget(socket: impl AsFd, packets: i32) -> io::Result<()> {
    let value = packets.to_ne_bytes();
    crate::sys::set_socket_option(socket, libc::SOL_SOCKET, libc::SO_BUSY_POLL_BUDGET, &value)
}

/// A socket with a umem and its rings, mapped. The first half of its frames is for receiving.
#[derive(Debug)]
pub struct RawXsk {
    rx: Option<Ring>,
    tx: Option<Ring>,
    fill: Ring,
    completion: Ring,
    umem: Mapping,
    frames: u32,
    free_tx: Vec<u64>,
    // Dropped last; the socket ends with its last fd and its last mapping.
    socket: OwnedFd,
}

impl RawXsk {
    /// Opens a socket, registers a umem of so many frames (a power of two, 1 is enough for a probe), makes rings.
    pub fn new(frames: u32) -> Result<Self> {
        Self::with_socket(bare_socket()?, frames)
    }

    /// The same with a socket that has nothing yet.
    pub fn with_socket(socket: OwnedFd, frames: u32) -> Result<Self> {
        ensure!(frames.is_power_of_two(), "{frames} frames are no power of two");
        let umem = Mapping::anonymous(frames * CHUNK_BYTES)?;
        umem.register(&socket).context("XDP_UMEM_REG")?;
        sockopt::set_xdp_umem_fill_ring_size(&socket, frames).context("XDP_UMEM_FILL_RING")?;
        sockopt::set_xdp_umem_completion_ring_size(&socket, frames).context("XDP_UMEM_COMPLETION_RING")?;
        sockopt::set_xdp_rx_ring_size(&socket, frames).context("XDP_RX_RING")?;
        sockopt::set_xdp_tx_ring_size(&socket, frames).context("XDP_TX_RING")?;
        let rings = RingEntries::all(frames);
        Self::over(socket, umem, 0..frames, rings)
    }

    /// The same with a socket that came with its rings.
    pub fn with_rings(socket: OwnedFd, frames: u32, rings: RingEntries) -> Result<Self> {
        let umem = Mapping::anonymous(frames * CHUNK_BYTES)?;
        umem.register(&socket).context("XDP_UMEM_REG")?;
        Self::over(socket, umem, 0..frames, rings)
    }

    /// The same with a socket that somebody else has bound, over memory that was registered with it. `frames` are those of
    /// the memory that are for this socket, and `rings` those that it was given.
    pub fn over_bound(
        socket: OwnedFd,
        memory: impl AsFd,
        frames: Range<u32>,
        rings: RingEntries,
    ) -> Result<Self> {
        let umem = Mapping::of_file(memory, frames.end * CHUNK_BYTES)?;
        Self::over(socket, umem, frames, rings)
    }

    fn over(socket: OwnedFd, umem: Mapping, frames: Range<u32>, rings: RingEntries) -> Result<Self> {
        let at = sockopt::xdp_mmap_offsets(&socket).context("XDP_MMAP_OFFSETS")?;
        let ring = |offsets, page, entry, entries| Ring::map(&socket, page, offsets, entry, entries);
        let descriptors = |offsets, page, entries: Option<u32>| {
            entries
                .map(|entries| ring(offsets, page, size_of::<XdpDesc>(), entries))
                .transpose()
        };
        let mut this = Self {
            rx: descriptors(at.rx, XDP_PGOFF_RX_RING, rings.rx)?,
            tx: descriptors(at.tx, XDP_PGOFF_TX_RING, rings.tx)?,
            fill: ring(at.fr, XDP_UMEM_PGOFF_FILL_RING, size_of::<u64>(), rings.fill)?,
            completion: ring(
                at.cr,
                XDP_UMEM_PGOFF_COMPLETION_RING,
                size_of::<u64>(),
                rings.completion,
            )?,
            umem,
            frames: frames.end - frames.start,
            free_tx: Vec::new(),
            socket,
        };
        let receiving = frames.start + this.frames.div_ceil(2);
        let places = |frames: Range<u32>| frames.map(|frame| u64::from(frame * CHUNK_BYTES));
        for place in places(frames.start..receiving).take(usize::try_from(rings.fill)?) {
            this.fill.push(place);
        }
        this.free_tx.extend(places(receiving..frames.end));
        Ok(this)
    }

    /// Binds it to a queue, with exactly these flags.
    pub fn bind(
        &self,
        interface_index: u32,
        queue: u32,
        flags: SocketAddrXdpFlags,
    ) -> rustix::io::Result<()> {
        bind_socket(&self.socket, interface_index, queue, flags)
    }

    /// Maps its fill ring once more, and unmaps it: EBUSY for a bound socket on an old kernel.
    pub fn map_fill_ring_again(&self) -> Result<()> {
        const PAGE_BYTES: usize = 4096;
        Mapping::of_ring(&self.socket, XDP_UMEM_PGOFF_FILL_RING, PAGE_BYTES).map(drop)
    }

    /// Binds it in copy mode, and tries again for a while where the queue's last socket is still on its way out.
    pub fn bind_copy(&self, interface_index: u32, queue: u32) -> rustix::io::Result<()> {
        let mut patience = 200;
        loop {
            match self.bind(interface_index, queue, SocketAddrXdpFlags::XDP_COPY) {
                Err(rustix::io::Errno::BUSY) if patience > 0 => {
                    patience -= 1;
                    std::thread::sleep(Duration::from_millis(5));
                }
                result => return result,
            }
        }
    }

    /// Receives one frame; `None` when the time is over.
    pub fn receive(&mut self, timeout: Duration) -> Result<Option<Vec<u8>>> {
        let timeout = Timespec::try_from(timeout).context("a time-out that is too long")?;
        let rx = self.rx.as_mut().context("no RX ring")?;
        if rx.is_empty() {
            poll(&mut [PollFd::new(&self.socket, PollFlags::IN)], Some(&timeout))?;
        }
        let Some(descriptor) = rx.pop::<XdpDesc>() else {
            return Ok(None);
        };
        let frame = self.umem.read(descriptor.addr, descriptor.len)?;
        // The kernel puts a headroom before the frame; the fill ring takes any address within the chunk.
        self.fill.push(descriptor.addr);
        Ok(Some(frame))
    }

    /// Sends one frame.
    pub fn send(&mut self, frame: &[u8]) -> Result<()> {
        while let Some(address) = self.completion.pop::<u64>() {
            self.free_tx.push(address);
        }
        let tx = self.tx.as_mut().context("no TX ring")?;
        let address = self.free_tx.pop().context("no free frame")?;
        let len = u32::try_from(frame.len())?;
        self.umem.write(address, frame)?;
        tx.push(XdpDesc {
            addr: address,
            len,
            options: XdpDescOptions::empty(),
        });
        send(&self.socket, &[], SendFlags::DONTWAIT).context("waking the kernel")?;
        Ok(())
    }

    /// All of its umem as it is now, whatever its rings say: what a device has written there.
    pub fn memory(&self) -> Result<Vec<u8>> {
        self.umem.read(0, self.frames * CHUNK_BYTES)
    }

    /// Frames of its umem.
    pub fn frames(&self) -> u32 {
        self.frames
    }
}

impl AsFd for RawXsk {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// One ring, of which this is the only user on our side.
#[derive(Debug)]
pub(crate) struct Ring {
    memory: Mapping,
    producer: usize,
    consumer: usize,
    entries_at: usize,
    entries: u32,
}

impl Ring {
    pub(crate) fn map(
        socket: &OwnedFd,
        page: u64,
        at: XdpRingOffset,
        entry_bytes: usize,
        entries: u32,
    ) -> Result<Self> {
        let entries_at = usize::try_from(at.desc)?;
        let len = entries_at + entry_bytes * usize::try_from(entries)?;
        Ok(Self {
            memory: Mapping::of_ring(socket, page, len)?,
            producer: usize::try_from(at.producer)?,
            consumer: usize::try_from(at.consumer)?,
            entries_at,
            entries,
        })
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.index(self.producer).load(Ordering::Acquire) == self.index(self.consumer).load(Ordering::Relaxed)
    }

    /// How many entries can be pushed.
    pub(crate) fn room(&self) -> u32 {
        let used = self
            .index(self.producer)
            .load(Ordering::Relaxed)
            .wrapping_sub(self.index(self.consumer).load(Ordering::Acquire));
        self.entries - used
    }

    pub(crate) fn push<T: Copy>(&mut self, entry: T) {
        let producer = self.index(self.producer);
        let index = producer.load(Ordering::Relaxed);
        let place = self.entry::<T>(index);
        // SAFETY: the entry is ours until the producer index below gives it to the kernel; see `entry`.
        unsafe { place.write(entry) };
        // Release: the kernel sees the entry before the index.
        producer.store(index.wrapping_add(1), Ordering::Release);
    }

    pub(crate) fn pop<T: Copy>(&mut self) -> Option<T> {
        let consumer = self.index(self.consumer);
        let index = consumer.load(Ordering::Relaxed);
        // Acquire: we see the entry that the kernel wrote before the index.
        if self.index(self.producer).load(Ordering::Acquire) == index {
            return None;
        }
        let place = self.entry::<T>(index);
        // SAFETY: the kernel has given us this entry and does not touch it before the index below; any bits are a
        // value of the two types that rings hold, integers all through.
        let entry = unsafe { place.read() };
        consumer.store(index.wrapping_add(1), Ordering::Release);
        Some(entry)
    }

    fn index(&self, offset: usize) -> &AtomicU32 {
        // SAFETY: the kernel told this offset, which lies before the entries and so within the mapping.
        let place = unsafe { self.memory.address.as_ptr().add(offset) };
        // SAFETY: the kernel aligns the indexes, the mapping lives as long as `self`, and both sides use them
        // atomically.
        unsafe { AtomicU32::from_ptr(place.cast()) }
    }

    fn entry<T>(&self, index: u32) -> *mut T {
        let offset = self.entries_at + (index & (self.entries - 1)) as usize * size_of::<T>();
        // SAFETY: the index is below the number of entries, for which `map` made the mapping long enough; callers
        // use the entry type that the ring was mapped with.
        unsafe { self.memory.address.as_ptr().add(offset).cast() }
    }
}

/// Mapped memory, unmapped on drop.
#[derive(Debug)]
pub(crate) struct Mapping {
    address: NonNull<u8>,
    len: usize,
}

// SAFETY: a mapping belongs to the process; the pointer is this value's alone.
unsafe impl Send for Mapping {}

impl Mapping {
    pub(crate) fn anonymous(len: u32) -> Result<Self> {
        let len = usize::try_from(len)?;
        let protection = ProtFlags::READ | ProtFlags::WRITE;
        let flags = MapFlags::SHARED | MapFlags::POPULATE;
        // SAFETY: a mapping at an address of the kernel's choice touches no memory that exists.
        let address = unsafe { mmap_anonymous(std::ptr::null_mut(), len, protection, flags) };
        Self::new(address.context("mmap of the umem")?, len)
    }

    fn of_file(file: impl AsFd, len: u32) -> Result<Self> {
        let len = usize::try_from(len)?;
        let protection = ProtFlags::READ | ProtFlags::WRITE;
        let flags = MapFlags::SHARED | MapFlags::POPULATE;
        // SAFETY: as above.
        let address = unsafe { mmap(std::ptr::null_mut(), len, protection, flags, file, 0) };
        Self::new(address.context("mmap of the umem")?, len)
    }

    /// `XDP_UMEM_REG` of all of it, in chunks of [`CHUNK_BYTES`].
    pub(crate) fn register(&self, socket: impl AsFd) -> rustix::io::Result<()> {
        let registration = XdpUmemReg {
            addr: self.address.as_ptr().expose_provenance() as u64,
            len: self.len as u64,
            chunk_size: CHUNK_BYTES,
            headroom: 0,
            flags: XdpUmemRegFlags::empty(),
            tx_metadata_len: 0,
        };
        sockopt::set_xdp_umem_reg(socket, registration)
    }

    fn of_ring(socket: &OwnedFd, page: u64, len: usize) -> Result<Self> {
        let protection = ProtFlags::READ | ProtFlags::WRITE;
        let flags = MapFlags::SHARED | MapFlags::POPULATE;
        // SAFETY: as above.
        let address = unsafe { mmap(std::ptr::null_mut(), len, protection, flags, socket, page) };
        Self::new(address.context("mmap of a ring")?, len)
    }

    fn new(address: *mut c_void, len: usize) -> Result<Self> {
        let address = NonNull::new(address.cast()).context("mmap returned null")?;
        Ok(Self { address, len })
    }

    pub(crate) fn read(&self, offset: u64, len: u32) -> Result<Vec<u8>> {
        let mut bytes = vec![0; usize::try_from(len)?];
        let from = self.place(offset, bytes.len())?;
        // SAFETY: `place` checked the range; the kernel is done with a frame that it put into the RX ring.
        unsafe { from.copy_to_nonoverlapping(bytes.as_mut_ptr(), bytes.len()) };
        Ok(bytes)
    }

    pub(crate) fn write(&self, offset: u64, bytes: &[u8]) -> Result<()> {
        let to = self.place(offset, bytes.len())?;
        // SAFETY: `place` checked the range; the frame is free, so the kernel does not look at it.
        unsafe { to.copy_from_nonoverlapping(bytes.as_ptr(), bytes.len()) };
        Ok(())
    }

    fn place(&self, offset: u64, len: usize) -> Result<*mut u8> {
        let offset = usize::try_from(offset)?;
        ensure!(
            offset.checked_add(len).is_some_and(|end| end <= self.len),
            "outside of the umem"
        );
        // SAFETY: just checked to lie within the mapping.
        Ok(unsafe { self.address.as_ptr().add(offset) })
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: nothing borrows from a mapping that is being dropped. The umem's pages stay with the kernel for
        // as long as it needs them.
        if unsafe { munmap(self.address.as_ptr().cast(), self.len) }.is_err() {
            // It stays mapped, which harms nobody.
        }
    }
}
