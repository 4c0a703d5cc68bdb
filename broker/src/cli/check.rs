//! `xsk-broker check FILE`: everything that is wrong with a policy, or what it grants and what that costs.
//!
//! It reads with the daemon's own reader, and so takes exactly what `serve` would take. Only the owner and the
//! mode of the files are warnings here: a policy may be looked at before it is put in place.

use std::io::{self, Write};
use std::path::PathBuf;

use xsk_client::wire::{SocketKind, ZeroCopy};

use super::check_json::Json;
use super::exit::Exit;
use crate::policy::{
    Diagnostic, Effect, Insert, InterfaceSection, Loaded, Ownership, Policy, PolicyError, QueueLockSetting,
    Rule, Severity, none_costs,
};
use crate::quota::{Amounts, Limits, Resource};

/// Check a policy without a running broker.
///
/// Prints every mistake with file, line and column, or says who may have what and what that costs. Reads the
/// *.toml of the directory beside FILE too, as `serve` does: policy.d/ beside policy.toml.
///
/// Users, groups and interfaces that do not exist here are warnings, and so are files that others than root can
/// write; `serve` refuses the latter. Exit codes: 0 the policy is good, 78 it is not.
#[derive(Debug, clap::Args)]
pub struct CheckArgs {
    /// The policy's main file
    #[arg(value_name = "FILE", default_value = "/etc/xsk-broker/policy.toml")]
    pub file: PathBuf,
    /// Take warnings for errors: for a policy that is to match this very machine
    #[arg(long)]
    pub strict: bool,
    /// Print one JSON object instead of text
    #[arg(long)]
    pub json: bool,
}

/// Runs the command. What is wrong goes to stderr, the summary (or the JSON) to stdout.
pub fn run(args: &CheckArgs) -> Exit {
    let outcome = Policy::load(&args.file, Ownership::Warn);
    let report = Report::new(args, &outcome);
    let printed = match args.json {
        true => report.print_json(&mut io::stdout().lock()),
        false => report.print(&mut io::stdout().lock(), &mut io::stderr().lock()),
    };
    match (printed, report.good) {
        (Err(_), _) => Exit::Failed,
        (Ok(()), true) => Exit::Ok,
        (Ok(()), false) => Exit::Config,
    }
}

/// What is to be printed.
#[derive(Debug)]
struct Report<'a> {
    args: &'a CheckArgs,
    good: bool,
    diagnostics: &'a [Diagnostic],
    loaded: Option<&'a Loaded>,
}

impl<'a> Report<'a> {
    fn new(args: &'a CheckArgs, outcome: &'a Result<Loaded, PolicyError>) -> Self {
        match outcome {
            Ok(loaded) => Self {
                args,
                good: loaded.warnings.is_empty() || !args.strict,
                diagnostics: &loaded.warnings,
                loaded: Some(loaded),
            },
            Err(error) => Self {
                args,
                good: false,
                diagnostics: &error.diagnostics,
                loaded: None,
            },
        }
    }

    fn print(&self, out: &mut dyn Write, err: &mut dyn Write) -> io::Result<()> {
        for diagnostic in self.diagnostics {
            writeln!(err, "{diagnostic}\n")?;
        }
        let counts = [(Severity::Error, "error"), (Severity::Warning, "warning")].map(|(severity, word)| {
            let of = |diagnostic: &&Diagnostic| diagnostic.severity == severity;
            counted(self.diagnostics.iter().filter(of).count(), word)
        });
        let file = self.args.file.display();
        match (self.loaded, self.good) {
            (Some(loaded), true) => print_summary(&loaded.policy, &counts[1], out),
            (Some(_), false) => {
                writeln!(err, "{file}: {}, which --strict takes for errors", counts[1])
            }
            (None, _) => writeln!(err, "{file}: {}, {}: not a policy", counts[0], counts[1]),
        }
    }

    fn print_json(&self, out: &mut dyn Write) -> io::Result<()> {
        let json = Json::new(self.good, self.diagnostics, self.loaded);
        serde_json::to_writer_pretty(&mut *out, &json)?;
        writeln!(out)
    }
}

fn counted(count: usize, word: &str) -> String {
    match count {
        1 => format!("1 {word}"),
        count => format!("{count} {word}s"),
    }
}

fn print_summary(policy: &Policy, warnings: &str, out: &mut dyn Write) -> io::Result<()> {
    let files: Vec<String> = policy
        .files()
        .iter()
        .map(|file| file.display().to_string())
        .collect();
    writeln!(
        out,
        "{}: good, {}, {}, {warnings}",
        files.join(", "),
        counted(policy.sections().len(), "interface section"),
        counted(policy.rule_count(), "rule")
    )?;
    for section in policy.sections() {
        print_section(section, out)?;
    }
    for rule in policy.rules() {
        print_rule(rule, out)?;
    }
    print_limits(policy.limits(), out)?;
    if !policy.rules().is_empty() {
        writeln!(
            out,
            "\nA request is granted if one allow rule covers all of it, and no deny rule touches any of it."
        )?;
    }
    Ok(())
}

fn print_section(section: &InterfaceSection, out: &mut dyn Write) -> io::Result<()> {
    let (name, settings) = (section.pattern.written(), &section.settings);
    let reserved = match settings.reserved.is_empty() {
        true => "no queue".to_owned(),
        false => format!("queues {}", settings.reserved),
    };
    writeln!(out, "\ninterface {name}")?;
    writeln!(out, "  xdp {}, {reserved} reserved", settings.xdp.as_str())?;
    if settings.uplink {
        writeln!(out, "  also if it is an uplink or a port of a bridge or bond")?;
    }
    write!(out, "  queue-lock {}", settings.queue_lock.as_str())?;
    match settings.queue_lock {
        QueueLockSetting::Auto => writeln!(out, ": lsm where that is in force, else placeholders"),
        QueueLockSetting::Lsm => writeln!(out, ", and no sockets where that is not in force"),
        QueueLockSetting::Placeholders => {
            writeln!(
                out,
                ": one lease with unbound sockets at a time, and none after a crash until its holder is gone"
            )
        }
        QueueLockSetting::None => {
            writeln!(
                out,
                ", which costs:\n    {}",
                none_costs(name).replace('\n', "\n    ")
            )
        }
    }
}

fn print_limits(limits: Limits, out: &mut dyn Write) -> io::Result<()> {
    writeln!(out, "\nlimits, whatever a rule allows")?;
    let line = |amounts: Amounts| -> String {
        let each = |resource: &Resource| format!("{} {}", amounts.of(*resource), resource.words());
        let (first, second) = Resource::ALL.split_at(4);
        [first, second]
            .map(|part| part.iter().map(each).collect::<Vec<_>>().join(", "))
            .join(",\n    ")
    };
    writeln!(out, "  each user: {}", line(limits.per_user))?;
    writeln!(out, "  in all: {}", line(limits.in_all))?;
    writeln!(
        out,
        "  and no more in all, placeholders included, than RLIMIT_NOFILE of the broker lets it serve, as `status` says"
    )
}

fn print_rule(rule: &Rule, out: &mut dyn Write) -> io::Result<()> {
    let queues = match rule.queues.to_string() {
        all if all == "*" => "any queue".to_owned(),
        queues => format!("queues {queues}"),
    };
    let target = format!("{queues} of {}", rule.interfaces_written());
    let Effect::Allow(allowance) = &rule.effect else {
        return writeln!(out, "\ndeny {}\n  {} never gets {target}", rule.name, rule.who);
    };
    let kinds: Vec<&str> = allowance.sockets.iter().map(|kind| kind.as_str()).collect();
    writeln!(out, "\nallow {}", rule.name)?;
    writeln!(out, "  {} may have {target}", rule.who)?;
    let most = match allowance.max_queues {
        Some(1) => "1 queue at a time for each user".to_owned(),
        Some(most) => format!("{most} queues at a time for each user"),
        None => "as many at a time as there are".to_owned(),
    };
    writeln!(
        out,
        "  {most}; sockets {}; rings of at most {} entries; {} ms to activate",
        kinds.join(", "),
        allowance.max_ring_entries,
        allowance.activate_within.as_millis()
    )?;
    match allowance.zero_copy {
        ZeroCopy::Allowed => {}
        ZeroCopy::Required => writeln!(
            out,
            "  zero-copy required: refused on a device whose driver has none, and a socket bound otherwise ends its lease"
        )?,
        ZeroCopy::Forbidden => writeln!(
            out,
            "  zero-copy forbidden: on a device whose driver has zero-copy this is refused for sockets that their holder\n    \
             binds, unless the queue lock is lsm: nothing else keeps the holder from it"
        )?,
    }
    if allowance.sockets.contains(&SocketKind::Bound) {
        let pages = if allowance.hugepages {
            ", also on huge pages"
        } else {
            ""
        };
        writeln!(
            out,
            "  of kind bound: direction {}; umem of at most {} bytes in all for each user{pages}",
            allowance.direction, allowance.max_umem_bytes
        )?;
    }
    if allowance.max_busy_poll_budget > 0 {
        writeln!(
            out,
            "  busy polling of at most {} packets at once",
            allowance.max_busy_poll_budget
        )?;
    }
    if !allowance.transfer_to.is_empty() {
        let users: Vec<String> = allowance.transfer_to.iter().map(ToString::to_string).collect();
        writeln!(out, "  may be transferred to processes of {}", users.join(", "))?;
    }
    match allowance.insert {
        Insert::WhenBound => Ok(()),
        Insert::AtGrant => writeln!(
            out,
            "  insert at-grant, which costs:\n    from the grant until its holder has bound the socket, the packets of a queue are lost:\n    \
             delivered to nobody, not passed to the host, counted nowhere"
        ),
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    const GOOD: &str = "[interface.lo]\nqueue-lock = \"none\"\nreserved = \"0\"\n\n[[allow]]\nname = \"r\"\n\
                        user = [\"root\", 7]\ninterface = [\"lo\"]\nqueues = \"*\"\nsockets = [\"prepared\"]\n\
                        insert = \"at-grant\"\nlimits = { queues = 1 }\n\n[[deny]]\nname = \"d\"\nuser = \"*\"\n\
                        interface = \"lo\"\nqueues = \"3\"\n\n[limits.per-user]\nconnections = 9\n\n\
                        [limits.in-all]\nqueues = 70\n";

    fn check(text: &str, strict: bool) -> (bool, String, String, serde_json::Value) {
        let args = CheckArgs {
            file: "p.toml".into(),
            strict,
            json: false,
        };
        let outcome = Policy::parse(Path::new("p.toml"), text.as_bytes());
        let report = Report::new(&args, &outcome);
        let (mut out, mut err, mut json) = (Vec::new(), Vec::new(), Vec::new());
        report.print(&mut out, &mut err).unwrap();
        report.print_json(&mut json).unwrap();
        let text = |bytes| String::from_utf8(bytes).unwrap();
        (
            report.good,
            text(out),
            text(err),
            serde_json::from_slice(&json).unwrap(),
        )
    }

    #[test]
    fn a_good_policy_is_told_with_its_costs() {
        let (good, out, err, json) = check(GOOD, true);
        assert!(good);
        assert_eq!(err, "");
        assert_eq!(
            out,
            "\
p.toml: good, 1 interface section, 2 rules, 0 warnings

interface lo
  xdp auto, queues 0 reserved
  queue-lock none, which costs:
    nothing keeps a holder whose socket is not bound yet from binding another queue of lo than
    its own: it can keep others from that queue and transmit there, and with a zero-copy driver read
    what arrives there

allow r
  user root (0), user 7 may have any queue of lo
  1 queue at a time for each user; sockets prepared; rings of at most 4096 entries; 5000 ms to activate
  insert at-grant, which costs:
    from the grant until its holder has bound the socket, the packets of a queue are lost:
    delivered to nobody, not passed to the host, counted nowhere

deny d
  everybody never gets queues 3 of lo

limits, whatever a rule allows
  each user: 9 connections, 64 unanswered requests, 1024 leases, 1024 queues,
    1073741824 bytes of umem, 128 fds in unread replies, 256 sockets left unbound within a minute
  in all: 4096 connections, 1024 unanswered requests, 16384 leases, 70 queues,
    17179869184 bytes of umem, 8192 fds in unread replies, 4096 sockets left unbound within a minute
  and no more in all, placeholders included, than RLIMIT_NOFILE of the broker lets it serve, as `status` says

A request is granted if one allow rule covers all of it, and no deny rule touches any of it.
"
        );
        assert_eq!(json["ok"], true);
        assert_eq!(json["rules"][0]["insert"], "at-grant");
        assert_eq!(json["rules"][1]["effect"], "deny");
        assert_eq!(json["interfaces"][0]["queueLock"], "none");
        assert_eq!(json["limits"]["perUser"]["connections"], 9);
        assert_eq!(json["limits"]["inAll"]["queues"], 70);
        assert_eq!(json["limits"]["inAll"]["unread-fds"], 8192);
    }

    #[test]
    fn zero_copy_is_told_with_what_it_takes() {
        for (word, told) in [
            (
                "required",
                "zero-copy required: refused on a device whose driver has none",
            ),
            (
                "forbidden",
                "zero-copy forbidden: on a device whose driver has zero-copy this is refused",
            ),
        ] {
            let text = GOOD.replace("insert = \"at-grant\"", &format!("zero-copy = \"{word}\""));
            let (good, out, _, json) = check(&text, true);
            assert!(good && out.contains(told), "{out}");
            assert_eq!(json["rules"][0]["zeroCopy"], word);
        }
        let (_, out, _, json) = check(GOOD, true);
        assert!(
            !out.contains("zero-copy required") && !out.contains("zero-copy forbidden"),
            "{out}"
        );
        assert_eq!(json["rules"][0]["zeroCopy"], "allowed");
    }

    #[test]
    fn warnings_count_if_strict() {
        let text = GOOD.replace("\"root\"", "\"no-such-user-here\"");
        let (good, out, err, json) = check(&text, false);
        assert!(
            good && out.starts_with("p.toml: good") && err.starts_with("warning: no user"),
            "{err}"
        );
        assert_eq!(json["diagnostics"][0]["severity"], "warning");
        let (good, out, err, _) = check(&text, true);
        assert!(!good && out.is_empty(), "{out}");
        assert!(
            err.ends_with("p.toml: 1 warning, which --strict takes for errors\n"),
            "{err}"
        );
    }

    #[test]
    fn a_bad_policy_is_told_with_places() {
        let (good, out, err, json) = check(&GOOD.replace("queues = \"*\"", "queues = \"x\""), false);
        assert!(!good && out.is_empty());
        assert!(
            err.ends_with("\np.toml: 1 error, 0 warnings: not a policy\n"),
            "{err}"
        );
        let first = &json["diagnostics"][0];
        assert_eq!((&first["line"], &first["column"]), (&9.into(), &10.into()));
        assert_eq!(json["ok"], false);
        assert!(json.get("rules").is_none());
    }
}
