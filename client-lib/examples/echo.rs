//! Answers ARP, ICMP echo and UDP on one queue, without a capability.
//!
//!     echo eth0:4 [--kind bound] [--ip 10.0.0.2] [--zero-copy] [--stats]
//!     xsk-broker grant eth0:4 [--kind bound] -- echo [--ip 10.0.0.2] [--zero-copy] [--stats]
//!
//! `--kind bound` has the broker bind the socket, over memory that this process touches and pays for, in place of
//! `prepared`; `--ip` answers for that address only; `--zero-copy` wants the device to read and write our memory itself,
//! and fails where it cannot; `--stats` prints a line of JSON each second. Ends by a signal, or when its standard input
//! is a pipe and is closed.

#[path = "support/options.rs"]
mod options;
#[path = "support/turn.rs"]
mod turn;

use std::time::Duration;

use options::{Options, Report};
use xsk_client::wire::SocketKind;
use xsk_client::{Broker, Grant, Umem, UmemOptions};

fn main() -> anyhow::Result<()> {
    let options = Options::from_args()?;
    let mut broker = Broker::connect()?;
    let grant = match Grant::is_in_env() {
        true => Grant::from_env()?,
        false => Grant::acquire(&mut broker, options.request()?)?,
    };
    let bound = match grant.acquired().kind {
        SocketKind::Bound => grant.bind_by_broker(&mut broker)?.one()?,
        _ => grant.bind_one(Umem::new(&UmemOptions::new())?, &options.bind())?,
    };
    let lease = bound.lease();
    let mut xsk = bound.activate(&mut broker)?;
    options.agree(xsk.queue())?;
    println!("active lease {lease} {} mode {}", xsk.queue(), xsk.mode());

    let mut report = Report::new(&options);
    while !report.is_over() {
        xsk.wait(Some(Duration::from_millis(100)))?;
        let mut batch = xsk.receive(64)?;
        while let Some(mut frame) = batch.next_frame() {
            report.received += 1;
            if let Some(length) = turn::turn(&mut frame, options.ip)
                && frame.resize(length).is_ok()
            {
                match frame.send() {
                    Ok(()) => report.sent += 1,
                    // The TX ring is full: the frame is recycled, as a switch would drop it.
                    Err(_unsent) => report.refused += 1,
                }
            }
        }
    }
    broker.release(lease)?;
    Ok(())
}
