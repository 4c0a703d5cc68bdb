//! `Reload` and SIGHUP: the policy is read anew, all of it or nothing, and what is held is weighed by it.
//!
//! | what the new policy changes | what becomes of leases |
//! | --- | --- |
//! | it would not give a lease | kept and listed as such, or ended where the operator says so; it cannot be transferred |
//! | another rule gives it, or other limits of a rule or `[limits]` | it keeps its terms; limits hold for what is asked next |
//! | `transfer-to` | holds from now on |
//! | `reserved` | a lease of a queue that is reserved now is one that it would not give |
//! | `queue-lock` | holds for sockets that leave from now on |
//! | `xdp`, `uplink`, no section any more | if the program on the device does not fit, see `misfit.rs` |
//!
//! The files are read on a thread of its own, which has no capability and which nobody waits for but who asked.

use std::io;
use std::sync::Arc;
use std::thread;

use rustix::process::{Resource as Limit, getrlimit};
use tokio::sync::{Mutex, oneshot};
use xsk_client::wire::{
    BrokerError, InterfaceNote, LeaseState, MistakeSeverity, NotAllowed, PolicyMistake, Reloaded, Requester,
};

use crate::audit::{Event, Line};
use crate::end::{self, Reason};
use crate::engine::{Engine, EngineHandle, Turn};
use crate::error::{Error, Failure, chain};
use crate::identity::Peer;
use crate::lease::{Lease, LeaseId};
use crate::misfit;
use crate::notify;
use crate::objection;
use crate::policy::{Diagnostic, InterfaceSettings, Loaded, Origin, Policy, PolicyError, Severity};
use crate::revoke;

/// Where the policy is read from, by one at a time: or what was read first could come into force last.
#[derive(Debug)]
pub struct PolicySource {
    origin: Origin,
    turn: Mutex<()>,
}

impl PolicySource {
    /// Nobody reads yet.
    pub fn new(origin: Origin) -> Self {
        Self {
            origin,
            turn: Mutex::new(()),
        }
    }
}

/// What becomes of leases that the new policy would not give.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unwanted {
    /// They are kept and listed.
    Kept,
    /// They end.
    Ended,
}

/// Reads the policy anew and puts it into force, and has the audit log's file looked for anew.
///
/// # Errors
///
/// [`BrokerError::PolicyWrong`]: the former one stays in force.
pub async fn reload(
    engine: &EngineHandle,
    by: Option<Arc<Peer>>,
    unwanted: Unwanted,
) -> Result<Reloaded, Error> {
    let (source, manager) = engine
        .call(Turn::First, |engine| {
            // Whatever becomes of the policy: whoever has rotated the log means this.
            engine.audit.reopen();
            (Arc::clone(&engine.policy_source), engine.manager.clone())
        })
        .await?;
    let _turn = source.turn.lock().await;
    notify::reloading(&manager);
    let reloaded = reload_in_turn(engine, &source, by, unwanted).await;
    match &reloaded {
        Ok(_) => notify::ready(&manager, engine).await?,
        Err(error) => notify::unchanged(&manager, &chain(error)),
    }
    reloaded
}

async fn reload_in_turn(
    engine: &EngineHandle,
    source: &Arc<PolicySource>,
    by: Option<Arc<Peer>>,
    unwanted: Unwanted,
) -> Result<Reloaded, Error> {
    let read = read_apart(Arc::clone(source)).await?;
    let taken: Result<(Reloaded, Vec<LeaseId>), Error> = engine
        .call(Turn::First, move |engine| {
            let by = by.as_deref();
            match read {
                Ok(loaded) => Ok(put_in_force(engine, loaded, by, unwanted)),
                Err(error) => Err(refuse(engine, &error, by).into()),
            }
        })
        .await?;
    let (mut reloaded, ending) = taken?;
    let stands = revoke::all_once_retired(engine, &ending).await?;
    for (id, stands) in ending.iter().zip(stands) {
        let told = reloaded.not_allowed.iter_mut().find(|told| told.lease == id.0);
        if let Some(told) = told {
            (told.rx_stopped, told.tx_may_continue) = (stands.rx_stopped, stands.tx_may_continue);
        }
    }
    Ok(reloaded)
}

/// Does what SIGHUP asks for, and tells the log of it.
pub async fn at_signal(engine: EngineHandle) {
    match reload(&engine, None, Unwanted::Kept).await {
        Ok(reloaded) => {
            for warning in &reloaded.warnings {
                tracing::warn!("{}", warning.text);
            }
            for note in &reloaded.interfaces {
                tracing::warn!("{}: {}", note.interface, note.message);
            }
            for lease in &reloaded.not_allowed {
                tracing::warn!(
                    lease = lease.lease,
                    "kept, though the policy would not give it now: {}",
                    lease.reason
                );
            }
            tracing::info!("SIGHUP: the policy was read anew; rules: {}", reloaded.rules);
        }
        Err(Error::Refused(BrokerError::PolicyWrong { mistakes, message })) => {
            for mistake in &mistakes {
                match mistake.severity {
                    MistakeSeverity::Error => tracing::error!("{}", mistake.text),
                    MistakeSeverity::Warning => tracing::warn!("{}", mistake.text),
                }
            }
            tracing::error!("SIGHUP: {message}");
        }
        Err(error) => tracing::error!("SIGHUP: the policy was not read: {}", chain(&error)),
    }
}

async fn read_apart(source: Arc<PolicySource>) -> Result<Result<Loaded, PolicyError>, Failure> {
    let (reader, read) = oneshot::channel();
    let failed = |source| Failure::kernel("reading of", "the policy", source);
    thread::Builder::new()
        .name("policy".into())
        .spawn(move || drop(reader.send(source.origin.load_anew())))
        .map_err(failed)?;
    read.await
        .map_err(|_| failed(io::Error::other("its thread has ended")))
}

/// Gives the leases as well whose end is not over yet.
fn put_in_force(
    engine: &mut Engine,
    loaded: Loaded,
    by: Option<&Peer>,
    unwanted: Unwanted,
) -> (Reloaded, Vec<LeaseId>) {
    let former = std::mem::replace(&mut engine.policy, loaded.policy);
    if engine.policy.wants_queue_lock() {
        engine.locks.try_out();
    }
    let open_files = getrlimit(Limit::Nofile).current.unwrap_or(u64::MAX);
    let limits = engine.policy.limits().within_open_files(open_files);
    engine.leases.accounts().set_limits(limits);
    misfit::look(engine);
    // One that is ended for it tells so by its end.
    let ends = |lease: &Lease| unwanted == Unwanted::Ended && lease.is_live() && lease.objection.is_some();
    objection::weigh_all(engine, ends);
    let ended_before = match unwanted {
        Unwanted::Kept => Vec::new(),
        Unwanted::Ended => goes_on(engine),
    };
    let mut not_allowed = Vec::new();
    for id in engine
        .leases
        .ids(|lease| lease.is_live() && lease.objection.is_some())
    {
        not_allowed.extend(unwanted_one(engine, id, unwanted));
    }
    let (rules, files) = (engine.policy.rule_count(), loaded.files.len());
    let message = format!(
        "rules: {rules}, files: {files}, leases that they would not give: {}",
        not_allowed.len()
    );
    write_down(engine, Event::Reloaded, by, &message);
    not_allowed.extend(ended_before);
    let ending = engine.leases.ids(|lease| lease.state == LeaseState::Ending);
    let reloaded = Reloaded {
        policy_files: loaded
            .files
            .iter()
            .map(|file| file.display().to_string())
            .collect(),
        rules: u64::try_from(rules).unwrap_or(u64::MAX),
        warnings: loaded.warnings.iter().map(mistake).collect(),
        not_allowed,
        interfaces: notes(engine, &former),
    };
    (reloaded, ending)
}

/// A live lease that the policy would not give: kept, or ended.
fn unwanted_one(engine: &mut Engine, id: LeaseId, unwanted: Unwanted) -> Option<NotAllowed> {
    let told = told(engine.leases.get_mut(id)?)?;
    if unwanted == Unwanted::Kept {
        return Some(told);
    }
    let stopped = end::take_back(engine, id, Reason::NotAllowed);
    Some(NotAllowed {
        ended: true,
        rx_stopped: stopped.rx_stopped,
        tx_may_continue: stopped.tx_may_continue,
        ..told
    })
}

/// What goes on of leases that a reload has ended before, and that this policy would not give either: who asks again is to
/// hear it again.
fn goes_on(engine: &Engine) -> Vec<NotAllowed> {
    let by_reload =
        |lease: &&Lease| matches!(lease.ended, Some((Reason::NotAllowed, _))) && lease.tx_may_continue();
    engine.leases.iter().filter(by_reload).filter_map(told).collect()
}

/// What an operator is told of a lease that the policy in force would not give; nothing of others.
fn told(lease: &Lease) -> Option<NotAllowed> {
    let subject = &lease.requester().subject;
    Some(NotAllowed {
        lease: lease.id().0,
        interface: lease.device().name.clone(),
        queues: lease.terms().queues().iter().collect(),
        requester: Requester {
            uid: subject.uid,
            gid: subject.gid,
        },
        rule: lease.terms().rule().to_owned(),
        reason: lease.objection.as_ref()?.for_operator.clone(),
        ended: !lease.is_live(),
        rx_stopped: lease.rx_stopped(),
        tx_may_continue: lease.tx_may_continue(),
    })
}

fn refuse(engine: &mut Engine, error: &PolicyError, by: Option<&Peer>) -> BrokerError {
    let errors = error
        .diagnostics
        .iter()
        .filter(|found| found.severity == Severity::Error);
    let first = errors.clone().next().map(place).unwrap_or_default();
    let message = format!(
        "the policy is not taken, the former one stays in force: errors: {}, the first is {first}",
        errors.count()
    );
    write_down(engine, Event::ReloadRefused, by, &message);
    BrokerError::PolicyWrong {
        mistakes: error.diagnostics.iter().map(mistake).collect(),
        message,
    }
}

fn write_down(engine: &mut Engine, event: Event, by: Option<&Peer>, message: &str) {
    let line = Line::new(event).message(message);
    engine.audit.write(&match by {
        Some(peer) => line.peer(peer),
        None => line.reason("sighup"),
    });
}

/// `file:line:column: message`
fn place(found: &Diagnostic) -> String {
    let at = found
        .position
        .as_ref()
        .map_or_else(String::new, |at| format!(":{}:{}", at.line, at.column));
    format!("{}{at}: {}", found.file.display(), found.message())
}

fn mistake(found: &Diagnostic) -> PolicyMistake {
    let at = found.position.as_ref();
    let number = |number: usize| u64::try_from(number).unwrap_or(u64::MAX);
    PolicyMistake {
        severity: match found.severity {
            Severity::Error => MistakeSeverity::Error,
            Severity::Warning => MistakeSeverity::Warning,
        },
        file: found.file.display().to_string(),
        line: at.map(|at| number(at.line)),
        column: at.map(|at| number(at.column)),
        source_line: at.map(|at| at.source_line.clone()),
        message: found.message(),
        help: found.help(),
        text: found.to_string(),
    }
}

/// Weighs what was taken over from another broker, which may have granted it by another policy.
pub fn weigh_all(engine: &mut Engine) {
    misfit::look(engine);
    objection::weigh_all(engine, |_| false);
}

/// What the new policy means for devices in use. Programs that do not fit and that nobody uses are detached.
fn notes(engine: &mut Engine, former: &Policy) -> Vec<InterfaceNote> {
    let mut in_use: Vec<u32> = engine.redirects.keys().copied().collect();
    in_use.sort_unstable();
    let mut notes = Vec::new();
    for index in in_use {
        let Some(interface) = engine.links.get(index).map(|now| now.name.clone()) else {
            continue;
        };
        let mut note = |message: String| {
            notes.push(InterfaceNote {
                interface: interface.clone(),
                message,
            });
        };
        if let (Some(before), Some(now)) = (former.interface(&interface), engine.policy.interface(&interface))
        {
            differences(before, now).into_iter().for_each(&mut note);
        }
        let Some(why) = engine.misfits.get(index).map(str::to_owned) else {
            continue;
        };
        if misfit::detach_unused(engine, index) {
            note(format!("{why}: its XDP program has been detached"));
            continue;
        }
        let uses = engine.leases.ids(|lease| lease.device().index == index);
        let uses: Vec<String> = uses.iter().map(ToString::to_string).collect();
        note(format!(
            "{why}: nothing more is granted there, and its XDP program is detached when these leases have ended and let go \
             of their queues: {}",
            uses.join(", ")
        ));
    }
    notes
}

/// What else holds for a device now. How its program is attached is for [`misfit`] to say.
fn differences(before: &InterfaceSettings, now: &InterfaceSettings) -> Vec<String> {
    let mut notes = Vec::new();
    if before.reserved != now.reserved {
        let queues = |reserved: &crate::policy::QueueRanges| match reserved.is_empty() {
            true => "none".to_owned(),
            false => reserved.to_string(),
        };
        let (was, is) = (queues(&before.reserved), queues(&now.reserved));
        notes.push(format!(
            "reserved queues are {is}, were {was}: what is held of them stays held"
        ));
    }
    if before.queue_lock != now.queue_lock {
        let (was, is) = (before.queue_lock.as_str(), now.queue_lock.as_str());
        notes.push(format!(
            "queue-lock is {is}, was {was}: sockets that have left already stay under the lock that they left under, and one \
             that left unbound under none can be bound to any free queue for as long as somebody has it"
        ));
    }
    notes
}
