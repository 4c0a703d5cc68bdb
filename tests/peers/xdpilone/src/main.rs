//! A contender of `cargo xtask bench datapath`: xdpilone, as its examples use it. It makes its socket itself, so that it
//! has to run as root: the crate takes none from outside.

#[path = "../../../bench/contender/harness.rs"]
mod harness;

use std::ffi::CString;
use std::num::NonZeroU32;
use std::os::fd::RawFd;
use std::process::ExitCode;
use std::ptr::NonNull;

use harness::{BATCH, CHUNK_BYTES, CHUNKS, Contender, FRAME_BYTES, Place, RING_ENTRIES};
use xdpilone::xdp::XdpDesc;
use xdpilone::{CompletionQueue, FillQueue, IfInfo, RingRx, RingTx, Socket, SocketConfig, Umem, UmemConfig};

/// The umem's pages, allocated and never freed.
#[repr(C, align(4096))]
struct Memory([u8; CHUNKS as usize * CHUNK_BYTES as usize]);

struct Xdpilone {
    memory: NonNull<u8>,
    fill: FillQueue,
    completion: CompletionQueue,
    rx: RingRx,
    tx: RingTx,
    next: u64,
    _umem: Umem,
}

impl Xdpilone {
    fn new(place: &Place) -> Result<Self, Box<dyn std::error::Error>> {
        let layout = std::alloc::Layout::new::<Memory>();
        // SAFETY: a layout of a size above zero.
        let memory = NonNull::new(unsafe { std::alloc::alloc_zeroed(layout) }).ok_or("no memory")?;
        for chunk in 0..CHUNKS {
            let frame = harness::frame();
            // SAFETY: a frame fits in a chunk, and the chunk is in the memory that was just allocated.
            unsafe {
                let start = memory.add(chunk as usize * CHUNK_BYTES as usize);
                start.copy_from_nonoverlapping(NonNull::from(&frame).cast(), frame.len());
            }
        }
        let area = NonNull::slice_from_raw_parts(memory, layout.size());
        let config = UmemConfig {
            fill_size: RING_ENTRIES,
            complete_size: RING_ENTRIES,
            frame_size: CHUNK_BYTES,
            ..UmemConfig::default()
        };
        // SAFETY: aligned to a page, alive as long as the process, and used for nothing else.
        let umem = unsafe { Umem::new(config, area) }.map_err(|error| format!("umem: {error}"))?;
        let mut interface = IfInfo::invalid();
        interface
            .from_name(&CString::new(place.interface.as_str())?)
            .map_err(|error| format!("{}: {error}", place.interface))?;
        interface.set_queue(place.queue);
        let socket = Socket::with_shared(&interface, &umem).map_err(|error| format!("socket: {error}"))?;
        let mut device = umem.fq_cq(&socket).map_err(|error| format!("fq_cq: {error}"))?;
        let config = SocketConfig {
            rx_size: NonZeroU32::new(RING_ENTRIES),
            tx_size: NonZeroU32::new(RING_ENTRIES),
            bind_flags: SocketConfig::XDP_BIND_COPY | SocketConfig::XDP_BIND_NEED_WAKEUP,
        };
        let rings = umem
            .rx_tx(&socket, &config)
            .map_err(|error| format!("rx_tx: {error}"))?;
        let rx = rings.map_rx().map_err(|error| format!("map_rx: {error}"))?;
        let tx = rings.map_tx().map_err(|error| format!("map_tx: {error}"))?;
        let receiving = match place.mode.as_str() {
            "txonly" => 0,
            "pingpong" => CHUNKS / 2,
            _ => CHUNKS,
        };
        {
            let mut fill = device.fill(receiving);
            fill.insert((CHUNKS - receiving..CHUNKS).map(|chunk| u64::from(chunk * CHUNK_BYTES)));
            fill.commit();
        }
        umem.bind(&rings).map_err(|error| format!("bind: {error}"))?;
        let (fill, completion) = device.into_parts();
        Ok(Self {
            memory,
            fill,
            completion,
            rx,
            tx,
            next: 0,
            _umem: umem,
        })
    }

    fn kick(&mut self) {
        if self.tx.needs_wakeup() {
            for _ in 0..BATCH / 32 {
                if self.tx.pending() == 0 {
                    break;
                }
                self.tx.wake();
            }
        }
    }

    fn forget_completed(&mut self) {
        let mut sent = self.completion.complete(BATCH);
        while sent.read().is_some() {}
        sent.release();
    }
}

impl Contender for Xdpilone {
    fn fd(&self) -> RawFd {
        self.rx.as_raw_fd()
    }

    fn rxdrop(&mut self) -> u32 {
        let mut received = self.rx.receive(BATCH);
        let count = received.capacity();
        if count == 0 {
            return 0;
        }
        let mut free = self.fill.fill(count);
        free.insert(received.by_ref().map(|frame| frame.addr));
        received.release();
        free.commit();
        count
    }

    fn txonly(&mut self) -> u32 {
        let next = self.next;
        let mut free = self.tx.transmit(BATCH);
        let count = free.insert((next..next + u64::from(BATCH)).map(|number| XdpDesc {
            addr: number % u64::from(CHUNKS) * u64::from(CHUNK_BYTES),
            len: FRAME_BYTES,
            options: 0,
        }));
        free.commit();
        drop(free);
        self.next += u64::from(count);
        self.kick();
        self.forget_completed();
        count
    }

    fn l2fwd(&mut self) -> u32 {
        // What was sent goes back to where frames are received.
        let mut sent = self.completion.complete(BATCH);
        let mut free = self.fill.fill(sent.capacity());
        free.insert(sent.by_ref());
        sent.release();
        free.commit();
        drop((sent, free));

        let mut received = self.rx.receive(BATCH);
        let count = received.capacity();
        if count == 0 {
            return 0;
        }
        let mut send = self.tx.transmit(count);
        let memory = self.memory;
        send.insert(received.by_ref().inspect(|frame| {
            // SAFETY: the kernel names addresses in the umem, and the chunk is ours from the RX to the TX ring.
            let addresses = unsafe { memory.add(frame.addr as usize) }.cast::<[[u8; 6]; 2]>();
            // SAFETY: as above.
            let [to, from] = unsafe { addresses.read() };
            // SAFETY: as above.
            unsafe { addresses.write([from, to]) };
        }));
        received.release();
        send.commit();
        drop((received, send));
        self.kick();
        count
    }

    #[inline(always)]
    fn ping(&mut self) {
        self.forget_completed();
        let mut free = self.tx.transmit(1);
        free.insert_once(XdpDesc {
            addr: 0,
            len: FRAME_BYTES,
            options: 0,
        });
        free.commit();
        drop(free);
        self.kick();
    }

    #[inline(always)]
    fn pong(&mut self) -> bool {
        let mut received = self.rx.receive(1);
        let Some(frame) = received.read() else {
            return false;
        };
        received.release();
        let mut free = self.fill.fill(1);
        free.insert_once(frame.addr);
        free.commit();
        true
    }
}

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let Some(place) = Place::read(&words) else {
        eprintln!("this is run by `cargo xtask bench datapath`");
        return ExitCode::from(2);
    };
    match Xdpilone::new(&place) {
        Ok(mut contender) => harness::serve(&place.mode, &mut contender),
        Err(error) => {
            eprintln!("xdpilone: {error}");
            ExitCode::FAILURE
        }
    }
}
