//! `xsk-broker list`: who holds what.

use serde_json::json;
use xsk_client::wire::{Interface, Interfaces, Lease, LeaseQueue, Leases, SocketKind, ranges};

use super::exit::Exit;
use super::output::{self, Sockets, duration};
use super::table::{Column, layout};
use crate::ascii;
use crate::lease::named;

/// List leases: all of them for root, one's own for others.
///
/// One line for each queue. REDIRECTED counts the packets that the XDP program handed to the socket since the lease was
/// activated; of these, DROPPED did not reach the holder, because its RX ring was full, there was no fill
/// entry, or the packet was longer than a chunk (the socket's own counters). LABEL is the requester's text, cut where it is
/// long; --json has all of it. A lease is "lingering" when it has ended and the kernel still holds a queue for its
/// socket.
///
/// Below stand leases that were granted by an older policy and that the one in force would not give, and queues that are not to be had for other reasons: a placeholder of the broker's, a socket of no lease.
#[derive(Debug, clap::Args)]
pub struct ListArgs {
    /// Print the reply as JSON
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
pub fn run(args: &ListArgs) -> anyhow::Result<Exit> {
    let mut broker = args.sockets.connect_for_most()?;
    output::print(&mut broker, "ListLeases", &json!({}), args.json, text)?;
    if !args.json {
        output::print(&mut broker, "ListInterfaces", &json!({}), args.json, notes)?;
    }
    Ok(Exit::Ok)
}

/// What keeps queues from being had besides leases.
fn notes(reply: &Interfaces) -> String {
    reply.interfaces.iter().flat_map(notes_on).collect()
}

pub(super) fn notes_on(interface: &Interface) -> Vec<String> {
    let name = &interface.interface;
    let mut notes = Vec::new();
    let mut note = |queues: &[u32], one: &str, several: &str, what: &str| match queues {
        [] => {}
        [queue] => notes.push(format!("{name}: queue {queue} {one} {what}\n")),
        queues => notes.push(format!("{name}: queues {} {several} {what}\n", ranges(queues))),
    };
    note(
        &interface.placeholders,
        "is",
        "are",
        "kept busy by placeholders of the broker while sockets of a lease are not bound yet",
    );
    note(
        &interface.foreign,
        "has",
        "have",
        "a socket of no lease: another program's, or one that outlived its broker",
    );
    if !interface.held.is_empty() && !interface.carrier {
        let link = output::link_word(interface.up, interface.carrier);
        notes.push(format!(
            "{name}: {link}, so that nothing arrives and nothing leaves\n"
        ));
    }
    if let Some(why) = &interface.misfit {
        notes.push(format!(
            "{name}: nothing more is granted there until its leases have ended: {why}\n"
        ));
    }
    if let Some(pid) = interface.tainted_by {
        notes.push(format!(
            "{name}: no sockets that leave unbound until pid {pid} has gone, which had one when a broker crashed\n"
        ));
    }
    if let Some(file) = &interface.tainted_file {
        notes.push(format!(
            "{name}: no sockets that leave unbound until {file} is gone, which was to say which process had one when a broker \
             crashed, and is damaged: see that no process has one any more, then remove the file\n"
        ));
    }
    if let Some(lease) = interface.blocked_by {
        let leases = [&[lease], &interface.blocked_by_others[..]].concat();
        notes.push(format!(
            "{name}: no sockets that leave unbound until {}, taken over from the broker before without an fd of the sockets\n",
            named::end_of(&leases)
        ));
    }
    notes
}

fn text(reply: &Leases) -> String {
    if reply.leases.is_empty() {
        return "no leases\n".into();
    }
    let columns = [
        Column::Right("LEASE"),
        Column::Left("QUEUE"),
        Column::Left("HOLDER"),
        Column::Left("RULE"),
        Column::Left("SOCKET"),
        Column::Left("MODE"),
        Column::Left("LOCK"),
        Column::Left("STATE"),
        Column::Right("AGE"),
        Column::Right("REDIRECTED"),
        Column::Right("DROPPED"),
        Column::Left("LABEL"),
    ];
    let rows: Vec<_> = reply
        .leases
        .iter()
        .flat_map(|lease| lease.queues.iter().map(move |queue| row(lease, queue)))
        .collect();
    let notes = reply.leases.iter().filter_map(|lease| {
        let why = lease.not_allowed.as_ref()?;
        Some(format!(
            "lease {}: the policy in force would not give it: {why}\n",
            lease.lease
        ))
    });
    layout(columns, &rows) + &notes.collect::<String>()
}

/// The kind, and the direction where the kernel holds the socket to one.
fn sockets(lease: &Lease) -> String {
    match lease.sockets {
        SocketKind::Bound => format!("{} {}", lease.sockets, lease.direction),
        SocketKind::Prepared | SocketKind::Bare => lease.sockets.to_string(),
    }
}

/// How much of a label there is room for.
const LABEL_COLUMNS: usize = 32;

fn row(lease: &Lease, queue: &LeaseQueue) -> [String; 12] {
    let holder = &lease.holder;
    let gone = if holder.alive { "" } else { " (exited)" };
    [
        lease.lease.to_string(),
        format!("{}:{}", lease.interface, queue.queue),
        format!("uid {} pid {}{gone}", holder.uid, holder.pid),
        lease.rule.clone(),
        sockets(lease),
        format!("{}/{}", lease.xdp, queue.mode.map_or("-", |mode| mode.as_str())),
        lease.queue_lock.to_string(),
        lease.state.to_string(),
        duration(lease.age_ms),
        queue.counters.redirected.to_string(),
        queue.counters.dropped().to_string(),
        ascii::text(lease.label.as_deref().unwrap_or_default(), LABEL_COLUMNS),
    ]
}
