//! Sends back what arrives, in a task of tokio's.
//!
//!     cargo run --example async --features tokio -- eth0:4

use xsk_client::{AsyncXsk, BindOptions, Broker, Grant, Request, Umem, UmemOptions};

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    let queue = std::env::args().nth(1).unwrap_or_else(|| "eth0:4".to_owned());
    let mut broker = Broker::connect()?;
    let grant = Grant::acquire(&mut broker, Request::new(queue.parse()?))?;
    let bound = grant.bind_one(Umem::new(&UmemOptions::new())?, &BindOptions::new())?;
    let mut xsk = AsyncXsk::new(bound.activate(&mut broker)?)?;
    println!("active");
    loop {
        tokio::select! {
            batch = xsk.receive(64) => {
                let mut batch = batch?;
                while let Some(frame) = batch.next_frame() {
                    // Where the TX ring is full, the frame comes back in the error and is recycled.
                    frame.send().ok();
                }
            }
            _ = tokio::signal::ctrl_c() => return Ok(()),
        }
    }
}
