//! Sends back what arrives, in a loop that never sleeps: for a CPU that has nothing else to do.
//!
//!     cargo run --release --example busy -- eth0:4

use std::time::Duration;

use xsk_client::{BindOptions, Broker, Grant, Request, Umem, UmemOptions};

fn main() -> anyhow::Result<()> {
    let queue = std::env::args().nth(1).unwrap_or_else(|| "eth0:4".to_owned());
    let mut broker = Broker::connect()?;
    let grant = Grant::acquire(&mut broker, Request::new(queue.parse()?))?;
    let bound = grant.bind_one(Umem::new(&UmemOptions::new())?, &BindOptions::new())?;
    let mut xsk = bound.activate(&mut broker)?;
    println!("active");
    for turn in 1_u64.. {
        let mut batch = xsk.receive(64)?;
        let is_empty = batch.is_empty();
        while let Some(frame) = batch.next_frame() {
            // Where the TX ring is full, the frame comes back in the error and is recycled.
            frame.send().ok();
        }
        drop(batch);
        if is_empty {
            std::hint::spin_loop();
        }
        // A device that is gone tells only who asks.
        if turn % (1 << 20) == 0 {
            xsk.wait(Some(Duration::ZERO))?;
        }
    }
    Ok(())
}
