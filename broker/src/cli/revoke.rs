//! `xsk-broker revoke LEASE`: ends anybody's lease.

use serde_json::json;
use xsk_client::wire::{Lease, LeaseReference};

use super::exit::Exit;
use super::output::{Sockets, put};

/// End a lease, whoever holds it. For root.
///
/// Packets go to the host again before this returns. The socket itself is its holder's: it can go on transmitting, and
/// the kernel keeps the queue for it, until the holder closes it or exits. The lease is listed as "lingering" for as
/// long.
#[derive(Debug, clap::Args)]
pub struct RevokeArgs {
    /// The lease's number, as `list` shows it
    lease: u64,

    /// Print the lease as it was, as JSON
    #[arg(long)]
    json: bool,

    #[command(flatten)]
    sockets: Sockets,
}

/// Runs the command.
///
/// # Errors
///
/// As the broker says.
pub fn run(args: &RevokeArgs) -> anyhow::Result<Exit> {
    let mut broker = args.sockets.connect_as_operator()?;
    let before = broker
        .list_leases()?
        .leases
        .into_iter()
        .find(|lease| lease.lease == args.lease);
    let _nothing: serde_json::Value = broker.call("Revoke", &LeaseReference { lease: args.lease })?;
    if args.json {
        put(&format!("{}\n", json!({ "lease": before })))?;
    } else if let Some(lease) = before {
        put(&told(&lease))?;
    }
    Ok(Exit::Ok)
}

/// What was stopped and what was not.
fn told(lease: &Lease) -> String {
    let queues: Vec<String> = lease.queues.iter().map(|queue| queue.queue.to_string()).collect();
    let holder = &lease.holder;
    format!(
        "lease {} of {}:{} has ended: its packets go to the host's stack now.\n\
         uid {} (pid {}) can go on transmitting there until it closes its socket or exits.\n",
        lease.lease,
        lease.interface,
        queues.join(","),
        holder.uid,
        holder.pid,
    )
}
