//! Sends back what arrives by the raw layer: descriptors from ring to ring, and nobody looks at a frame.
//!
//!     cargo run --release --example raw -- eth0:4

use std::time::Duration;

use anyhow::Context as _;
use xsk_client::{BindOptions, Broker, Grant, Request, UmemOptions, raw};

const BATCH: u32 = 64;

fn main() -> anyhow::Result<()> {
    let queue = std::env::args().nth(1).unwrap_or_else(|| "eth0:4".to_owned());
    let mut broker = Broker::connect()?;
    let grant = Grant::acquire(&mut broker, Request::new(queue.parse()?))?;
    // A VMM has its guest's RAM instead: `raw::Umem::from_raw`.
    let umem = raw::Umem::new(&UmemOptions::new())?;
    let mut bound = grant.bind_raw(&umem, &BindOptions::new())?;
    // Before packets arrive: chunks to receive into.
    for xsk in bound.sockets_mut() {
        let chunks: Vec<u64> = (0..2048).map(|chunk| chunk * 2048).collect();
        xsk.fill.produce(&chunks)?;
    }
    let xsk = bound.activate(&mut broker)?.pop().context("no socket")?;
    let (mut rx, mut tx) = (xsk.rx.context("no RX ring")?, xsk.tx.context("no TX ring")?);
    let (mut fill, mut completion, socket) = (xsk.fill, xsk.completion, xsk.socket);
    println!("active");
    loop {
        socket.wait(Some(Duration::from_millis(100)))?;
        // What was sent is there to be received into again.
        completion.recycle(&mut fill, BATCH)?;
        rx.transfer(&mut tx, BATCH, |frame| frame)?;
        // The kernel may have no room for now: then it is called again in the next turn.
        let _done_or_again = socket.kick_tx(&mut tx)?;
        socket.kick_fill(&fill)?;
    }
}
