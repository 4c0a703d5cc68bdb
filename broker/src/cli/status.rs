//! `xsk-broker status`: how the daemon and its devices are doing.

use serde_json::json;
use xsk_client::wire::{Interface, Interfaces, Quota, Status, ranges};

use super::exit::Exit;
use super::output::{self, Sockets, duration};
use super::table::{Column, layout};
use crate::audit::RESERVE_BYTES;

/// Show the daemon, what it found in the kernel, and its devices. For root.
///
/// QUOTA lists what is limited whatever a rule allows (`[limits]` in the policy), and who has most of it. PASSED counts
/// packets of queues that nobody holds: they went on to the host's network stack.
#[derive(Debug, clap::Args)]
pub struct StatusArgs {
    /// Print the replies of GetStatus and ListInterfaces as JSON, one line each
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
pub fn run(args: &StatusArgs) -> anyhow::Result<Exit> {
    let mut broker = args.sockets.connect_as_operator()?;
    output::print(&mut broker, "GetStatus", &json!({}), args.json, status)?;
    output::print(&mut broker, "ListInterfaces", &json!({}), args.json, interfaces)?;
    Ok(Exit::Ok)
}

fn status(status: &Status) -> String {
    let lines = [
        ("version", status.version.clone()),
        (
            "process",
            format!(
                "pid {}, uid {}, up {}, engine busy for {}",
                status.pid,
                status.uid,
                duration(status.uptime_ms),
                duration(status.engine_cpu_us / 1000)
            ),
        ),
        ("may raise", status.capabilities.join(" ")),
        (
            "policy",
            format!("{}, rules: {}", status.policy_files.join(" "), status.rules),
        ),
        ("leases", status.leases.to_string()),
        ("connections", status.connections.to_string()),
        ("kernel", status.kernel.clone()),
    ];
    let mut text: String = lines
        .iter()
        .map(|(name, value)| format!("{name:<12} {value}\n"))
        .collect();
    let width = status
        .probes
        .iter()
        .map(|probe| probe.name.len())
        .max()
        .unwrap_or(0);
    for probe in &status.probes {
        let there = if probe.available { "yes" } else { "no" };
        text.push_str(&format!("  {:<width$} {there:<4} {}\n", probe.name, probe.note));
    }
    if let Some(trouble) = &status.fd_store_trouble {
        text.push_str(&format!("fd store: {trouble}\n"));
    }
    text + &audit_log(status) + &quotas(&status.quotas)
}

/// Only what an operator has to do something about, or may miss in the log.
fn audit_log(status: &Status) -> String {
    let Some(log) = &status.audit_log else {
        return String::new();
    };
    let mut text = String::new();
    if let Some(trouble) = &log.trouble {
        text += &format!("audit log: {trouble}\n");
    }
    if log.waiting_lines > 0 {
        let limit = RESERVE_BYTES;
        let what = match usize::try_from(log.waiting_bytes) {
            Ok(bytes) if bytes < limit => format!(
                "from {limit} bytes on nothing new is granted, and until then nothing to who has more of them than are left \
                 (audit-log-bytes)"
            ),
            _ => "nothing new is granted until some are taken".to_owned(),
        };
        text += &format!(
            "audit log: lines that nobody has taken yet: {} ({} bytes); {what}\n",
            log.waiting_lines, log.waiting_bytes
        );
    }
    if log.refusals_summed > 0 {
        text += &format!(
            "audit log: refusals summed for a user, beyond ten a second: {}\n",
            log.refusals_summed
        );
    }
    if log.refusals_dropped > 0 {
        text += &format!(
            "audit log: refusals without a line, since the lines before were not taken in time: {}\n",
            log.refusals_dropped
        );
    }
    text
}

fn quotas(quotas: &[Quota]) -> String {
    let columns = [
        Column::Left("QUOTA"),
        Column::Right("IN USE"),
        Column::Right("LIMIT"),
        Column::Right("PER USER"),
        Column::Left("BY UID"),
    ];
    let rows: Vec<_> = quotas
        .iter()
        .map(|quota| {
            [
                quota.resource.clone(),
                quota.in_use.to_string(),
                quota.limit.to_string(),
                quota.limit_per_user.to_string(),
                greatest(quota),
            ]
        })
        .collect();
    format!("\n{}", layout(columns, &rows))
}

/// Who has most of a resource.
fn greatest(quota: &Quota) -> String {
    const MOST: usize = 4;

    let mut users: Vec<_> = quota.users.iter().collect();
    users.sort_by_key(|used| std::cmp::Reverse(used.in_use));
    let mut words: Vec<_> = users
        .iter()
        .take(MOST)
        .map(|used| format!("{}: {}", used.uid, used.in_use))
        .collect();
    match users.len() {
        0 => return "-".to_owned(),
        all if all > MOST => words.push(format!("{} more", all - MOST)),
        _ => {}
    }
    words.join(", ")
}

fn interfaces(reply: &Interfaces) -> String {
    if reply.interfaces.is_empty() {
        return "\nno interface of this machine is named by the policy\n".into();
    }
    let columns = [
        Column::Left("INTERFACE"),
        Column::Left("STATE"),
        Column::Left("XDP"),
        Column::Right("QUEUES"),
        Column::Right("MAX"),
        Column::Left("RESERVED"),
        Column::Left("HELD"),
        Column::Left("LOCK"),
        Column::Right("PASSED"),
    ];
    let rows: Vec<_> = reply.interfaces.iter().map(row).collect();
    let notes: String = reply.interfaces.iter().flat_map(super::list::notes_on).collect();
    format!("\n{}{notes}", layout(columns, &rows))
}

fn row(interface: &Interface) -> [String; 9] {
    let ids = |ids: &[u32]| match ids {
        [] => "-".to_owned(),
        ids => ranges(ids),
    };
    [
        interface.interface.to_string(),
        output::link_word(interface.up, interface.carrier).to_owned(),
        interface
            .xdp
            .map_or("not attached", |mode| mode.as_str())
            .to_owned(),
        interface.queues.to_string(),
        interface.queues_max.to_string(),
        ids(&interface.reserved),
        ids(&interface.held),
        interface
            .queue_lock
            .map_or("not to be had", |lock| lock.as_str())
            .to_owned(),
        interface.passed.to_string(),
    ]
}
