//! `xsk-broker monitor`: what becomes of leases, as it happens.

use std::collections::BTreeMap;

use serde_json::json;
use xsk_client::wire::{Change, InterfaceName, Lease, LeaseEvent, LeaseState, QueueSet};
use xsk_client::{CallError, News, ProtocolError};

use super::exit::Exit;
use super::output::{Sockets, link_word, put, put_json};
use crate::end;

/// Follow what becomes of leases: of all of them for root, of one's own for others.
///
/// First the leases that there are, then a line for each event: which lease, what happened, and whether it still
/// receives (RX) and may still transmit (TX). A lease that has ended and whose queue is still held "lingers"; "freed" is
/// the last word on it. It runs until it is interrupted or the broker ends.
///
/// Example: xsk-broker monitor --json | jq 'select(.event.state == "freed")'
#[derive(Debug, clap::Args)]
pub struct MonitorArgs {
    /// Print each of the broker's replies as JSON, one a line
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
pub fn run(args: &MonitorArgs) -> anyhow::Result<Exit> {
    let mut monitor = args.sockets.connect_for_most()?.monitor()?;
    let mut names = Names::default();
    loop {
        let news = match monitor.next(None) {
            Ok(Some(news)) => news,
            Ok(None) => return Ok(Exit::Ok),
            Err(CallError::Protocol {
                cause: ProtocolError::Closed,
                ..
            }) => {
                eprintln!("xsk-broker: the broker has ended, or has ended this connection");
                return Ok(Exit::Unreachable);
            }
            Err(error) => return Err(error.into()),
        };
        match args.json {
            true => put_json(&json(&news))?,
            false => put(&text(&news, &mut names))?,
        }
    }
}

fn json(news: &News) -> String {
    let value = match news {
        News::Leases { leases, lost: None } => json!({ "leases": leases }),
        News::Leases { leases, lost } => json!({ "leases": leases, "lost": lost }),
        News::Event(event) => json!({ "event": event }),
    };
    value.to_string()
}

/// What the devices of leases were called when they were last told of.
#[derive(Debug, Default)]
struct Names(BTreeMap<u64, InterfaceName>);

impl Names {
    /// Gives the former one where it has another now.
    fn told(&mut self, event: &LeaseEvent) -> Option<InterfaceName> {
        let before = match event.state {
            LeaseState::Freed => self.0.remove(&event.lease),
            _ => self.0.insert(event.lease, event.interface.clone()),
        };
        before.filter(|before| *before != event.interface)
    }
}

fn text(news: &News, names: &mut Names) -> String {
    match news {
        News::Event(event) => event_line(event, names.told(event)),
        News::Leases { leases, lost } => {
            let named = leases.iter().map(|lease| (lease.lease, lease.interface.clone()));
            names.0 = named.collect();
            let lost =
                lost.map(|lost| format!("{lost} events were not read in time; this is how it is now\n"));
            let count = format!("leases: {}\n", leases.len());
            lost.into_iter()
                .chain([count])
                .chain(leases.iter().map(lease_line))
                .collect()
        }
    }
}

fn lease_line(lease: &Lease) -> String {
    let queues = QueueSet::new(lease.queues.iter().map(|queue| queue.queue));
    let queues = queues.map_or_else(|_| "-".to_owned(), |queues| queues.to_string());
    format!(
        "lease {} {}:{queues} {}, uid {} pid {}, {}\n",
        lease.lease,
        lease.interface,
        lease.state,
        lease.holder.uid,
        lease.holder.pid,
        directions(lease.rx_stopped, lease.tx_may_continue),
    )
}

/// `before` is what its device was called, if that is another name.
fn event_line(event: &LeaseEvent, before: Option<InterfaceName>) -> String {
    let what = match event.change {
        Change::State => match event.reason {
            Some(reason) => format!("{} ({})", event.state, end::word(reason)),
            None => event.state.to_string(),
        },
        Change::Holder => format!("moved to uid {} pid {}", event.holder.uid, event.holder.pid),
        Change::Device => {
            let link = link_word(event.up, event.carrier);
            let renamed = before.map_or_else(String::new, |before| {
                format!("renamed from {before} to {}, ", event.interface)
            });
            format!("device: {renamed}{link}, MTU {}", event.mtu)
        }
        Change::Policy => match &event.not_allowed {
            Some(why) => format!("kept, though the policy would not give it now ({why})"),
            None => "the policy gives it".to_owned(),
        },
    };
    format!(
        "lease {} {}:{} {what}, {}\n",
        event.lease,
        event.interface,
        event.queues,
        directions(event.rx_stopped, event.tx_may_continue),
    )
}

fn directions(rx_stopped: bool, tx_may_continue: bool) -> String {
    let rx = if rx_stopped { "stopped" } else { "on" };
    let tx = if tx_may_continue { "possible" } else { "over" };
    format!("RX {rx}, TX {tx}")
}
