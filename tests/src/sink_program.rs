//! The other end of a wire, in the kernel: an XDP program that counts each packet, and drops it or sends it back.

use std::os::fd::OwnedFd;

use anyhow::{Context, Result};

use crate::bpf::{self, MapType, ProgramType, XdpAttach};
use crate::instructions::{
    Assembler, R0, R1, R2, R10, add_value, atomic_add, call, exit, mov, mov_value, store_word,
};
use crate::world::{Side, World};

/// What becomes of a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// `XDP_DROP`
    Drop,
    /// `XDP_TX`: back where it came from, unchanged.
    Reflect,
}

/// The program, attached to a device for as long as this lives.
#[derive(Debug)]
pub struct SinkProgram {
    arrivals: OwnedFd,
    _link: OwnedFd,
}

impl SinkProgram {
    /// Attaches it, in the driver, to the device on that side of the first wire.
    pub fn attach(world: &World, side: Side, fate: Fate) -> Result<Self> {
        let device = world.device(side);
        let arrivals = bpf::create_map(MapType::Array, "test_sink", 8, 1)?;
        let program = program(&arrivals, fate)?;
        let link = world
            .run_in(side, || {
                bpf::attach_xdp(&program, device.index, XdpAttach::Native)
            })?
            .with_context(|| format!("attaching XDP to {}", device.name))?;
        Ok(Self {
            arrivals,
            _link: link,
        })
    }

    /// How many packets have arrived.
    pub fn arrived(&self) -> Result<u64> {
        bpf::lookup_u64(&self.arrivals, 0).context("the sink's counter")
    }
}

fn program(arrivals: &OwnedFd, fate: Fate) -> Result<OwnedFd> {
    const MAP_LOOKUP_ELEM: i32 = 1;
    let verdict = match fate {
        Fate::Drop => 1,
        Fate::Reflect => 3,
    };
    let mut code = Assembler::default();
    let end = code.label();
    code.push([mov_value(R2, 0), store_word(R10, -4, R2)]);
    code.load_map(R1, arrivals);
    code.push([mov(R2, R10), add_value(R2, -4), call(MAP_LOOKUP_ELEM)]);
    code.jump_if_null(R0, end);
    code.push([mov_value(R1, 1), atomic_add(R0, 0, R1)]);
    code.place(end);
    code.push([mov_value(R0, verdict), exit()]);
    let code = code.finish().context("a jump of the sink leads nowhere")?;
    bpf::load(ProgramType::Xdp, "test_sink", &code)
}
