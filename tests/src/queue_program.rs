//! The smallest XDP program that redirects to AF_XDP sockets, and counts what arrives on each queue.
//!
//! It stands in for the broker's own where a test is about the kernel, or wants to see on which queues packets
//! arrive.

use std::os::fd::{AsFd, OwnedFd};

use anyhow::{Context, Result};

use crate::bpf::{self, MapType, ProgramType, XdpAttach};
use crate::instructions::{
    Assembler, R0, R1, R2, R3, R6, R10, add_value, atomic_add, call, exit, load_word, mov, mov_value,
    store_word,
};
use crate::world::{Side, World};

/// The program, attached to a device for as long as this lives.
#[derive(Debug)]
pub struct QueueProgram {
    sockets: OwnedFd,
    arrivals: OwnedFd,
    _link: OwnedFd,
}

impl QueueProgram {
    /// Attaches it to the device on that side of the first wire.
    pub fn attach(world: &World, side: Side, mode: XdpAttach) -> Result<Self> {
        let device = world.device(side);
        let sockets = bpf::create_map(MapType::XskMap, "test_xsks", 4, device.queues)?;
        let arrivals = bpf::create_map(MapType::Array, "test_arrivals", 8, device.queues)?;
        let program = program(&sockets, &arrivals)?;
        let link = world
            .run_in(side, || bpf::attach_xdp(&program, device.index, mode))?
            .with_context(|| format!("attaching XDP ({mode:?}) to {}", device.name))?;
        Ok(Self {
            sockets,
            arrivals,
            _link: link,
        })
    }

    /// Puts a socket into the slot of a queue.
    pub fn insert(&self, queue: u32, socket: impl AsFd) -> Result<()> {
        bpf::insert_socket(&self.sockets, queue, socket).with_context(|| format!("filling slot {queue}"))
    }

    /// Empties the slot of a queue.
    pub fn delete(&self, queue: u32) -> Result<()> {
        bpf::delete(&self.sockets, queue).with_context(|| format!("emptying slot {queue}"))
    }

    /// How many packets have arrived on a queue, wherever they went then.
    pub fn arrived(&self, queue: u32) -> Result<u64> {
        bpf::lookup_u64(&self.arrivals, queue).with_context(|| format!("counter of queue {queue}"))
    }
}

fn program(sockets: &OwnedFd, arrivals: &OwnedFd) -> Result<OwnedFd> {
    const MAP_LOOKUP_ELEM: i32 = 1;
    const REDIRECT_MAP: i32 = 51;
    const XDP_PASS: i32 = 2;
    /// `xdp_md.rx_queue_index`
    const RX_QUEUE_INDEX: i16 = 16;

    let mut code = Assembler::default();
    let redirect = code.label();
    code.push([
        mov(R6, R1),
        load_word(R2, R6, RX_QUEUE_INDEX),
        store_word(R10, -4, R2),
    ]);
    code.load_map(R1, arrivals);
    code.push([mov(R2, R10), add_value(R2, -4), call(MAP_LOOKUP_ELEM)]);
    code.jump_if_null(R0, redirect);
    code.push([mov_value(R1, 1), atomic_add(R0, 0, R1)]);
    code.place(redirect);
    code.load_map(R1, sockets);
    code.push([
        load_word(R2, R6, RX_QUEUE_INDEX),
        mov_value(R3, XDP_PASS),
        call(REDIRECT_MAP),
        exit(),
    ]);
    let code = code
        .finish()
        .context("a jump of the queue program leads nowhere")?;
    bpf::load(ProgramType::Xdp, "test_queues", &code)
}
