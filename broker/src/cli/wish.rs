//! Which sockets are wanted, as `grant` and `explain` are told.

use anyhow::bail;
use xsk_client::wire::{Acquire, BusyPoll, Direction, ModeWish, RingSizes, SocketKind, Target, UmemShape};

/// Options of sockets. What is left out is left to the broker.
#[derive(Debug, Clone, clap::Args)]
pub struct Wish {
    /// What is made before the command has the sockets. "prepared": the rings, and the command registers its memory and
    /// binds; "bound": everything, so that nothing is left to change; "bare": nothing, for QEMU and other programs that
    /// know nothing of the broker
    #[arg(long, value_name = "KIND", default_value = "prepared", value_parser = kind)]
    kind: SocketKind,

    /// Which way frames may go: rx, tx or rx+tx; less than both for --kind bound only
    #[arg(long, value_name = "DIRECTION")]
    direction: Option<Direction>,

    /// In which mode the broker binds: copy, zerocopy, or zerocopy_else_copy; for --kind bound only
    #[arg(long, value_name = "MODE", value_parser = mode)]
    mode: Option<ModeWish>,

    /// Chunks of the umem that the broker makes; for --kind bound only [default: 2048]
    #[arg(long, value_name = "N")]
    chunks: Option<u32>,

    /// Bytes of each chunk, 2048 or 4096; for --kind bound only [default: 2048]
    #[arg(long, value_name = "BYTES")]
    chunk_bytes: Option<u32>,

    /// Bytes left free in front of each received frame; for --kind bound only [default: 0]
    #[arg(long, value_name = "BYTES")]
    headroom_bytes: Option<u32>,

    /// The umem on huge pages; for --kind bound only
    #[arg(long)]
    hugepages: bool,

    /// Entries of each of the rings, a power of two [default: 2048]
    #[arg(long, value_name = "N")]
    ring_entries: Option<u32>,

    /// Poll the device from the socket's own system calls: at most PACKETS at once, for USECS microseconds
    #[arg(long, value_name = "PACKETS:USECS", value_parser = busy_poll)]
    busy_poll: Option<BusyPoll>,
}

impl Wish {
    /// The request for these queues.
    ///
    /// # Errors
    ///
    /// What no kernel takes, and promises that sockets of such a kind cannot keep.
    pub fn acquire(&self, target: Target) -> anyhow::Result<Acquire> {
        let default = UmemShape::default();
        let umem = UmemShape {
            chunk_bytes: self.chunk_bytes.unwrap_or(default.chunk_bytes),
            chunks: self.chunks.unwrap_or(default.chunks),
            headroom_bytes: self.headroom_bytes.unwrap_or(default.headroom_bytes),
            hugepages: self.hugepages,
        };
        let acquire = Acquire {
            direction: self.direction,
            mode: self.mode,
            umem: (umem != default).then_some(umem),
            rings: self.ring_entries.map(RingSizes::all),
            busy_poll: self.busy_poll,
            ..Acquire::new(target, self.kind)
        };
        acquire.check()?;
        Ok(acquire)
    }
}

fn kind(text: &str) -> anyhow::Result<SocketKind> {
    word(text, SocketKind::ALL, SocketKind::as_str)
}

fn mode(text: &str) -> anyhow::Result<ModeWish> {
    word(text, ModeWish::ALL, ModeWish::as_str)
}

fn word<T: Copy>(text: &str, all: &[T], word: impl Fn(T) -> &'static str) -> anyhow::Result<T> {
    match all.iter().copied().find(|value| word(*value) == text) {
        Some(value) => Ok(value),
        None => {
            let words: Vec<&str> = all.iter().copied().map(word).collect();
            bail!("one of {}", words.join(", "))
        }
    }
}

fn busy_poll(text: &str) -> anyhow::Result<BusyPoll> {
    match text.split_once(':') {
        Some((budget, usecs)) => Ok(BusyPoll {
            budget: budget.parse()?,
            usecs: usecs.parse()?,
        }),
        None => bail!("write PACKETS:USECS, as in 64:50"),
    }
}
