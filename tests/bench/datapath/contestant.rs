//! Who takes part, how each is started, and what kind of socket it is given.

use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use e2e::binaries;
use serde::Serialize;

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Contestant {
    /// Rings by hand, no check.
    Floor,
    /// The raw layer of xsk-client.
    Raw,
    /// The frames layer of xsk-client.
    Frames,
    /// A C program with libxdp.
    Libxdp,
    /// The crate xdpilone.
    Xdpilone,
}

/// What a contestant is started with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum SocketKind {
    /// Unbound, with rings: what the broker calls `prepared`.
    Prepared,
    /// Unbound, without rings: what it calls `bare`.
    Bare,
    /// None: it makes one itself, which takes root.
    Own,
}

/// What the loop does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Mode {
    /// Receives and drops.
    Rxdrop,
    /// Sends.
    Txonly,
    /// Receives, swaps the addresses, sends.
    L2fwd,
    /// Sends one and waits for it.
    Pingpong,
}

impl Contestant {
    pub(crate) const ALL: [Self; 5] = [Self::Floor, Self::Raw, Self::Frames, Self::Libxdp, Self::Xdpilone];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Floor => "floor",
            Self::Raw => "raw",
            Self::Frames => "frames",
            Self::Libxdp => "libxdp",
            Self::Xdpilone => "xdpilone",
        }
    }

    /// How it is called in the table.
    pub(crate) fn title(self) -> &'static str {
        match self {
            Self::Floor => "floor (bare rings)",
            Self::Raw => "xsk-client, raw",
            Self::Frames => "xsk-client, frames",
            Self::Libxdp => "libxdp (C)",
            Self::Xdpilone => "xdpilone",
        }
    }

    pub(crate) fn socket(self) -> SocketKind {
        match self {
            Self::Floor | Self::Raw | Self::Frames => SocketKind::Prepared,
            Self::Libxdp => SocketKind::Bare,
            Self::Xdpilone => SocketKind::Own,
        }
    }

    /// Of another project.
    pub(crate) fn is_peer(self) -> bool {
        matches!(self, Self::Libxdp | Self::Xdpilone)
    }

    /// Its program, and the words that go before the others.
    pub(crate) fn program(self) -> Result<(PathBuf, &'static [&'static str])> {
        Ok(match self {
            Self::Floor => (contender()?, &["floor"]),
            Self::Raw => (contender()?, &["raw"]),
            Self::Frames => (contender()?, &["frames"]),
            Self::Libxdp => (binaries::peer("peer-libxdp")?, &[]),
            Self::Xdpilone => (binaries::peer("peer-xdpilone")?, &[]),
        })
    }
}

fn contender() -> Result<PathBuf> {
    const VARIABLE: &str = "XSK_BENCH_CONTENDER";
    let path = std::env::var_os(VARIABLE).with_context(|| format!("`cargo xtask bench` sets {VARIABLE}"))?;
    Ok(path.into())
}

impl SocketKind {
    /// In the table.
    pub(crate) fn title(self) -> &'static str {
        match self {
            Self::Prepared => "handed over, no capability",
            Self::Bare => "handed over bare, no capability",
            Self::Own => "its own, as root",
        }
    }
}

impl Mode {
    pub(crate) const ALL: [Self; 4] = [Self::Rxdrop, Self::Txonly, Self::L2fwd, Self::Pingpong];
    /// Those whose figure is packets per second.
    pub(crate) const RATES: [Self; 3] = [Self::Rxdrop, Self::Txonly, Self::L2fwd];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Rxdrop => "rxdrop",
            Self::Txonly => "txonly",
            Self::L2fwd => "l2fwd",
            Self::Pingpong => "pingpong",
        }
    }

    /// Whether a generator sends to it.
    pub(crate) fn receives_in_bulk(self) -> bool {
        matches!(self, Self::Rxdrop | Self::L2fwd)
    }
}

/// Those of the names, or all where there is none.
pub(crate) fn chosen<T: Copy>(
    all: &[T],
    name: impl Fn(T) -> &'static str,
    wanted: &[String],
) -> Result<Vec<T>> {
    for word in wanted {
        if !all.iter().any(|it| name(*it) == word) {
            let names: Vec<_> = all.iter().map(|it| name(*it)).collect();
            bail!("{word}? There are {}", names.join(", "));
        }
    }
    let is_wanted = |it: &&T| wanted.is_empty() || wanted.iter().any(|word| name(**it) == word);
    Ok(all.iter().filter(is_wanted).copied().collect())
}
