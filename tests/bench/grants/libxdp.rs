//! The peer: a long-lived root process that makes the same socket with libxdp, whenever it is told to.

use std::io::Write;
use std::process::{ChildStdin, Command};
use std::time::Duration;

use anyhow::{Context, Result};
use e2e::binaries;
use e2e::process::Process;
use e2e::world::{Side, World};

use crate::{CHUNK_BYTES, CHUNKS, RINGS};

/// What the steps of one socket took.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Steps {
    /// Anonymous memory, mapped and prefaulted.
    pub(crate) memory: Duration,
    /// `xsk_umem__create`: the socket itself, registering, fill and completion ring and their mappings.
    pub(crate) umem: Duration,
    /// `xsk_socket__create`: RX and TX ring and their mappings, the bind.
    pub(crate) socket: Duration,
    /// `xsk_socket__update_xskmap`.
    pub(crate) insert: Duration,
    /// Deleting and unmapping everything.
    pub(crate) close: Duration,
}

pub(crate) struct Libxdp {
    process: Process,
    stdin: ChildStdin,
    turns: usize,
}

impl Libxdp {
    pub(crate) fn start(world: &World) -> Result<Self> {
        let program = world.install("libxdp_socket", &binaries::peer("libxdp_socket")?)?;
        let mut command = Command::new(program);
        command.env_clear().arg(&world.device(Side::Host).name);
        command.args([RINGS.rx, CHUNKS, CHUNK_BYTES].map(|number| number.to_string()));
        let (process, stdin) = Process::spawn_driven(world.namespace(Side::Host), None, command)?;
        Ok(Self {
            process,
            stdin,
            turns: 0,
        })
    }

    pub(crate) fn turn(&mut self, queue: u32) -> Result<Steps> {
        const PATIENCE: Duration = Duration::from_secs(10);

        writeln!(self.stdin, "{queue}")
            .with_context(|| format!("the libxdp program is gone: {}", self.process.last_words()))?;
        let mut lines = 0;
        let line = self.process.wait_stdout(PATIENCE, |line| {
            lines += 1;
            (lines > self.turns).then(|| line.to_owned())
        })?;
        self.turns += 1;
        let mut steps = line.split(' ').map(|step| step.parse().map(Duration::from_nanos));
        let mut step = || Ok::<_, anyhow::Error>(steps.next().context(line.clone())??);
        Ok(Steps {
            memory: step()?,
            umem: step()?,
            socket: step()?,
            insert: step()?,
            close: step()?,
        })
    }
}
