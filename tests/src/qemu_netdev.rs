//! A netdev as QEMU's `-netdev af-xdp,…,inhibit=on,sock-fds=…` makes one of inherited sockets: the same system calls in
//! the same order, with the same sizes and flags (QEMU 11.1.1, net/af-xdp.c, with libxdp 1.6.3, lib/libxdp/xsk.c), by a
//! program small enough to be a test's. In place of a guest there is a function that answers frames.
//!
//! **Invariant**: nothing here knows of the broker, as QEMU does not.

use std::os::fd::OwnedFd;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::xdp::{
    SocketAddrXdpFlags, XDP_PGOFF_RX_RING, XDP_PGOFF_TX_RING, XDP_UMEM_PGOFF_COMPLETION_RING,
    XDP_UMEM_PGOFF_FILL_RING, XdpDesc, XdpDescOptions,
};
use rustix::net::{AddressFamily, SocketFlags, SocketType, netdevice, socket_with, sockopt};

use crate::raw_xsk::{CHUNK_BYTES, Mapping, Ring, bind_socket};
use crate::sys;

/// `XSK_RING_PROD__DEFAULT_NUM_DESCS` and `XSK_RING_CONS__DEFAULT_NUM_DESCS`.
const RING_ENTRIES: u32 = 2048;
/// `af_xdp_umem_create`: as many chunks as four full rings have entries.
const CHUNKS: u32 = 4 * RING_ENTRIES;
/// `AF_XDP_BATCH_SIZE`
const BATCH: u32 = 64;

/// How much one queue pins.
pub const UMEM_BYTES: u64 = CHUNKS as u64 * CHUNK_BYTES as u64;

/// One netdev. Its queues are bound.
#[derive(Debug)]
pub struct Netdev {
    queues: Vec<Queue>,
}

/// What the option's text says.
#[derive(Debug, Default)]
struct Options {
    ifname: String,
    queues: usize,
    start_queue: u32,
    inhibit: bool,
    sock_fds: Vec<i32>,
}

/// `AFXDPState`
#[derive(Debug)]
struct Queue {
    id: u32,
    rx: Ring,
    tx: Ring,
    fill: Ring,
    completion: Ring,
    umem: Mapping,
    pool: Vec<u64>,
    outstanding_tx: u32,
    read_poll: bool,
    write_poll: bool,
    socket: OwnedFd,
}

impl Netdev {
    /// Does what QEMU does at its start with the value of `-netdev`.
    pub fn open(option: &str) -> Result<Self> {
        let options = Options::read(option)?;
        // In this process's own network namespace, wherever the sockets are from.
        let any = socket_with(AddressFamily::INET, SocketType::DGRAM, SocketFlags::CLOEXEC, None)?;
        let index = netdevice::name_to_index(&any, &options.ifname)
            .with_context(|| format!("failed to get ifindex for '{}'", options.ifname))?;
        let mut queues = Vec::new();
        for (fd, id) in options.sock_fds.iter().zip(options.start_queue..) {
            let socket = sys::take_inherited(*fd).with_context(|| format!("sock-fds: {fd}"))?;
            queues.push(Queue::open(socket, index, id)?);
        }
        // `net_init_af_xdp` polls the first only: of a netdev with several queues the others send and never receive.
        if let Some(first) = queues.first_mut() {
            first.read_poll = true;
        }
        Ok(Self { queues })
    }

    /// The main loop: hands every frame that arrives to `guest`, with the queue that it came on, and sends what that
    /// answers. Returns when nothing has arrived for that long.
    pub fn run(
        netdevs: &mut [Self],
        idle: Duration,
        mut guest: impl FnMut(u32, &[u8]) -> Option<Vec<u8>>,
    ) -> Result<()> {
        let idle = Timespec::try_from(idle)?;
        loop {
            let mut queues: Vec<&mut Queue> =
                netdevs.iter_mut().flat_map(|netdev| &mut netdev.queues).collect();
            let sockets: Vec<_> = queues
                .iter()
                .map(|queue| (queue.socket.try_clone(), queue.interest()))
                .collect();
            let mut fds = Vec::new();
            for (socket, interest) in &sockets {
                let socket = socket.as_ref().map_err(|error| anyhow::anyhow!("dup: {error}"))?;
                fds.push(PollFd::new(socket, *interest));
            }
            if poll(&mut fds, Some(&idle))? == 0 {
                return Ok(());
            }
            let ready: Vec<PollFlags> = fds.iter().map(PollFd::revents).collect();
            for (queue, ready) in queues.iter_mut().zip(ready) {
                if ready.contains(PollFlags::OUT) && queue.write_poll {
                    queue.writable();
                }
                if ready.contains(PollFlags::IN) && queue.read_poll {
                    queue.receive(&mut guest)?;
                }
            }
        }
    }
}

impl Options {
    fn read(text: &str) -> Result<Self> {
        // A comma within a value is written twice.
        let text = text.replace(",,", "\0");
        let mut parts = text.split(',');
        ensure!(parts.next() == Some("af-xdp"), "another netdev: {text}");
        let mut options = Self {
            queues: 1,
            ..Self::default()
        };
        for part in parts {
            match part.split_once('=') {
                Some(("ifname", name)) => options.ifname = name.replace('\0', ","),
                Some(("queues", count)) => options.queues = count.parse()?,
                Some(("start-queue", first)) => options.start_queue = first.parse()?,
                Some(("inhibit", "on")) => options.inhibit = true,
                Some(("sock-fds", fds)) => {
                    options.sock_fds = fds.split(':').map(str::parse).collect::<Result<_, _>>()?;
                }
                Some(("id", _)) => {}
                _ => bail!("parameter '{part}' is unexpected"),
            }
        }
        ensure!(options.inhibit, "'inhibit=on' requires 'sock-fds' and vice versa");
        ensure!(
            options.sock_fds.len() == options.queues,
            "expected {} socket fds, got {}",
            options.queues,
            options.sock_fds.len()
        );
        Ok(options)
    }
}

impl Queue {
    fn open(socket: OwnedFd, index: u32, id: u32) -> Result<Self> {
        let failed = |what: &'static str| move || format!("{what}, queue {id}");
        // `xsk_umem__create_with_fd`
        let umem = Mapping::anonymous(CHUNKS * CHUNK_BYTES)?;
        umem.register(&socket).with_context(failed("XDP_UMEM_REG"))?;
        sockopt::set_xdp_umem_fill_ring_size(&socket, RING_ENTRIES).with_context(failed("fill ring"))?;
        sockopt::set_xdp_umem_completion_ring_size(&socket, RING_ENTRIES)
            .with_context(failed("completion ring"))?;
        let at = sockopt::xdp_mmap_offsets(&socket)?;
        let address = size_of::<u64>();
        let mut fill = Ring::map(&socket, XDP_UMEM_PGOFF_FILL_RING, at.fr, address, RING_ENTRIES)?;
        let completion = Ring::map(
            &socket,
            XDP_UMEM_PGOFF_COMPLETION_RING,
            at.cr,
            address,
            RING_ENTRIES,
        )?;
        // The pool is a stack whose top is the first chunk.
        let mut pool: Vec<u64> = (0..CHUNKS)
            .rev()
            .map(|chunk| u64::from(chunk * CHUNK_BYTES))
            .collect();
        refill(&mut pool, &mut fill, RING_ENTRIES);
        // `xsk_socket__create`, with XSK_LIBXDP_FLAGS__INHIBIT_PROG_LOAD.
        sockopt::socket_domain(&socket)?;
        sockopt::set_xdp_rx_ring_size(&socket, RING_ENTRIES).with_context(failed("rx ring"))?;
        sockopt::set_xdp_tx_ring_size(&socket, RING_ENTRIES).with_context(failed("tx ring"))?;
        let at = sockopt::xdp_mmap_offsets(&socket)?;
        let descriptor = size_of::<XdpDesc>();
        let rx = Ring::map(&socket, XDP_PGOFF_RX_RING, at.rx, descriptor, RING_ENTRIES)?;
        let tx = Ring::map(&socket, XDP_PGOFF_TX_RING, at.tx, descriptor, RING_ENTRIES)?;
        // Neither XDP_COPY nor XDP_ZEROCOPY: the kernel chooses, zero-copy where it can.
        bind_socket(&socket, index, id, SocketAddrXdpFlags::XDP_USE_NEED_WAKEUP)
            .with_context(failed("bind"))?;
        Ok(Self {
            id,
            rx,
            tx,
            fill,
            completion,
            umem,
            pool,
            outstanding_tx: 0,
            read_poll: false,
            write_poll: false,
            socket,
        })
    }

    fn interest(&self) -> PollFlags {
        let mut interest = PollFlags::empty();
        interest.set(PollFlags::IN, self.read_poll);
        interest.set(PollFlags::OUT, self.write_poll);
        interest
    }

    /// `af_xdp_send`: from the wire to the guest.
    fn receive(&mut self, guest: &mut impl FnMut(u32, &[u8]) -> Option<Vec<u8>>) -> Result<()> {
        for _ in 0..BATCH {
            let Some(descriptor) = self.rx.pop::<XdpDesc>() else {
                break;
            };
            let frame = self.umem.read(descriptor.addr, descriptor.len)?;
            // With the headroom's offset; the fill ring takes any address within the chunk.
            self.pool.push(descriptor.addr);
            if let Some(answer) = guest(self.id, &frame) {
                self.transmit(&answer)?;
            }
        }
        refill(&mut self.pool, &mut self.fill, BATCH);
        Ok(())
    }

    /// `af_xdp_receive`: from the guest to the wire. Nothing is sent by a call: poll drives it.
    fn transmit(&mut self, frame: &[u8]) -> Result<()> {
        self.complete();
        let addr = self.pool.pop().context("out of chunks")?;
        self.umem.write(addr, frame)?;
        self.tx.push(XdpDesc {
            addr,
            len: u32::try_from(frame.len())?,
            options: XdpDescOptions::empty(),
        });
        self.outstanding_tx += 1;
        // In copy mode the kernel always wants to be woken (`xsk_bind` sets the flag, nothing clears it).
        self.write_poll = true;
        Ok(())
    }

    /// `af_xdp_writable`
    fn writable(&mut self) {
        self.complete();
        if self.outstanding_tx == 0 {
            self.write_poll = false;
        }
    }

    /// `af_xdp_complete_tx`
    fn complete(&mut self) {
        while let Some(address) = self.completion.pop::<u64>() {
            self.pool.push(address);
            self.outstanding_tx -= 1;
        }
    }
}

/// `af_xdp_fq_refill`: all of it or nothing, as `xsk_ring_prod__reserve` does.
fn refill(pool: &mut Vec<u64>, fill: &mut Ring, count: u32) {
    let count = match u32::try_from(pool.len()) {
        // "Leave one packet for Tx, just in case."
        Ok(free) if free < count + 1 => free,
        _ => count,
    };
    if fill.room() < count {
        return;
    }
    for address in pool.drain(pool.len() - count as usize..).rev() {
        fill.push(address);
    }
}
