//! `xsk-broker explain`: which rule decides, why, and what to write to change it.

use std::path::PathBuf;

use xsk_client::wire::{Check, CheckOutcome, Explain, Explained, RuleOutcome, Target};

use super::exit::Exit;
use super::output::{self, Sockets, put, put_json};
use super::user::User;
use super::wish::Wish;
use crate::grant::{AUDIT_LOG, LEFT_UNBOUND, LIMITS};
use crate::identity::Subject;
use crate::policy::{Ownership, Policy, View};

/// Say whether queues would be granted, by which rule, and why.
///
/// Asks the running broker, about oneself or, for root, about any user. It looks at the policy and, where that would
/// grant them, at the machine, as a grant would; each look has a line, and so has what was not looked at: nothing is
/// changed by asking. A refusal by the policy comes, for root, with what to write into it. With --policy FILE it asks that
/// file, no broker, and looks at no machine.
///
/// Exit codes: 0 it would be granted, 75 the audit log is full, or a broker before has left
/// sockets unbound whose holders have to end first, 77 the policy refuses it, 78 the machine does.
///
/// Example: xsk-broker explain --user alice eth0:2-4
#[derive(Debug, clap::Args)]
pub struct ExplainArgs {
    /// Which queues of which interface, as in eth0:2-4
    #[arg(value_name = "IF:QUEUES")]
    target: Target,

    /// Whether this user would get them; only root may ask about others [default: whoever runs this]
    #[arg(long, value_name = "USER|UID")]
    user: Option<String>,

    #[command(flatten)]
    wish: Wish,

    /// Ask this policy in place of the running broker
    #[arg(long, value_name = "FILE", requires = "user")]
    policy: Option<PathBuf>,

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
/// As the broker says, or as `check` would about the policy.
pub fn run(args: &ExplainArgs) -> anyhow::Result<Exit> {
    let user = args.user.as_deref().map(User::look_up).transpose()?;
    let explained = match (&args.policy, user) {
        (Some(file), Some(user)) => offline(args, file, user)?,
        (_, user) => ask(args, user)?,
    };
    Ok(match (explained.granted, explained.obstacle()) {
        (true, _) => Exit::Ok,
        (false, Some(obstacle)) if obstacle.what == LIMITS => Exit::Denied,
        (false, Some(obstacle)) if [AUDIT_LOG, LEFT_UNBOUND].contains(&&*obstacle.what) => Exit::Busy,
        (false, Some(_)) => Exit::Config,
        (false, None) => Exit::Denied,
    })
}

fn ask(args: &ExplainArgs, user: Option<User>) -> anyhow::Result<Explained> {
    let wish = args.wish.acquire(args.target.clone())?;
    let mut broker = match user {
        Some(_) => args.sockets.connect_as_operator()?,
        None => args.sockets.connect_for_most()?,
    };
    let request = Explain {
        interface: wish.interface,
        queues: wish.queues,
        sockets: Some(wish.sockets),
        direction: wish.direction,
        mode: wish.mode,
        umem: wish.umem,
        rings: wish.rings,
        busy_poll: wish.busy_poll,
        uid: user.as_ref().map(|user| user.uid),
        gids: user.map(|user| user.groups),
    };
    output::print(&mut broker, "Explain", &request, args.json, |explained| {
        text(&args.target, explained)
    })
}

fn offline(args: &ExplainArgs, file: &std::path::Path, user: User) -> anyhow::Result<Explained> {
    let policy = Policy::load(file, Ownership::Warn)?.policy;
    let request = args.wish.acquire(args.target.clone())?.into();
    let subject = Subject {
        uid: user.uid,
        gid: user.gid,
        groups: user.groups,
    };
    let explanation = policy.explain(&subject, &request);
    let unseen = Check {
        what: "machine".to_owned(),
        outcome: CheckOutcome::NotLooked,
        why: "with --policy no broker is asked, and only that could look".to_owned(),
    };
    let checks = if explanation.granted() {
        vec![unseen]
    } else {
        Vec::new()
    };
    let explained = explanation.with_checks(checks).into_wire(View::Operator);
    match args.json {
        true => put_json(&serde_json::to_string(&explained)?)?,
        false => put(&text(&args.target, &explained))?,
    }
    Ok(explained)
}

/// Granted or refused, and by whom: a rule that would give it refuses nothing.
fn answer(explained: &Explained) -> String {
    let by_rule = explained.rule.as_ref().map(|rule| format!(" by rule {rule}"));
    match (explained.granted, explained.obstacle()) {
        (true, _) => format!("granted{}", by_rule.unwrap_or_default()),
        (false, None) => format!("refused{}", by_rule.unwrap_or_default()),
        (false, Some(obstacle)) => match obstacle.what.as_str() {
            LIMITS => "refused by a limit".to_owned(),
            AUDIT_LOG => "refused for now by the broker".to_owned(),
            LEFT_UNBOUND => "refused for now by this machine (left unbound)".to_owned(),
            what => format!("refused by this machine ({what})"),
        },
    }
}

/// The answer, what each rule says, and what to write to change it.
fn text(target: &Target, explained: &Explained) -> String {
    let mut lines = vec![
        format!("{target}: {}", answer(explained)),
        format!("  {}", explained.reason),
    ];
    if !explained.rules.is_empty() {
        lines.extend([String::new(), "rules, in file order:".to_owned()]);
    }
    let width = explained
        .rules
        .iter()
        .map(|said| said.rule.len())
        .max()
        .unwrap_or(0);
    for said in &explained.rules {
        let mark = match said.outcome {
            RuleOutcome::Decides => '>',
            RuleOutcome::Matches | RuleOutcome::Differs => ' ',
        };
        lines.push(format!(
            "{mark} {:width$}  {:7}  {}",
            said.rule, said.outcome, said.why
        ));
    }
    if !explained.checks.is_empty() {
        lines.extend([String::new(), "machine:".to_owned()]);
    }
    let wide = explained
        .checks
        .iter()
        .map(|check| check.what.len())
        .max()
        .unwrap_or(0);
    for check in &explained.checks {
        let (mark, outcome) = match check.outcome {
            CheckOutcome::Fine => (' ', "fine"),
            CheckOutcome::Refused => ('>', "refused"),
            CheckOutcome::NotLooked => (' ', "not looked at"),
        };
        lines.push(format!(
            "{mark} {:wide$}  {outcome:13}  {}",
            check.what, check.why
        ));
    }
    if let Some(suggestion) = &explained.suggestion {
        lines.extend([String::new(), suggestion.clone()]);
    }
    lines.join("\n") + "\n"
}
