//! From the broker, or from the environment, to an active socket.

use anyhow::{Context, Result, ensure};
use serde::Serialize;
use xsk_client::raw::MOST_PACKET_FRAMES;
use xsk_client::wire::{BindMode, QueueLock, RingSizes, SocketKind, XdpMode};
use xsk_client::{BindOptions, Broker, Error, Grant, Mode as BindingMode, Request, Umem, UmemOptions, Xsk};

use crate::arguments::{Copying, Mode, Options};

/// Ready to move packets.
pub(crate) struct Active {
    pub(crate) broker: Broker,
    pub(crate) lease: u64,
    pub(crate) xsk: Xsk,
    pub(crate) described: Described,
}

/// What it is that was opened: the first line that is printed.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Described {
    pub(crate) queue: String,
    pub(crate) lease: u64,
    pub(crate) inherited: bool,
    pub(crate) rule: String,
    pub(crate) queue_lock: QueueLock,
    pub(crate) xdp: XdpMode,
    pub(crate) mode: BindMode,
    pub(crate) rings: RingSizes,
    pub(crate) chunks: u32,
}

pub(crate) fn open(options: &Options, mode: Mode) -> Result<Active> {
    // Before anything else could use the fds.
    let inherited = match Grant::is_in_env() {
        true => Some(Grant::from_env()?),
        false => None,
    };
    let mut broker = Broker::connect_to(&options.socket)?;
    let is_inherited = inherited.is_some();
    let grant = match inherited {
        Some(grant) => grant,
        None => {
            let target = options.target.clone().with_context(|| {
                format!(
                    "which queue? `xskperf {0} eth0:4`, or `xsk-broker grant eth0:4 -- xskperf {0}`",
                    mode.name()
                )
            })?;
            let mut request = Request::new(target).label(format!("xskperf {}", mode.name()));
            if let Some(entries) = options.rings {
                request = request.rings(RingSizes::all(entries));
            }
            Grant::acquire(&mut broker, request)?
        }
    };
    let acquired = grant.acquired().clone();
    let by_broker = acquired.kind == SocketKind::Bound;
    ensure!(
        by_broker || acquired.sockets.len() == 1,
        "{} queues were granted, and xskperf runs one: name one, as {}:{}",
        acquired.sockets.len(),
        acquired.interface,
        acquired.sockets.first().map_or(0, |socket| socket.queue)
    );
    let chunk_bytes = match (by_broker, acquired.umem) {
        (true, Some(umem)) => umem.chunk_bytes,
        _ => options.chunk_bytes,
    };
    check_length(options, mode, chunk_bytes)?;
    ensure!(
        !(by_broker && options.frags),
        "--frags: the broker binds sockets of kind bound, for packets of one chunk"
    );
    let mut binding = BindOptions::new();
    if let Some(copying) = options.copying() {
        binding = binding.mode(match copying {
            Copying::Copy => BindingMode::Copy,
            Copying::ZeroCopy => BindingMode::ZeroCopy,
            Copying::Auto => BindingMode::ZeroCopyElseCopy,
        });
    }
    if options.frags {
        binding = binding.multi_buffer();
    }
    let bound = match by_broker {
        // Over memory that it has asked for already, in the mode that it was asked for.
        true => grant.bind_by_broker(&mut broker)?.one()?,
        false => {
            let umem = UmemOptions::new()
                .chunks(options.chunks)
                .chunk_bytes(options.chunk_bytes);
            let umem = Umem::new(&umem)?;
            grant.bind_one(umem, &binding).map_err(|error| match error {
                Error::NoZeroCopy { .. } => anyhow::Error::new(error)
                    .context("there may be no zero-copy: --mode auto takes copy then, and says so"),
                error => error.into(),
            })?
        }
    };
    let xsk = bound.activate(&mut broker)?;
    if let (Some(target), true) = (&options.target, is_inherited) {
        ensure!(
            target.interface == acquired.interface && target.queues.iter().eq([xsk.queue().id]),
            "{target} is not what was inherited, which is {}: leave it out, or start xskperf without `grant`",
            xsk.queue()
        );
    }
    if let (true, Some(asked)) = (by_broker, options.copying()) {
        let is_as_asked = match asked {
            Copying::Copy => xsk.mode() == BindMode::Copy,
            Copying::ZeroCopy => xsk.mode() == BindMode::ZeroCopy,
            Copying::Auto => true,
        };
        ensure!(
            is_as_asked,
            "the socket is in {} mode, which its broker has bound it in: ask `xsk-broker grant` for another one, with --mode",
            xsk.mode()
        );
    }
    let described = Described {
        queue: xsk.queue().to_string(),
        lease: acquired.lease,
        inherited: is_inherited,
        rule: acquired.rule,
        queue_lock: acquired.queue_lock,
        xdp: acquired.xdp,
        mode: xsk.mode(),
        rings: acquired.rings,
        chunks: options.chunks,
    };
    Ok(Active {
        broker,
        lease: described.lease,
        xsk,
        described,
    })
}

/// Packets that are made here have to fit.
fn check_length(options: &Options, mode: Mode, chunk_bytes: u32) -> Result<()> {
    let (chunks, why) = match (mode, options.frags) {
        (Mode::Rxdrop | Mode::L2fwd, _) => return Ok(()),
        (Mode::Txonly, true) => (MOST_PACKET_FRAMES, "which is 18 chunks"),
        (Mode::Txonly, false) => (1, "which is a chunk: see --chunk-bytes, or --frags"),
        (Mode::Pingpong, _) => (1, "which is a chunk: see --chunk-bytes"),
    };
    let most = chunks * chunk_bytes;
    ensure!(
        options.frame_bytes <= most,
        "--frame-bytes {}: at most {most}, {why}",
        options.frame_bytes
    );
    Ok(())
}
