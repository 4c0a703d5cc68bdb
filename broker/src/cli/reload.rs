//! `xsk-broker reload`: has the running broker read its policy anew.

use xsk_client::wire::{BrokerError, MistakeSeverity, NotAllowed, PolicyMistake, Reload, Reloaded, ranges};
use xsk_client::{Broker, CallError};

use super::exit::Exit;
use super::output::{Sockets, put, put_json};

/// Have the running broker read its policy anew. For root.
///
/// All of it is taken, or, if there is a mistake, nothing: the former policy stays in force then, and each mistake is
/// printed as `check` prints it. The audit log's file is opened anew where it was renamed (serve --audit-log), in either case.
/// SIGHUP does the same, and tells the log.
///
/// A lease that the new policy would not give is kept, and `list` says so from then on; with --revoke it ends, as by
/// `revoke`; what goes on of those that a reload has ended before is told again. Leases that it would give keep the terms that they were granted on.
///
/// The broker reads the files as its own user: they have to be readable for it (0644, or 0640 and its group). It asks NSS
/// for no name after its start: new users and groups are found in /etc/passwd and /etc/group only.
///
/// Exit code 0: the new policy is in force. 75: it is, and something of a lease that was ended goes on. 78: it is not.
#[derive(Debug, clap::Args)]
pub struct ReloadArgs {
    /// End leases that the new policy would not give
    #[arg(long)]
    revoke: bool,

    /// Print the reply as JSON; for a policy with mistakes, the error's parameters
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
pub fn run(args: &ReloadArgs) -> anyhow::Result<Exit> {
    let mut broker = args.sockets.connect_as_operator()?;
    let reload = Reload {
        revoke: args.revoke.then_some(true),
    };
    let error = match broker.reload(&reload) {
        Ok(reloaded) => return taken(args, &mut broker, &reloaded),
        Err(error) => error,
    };
    match &error {
        CallError::Refused { cause, .. } => match &**cause {
            BrokerError::PolicyWrong { mistakes, message } => wrong(args, mistakes, message),
            _ => Err(error.into()),
        },
        _ => Err(error.into()),
    }
}

fn taken(args: &ReloadArgs, broker: &mut Broker, reloaded: &Reloaded) -> anyhow::Result<Exit> {
    if args.json {
        put_json(&serde_json::to_string(reloaded)?)?;
    } else {
        print_mistakes(&reloaded.warnings);
        // Those can be named to `revoke`; of others nothing is left but an fd that somebody may have.
        let leases = broker.list_leases()?.leases;
        let listed: Vec<u64> = leases.iter().map(|lease| lease.lease).collect();
        put(&told(reloaded, &listed))?;
    }
    let goes_on = |lease: &NotAllowed| lease.ended && lease.tx_may_continue;
    Ok(match reloaded.not_allowed.iter().any(goes_on) {
        true => Exit::Busy,
        false => Exit::Ok,
    })
}

fn wrong(args: &ReloadArgs, mistakes: &[PolicyMistake], message: &str) -> anyhow::Result<Exit> {
    if args.json {
        let error = serde_json::json!({ "mistakes": mistakes, "message": message });
        put_json(&error.to_string())?;
    } else {
        print_mistakes(mistakes);
        let errors = mistakes
            .iter()
            .filter(|found| found.severity == MistakeSeverity::Error);
        eprintln!(
            "xsk-broker: the policy is not taken, the former one stays in force; errors: {}",
            errors.count()
        );
    }
    Ok(Exit::Config)
}

fn print_mistakes(mistakes: &[PolicyMistake]) {
    for found in mistakes {
        eprintln!("{}\n", found.text);
    }
}

fn told(reloaded: &Reloaded, listed: &[u64]) -> String {
    let mut text = format!(
        "{}: in force, rules: {}\n",
        reloaded.policy_files.join(" "),
        reloaded.rules
    );
    for note in &reloaded.interfaces {
        text.push_str(&format!("{}: {}\n", note.interface, note.message));
    }
    for lease in &reloaded.not_allowed {
        text.push_str(&told_of(lease));
        if lease.ended && lease.tx_may_continue && listed.contains(&lease.lease) {
            text.push_str(&format!(
                "  `xsk-broker revoke {}` says who has its sockets; with --kill it ends its holder\n",
                lease.lease
            ));
        }
    }
    text
}

fn told_of(lease: &NotAllowed) -> String {
    let what = match (lease.ended, lease.tx_may_continue) {
        (false, _) => "kept, though the policy would not give it now",
        (true, false) => "ended",
        (true, true) => "ended: nothing is redirected to it, but who has its sockets may go on transmitting",
    };
    let zero_copy = match lease.ended && !lease.rx_stopped {
        true => "; its zero-copy socket goes on receiving",
        false => "",
    };
    format!(
        "lease {} of uid {}, {}:{}, rule {}: {what}{zero_copy}\n  {}\n",
        lease.lease,
        lease.requester.uid,
        lease.interface,
        ranges(&lease.queues),
        lease.rule,
        lease.reason
    )
}
