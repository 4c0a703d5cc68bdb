//! How the demo looks.

use std::fmt::Display;
use std::io::{IsTerminal, stdout};
use std::net::Ipv4Addr;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use e2e::echo_loop::EchoCount;
use e2e::status::Status;
use serde_json::Value;

/// A heading, numbered.
pub(crate) fn step(title: &str) {
    static NUMBER: AtomicU32 = AtomicU32::new(1);

    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    let (bold, plain) = if stdout().is_terminal() {
        ("\x1b[1m", "\x1b[0m")
    } else {
        ("", "")
    };
    println!("\n{bold}{number}. {title}{plain}");
}

/// Who talks to whom.
pub(crate) fn picture(first: Ipv4Addr, second: Ipv4Addr) {
    println!(
        "
      host namespace                                            peer namespace
     ┌──────────────────────────────────────────────┐          ┌───────────────┐
     │ host's stack   10.77.0.1       ← queue 0,1 ──┤          │               │
     │ echo (uid A)   {first:<12}    ← queue 2 ────┤ eth0 ════╡ peer0         │
     │ echo (uid B)   {second:<12}    ← queue 3 ────┤   veth   │ 10.77.0.2     │
     │      ↑ sockets, over SCM_RIGHTS              │          │ plain sockets │
     │ xsk-broker                                   │          │               │
     └──────────────────────────────────────────────┘          └───────────────┘"
    );
}

/// What a program printed, or a file.
pub(crate) fn quoted(text: &str) {
    for line in text.lines() {
        println!("  | {line}");
    }
}

/// What a holder said.
pub(crate) fn says(kind: &str, number: impl Display, line: &str) {
    println!("  {kind} {number} says: {line}");
}

/// uids and capability sets, as /proc/PID/status has them.
pub(crate) fn privileges(rows: &[(String, Status)]) {
    let width = rows.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
    println!(
        "  {:width$}  {:>6}  {:<32}  effective  inherit.  ambient  bounding  no_new_privs",
        "process", "uid", "permitted"
    );
    for (name, status) in rows {
        let sets = &status.capabilities;
        println!(
            "  {name:width$}  {:>6}  {:<32}  {:>9x}  {:>8x}  {:>7x}  {:>8x}  {}",
            status.uids[1],
            names(sets.permitted),
            sets.effective,
            sets.inheritable,
            sets.ambient,
            sets.bounding,
            if status.no_new_privs { "yes" } else { "no" },
        );
    }
}

/// The capabilities that the broker keeps, by name (include/uapi/linux/capability.h).
fn names(set: u64) -> String {
    let known = [(12, "NET_ADMIN"), (13, "NET_RAW"), (14, "IPC_LOCK"), (39, "BPF")];
    let named: Vec<&str> = known
        .iter()
        .filter(|(bit, _)| set >> bit & 1 == 1)
        .map(|(_, name)| *name)
        .collect();
    let rest = known.iter().fold(set, |rest, (bit, _)| rest & !(1 << bit));
    match (named.is_empty(), rest) {
        (true, 0) => "none".into(),
        (_, 0) => named.join(" "),
        (_, rest) => format!("{} and {rest:#x}", named.join(" ")),
    }
}

/// Packets, counted at both ends and in between.
pub(crate) fn packets(count: &EchoCount, holder: &Value, redirected: u64) {
    println!(
        "  UDP:  {} sent, {} came back, {} lost, {} doubled, {} altered, in {:.2} s",
        count.sent,
        count.echoed,
        count.lost,
        count.duplicated,
        count.corrupted,
        count.elapsed.as_secs_f64()
    );
    println!("        XDP program: {redirected} redirected to queue 2's socket (ARP and ICMP among them)");
    println!(
        "        holder:      {} received, {} sent, {} refused",
        holder["received"], holder["sent"], holder["refused"]
    );
}

/// Who got what, by which rule, under which queue lock: from the audit log.
pub(crate) fn audit(lines: &[Value]) {
    println!("  the audit log until now:");
    let text = |value: &Value| match value {
        Value::String(text) => text.clone(),
        Value::Null => "-".into(),
        other => other.to_string(),
    };
    println!(
        "  | {:<10} {:>5} {:>6}  {:<9} {:<8} {:<7} {:<5} why",
        "event", "lease", "uid", "interface", "queues", "rule", "lock"
    );
    for line in lines {
        let column = |name: &str| text(&line[name]);
        let why = if line["reason"].is_null() {
            String::new()
        } else {
            column("reason")
        };
        let row = format!(
            "{:<10} {:>5} {:>6}  {:<9} {:<8} {:<7} {:<5} {why}",
            column("event"),
            column("lease"),
            column("uid"),
            column("interface"),
            column("queues"),
            column("rule"),
            column("queueLock"),
        );
        println!("  | {}", row.trim_end());
    }
}

/// The last line.
pub(crate) fn done(elapsed: Duration) {
    println!("\nAll of it happened, in {:.1} s.", elapsed.as_secs_f64());
}
