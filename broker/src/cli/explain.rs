//! `xsk-broker explain`: which rule decides, why, and what to write to change it.

use std::path::PathBuf;

use xsk_client::wire::{Explain, Explained, RuleOutcome, Target};

use super::exit::Exit;
use super::output::{self, Sockets, put};
use super::user::User;
use super::wish::Wish;
use crate::identity::Subject;
use crate::policy::{Ownership, Policy, View};

/// Say which rule would decide about queues, and why.
///
/// Asks the running broker, about oneself or, for root, about any user; with --policy FILE it asks that file and no
/// broker. A refusal for root comes with what to write into the policy to allow it. Nothing is granted by asking; a
/// queue that is allowed may still be held by another lease.
///
/// Exit codes: 0 it would be granted, 77 it would be refused.
///
/// Example: xsk-broker explain --user alice eth0:2-4
#[derive(Debug, clap::Args)]
pub struct ExplainArgs {
    /// Which queues of which interface, as in eth0:2-4
    #[arg(value_name = "IF:QUEUES")]
    target: Target,

    /// About this user; for root [default: oneself]
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
    Ok(if explained.granted { Exit::Ok } else { Exit::Denied })
}

fn ask(args: &ExplainArgs, user: Option<User>) -> anyhow::Result<Explained> {
    let mut broker = match user {
        Some(_) => args.sockets.connect_as_operator()?,
        None => args.sockets.connect_for_most()?,
    };
    let wish = args.wish.acquire(args.target.clone())?;
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
    let explained = policy.explain(&subject, &request).into_wire(View::Operator);
    let printed = match args.json {
        true => serde_json::to_string(&explained)? + "\n",
        false => text(&args.target, &explained),
    };
    put(&printed)?;
    Ok(explained)
}

/// The answer, what each rule says, and what to write to change it.
fn text(target: &Target, explained: &Explained) -> String {
    let answer = if explained.granted { "granted" } else { "refused" };
    let by = explained
        .rule
        .as_ref()
        .map_or_else(String::new, |rule| format!(" by rule {rule}"));
    let mut lines = vec![
        format!("{target}: {answer}{by}"),
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
    if let Some(suggestion) = &explained.suggestion {
        lines.extend([String::new(), suggestion.clone()]);
    }
    lines.join("\n") + "\n"
}
