//! `xsk-broker serve`: the daemon's start, in numbered steps.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use tokio::runtime::Runtime;

use super::exit::Exit;
use super::inheritance::Outlook;
use super::open_files;
use super::place::{self, NotRoot, Place};
use super::user::User;
use crate::activation::{Passed, PassedSocket};
use crate::audit::{Audit, Event, Line, Sink, Writer};
use crate::charge::Accounts;
use crate::engine::{self, Parts};
use crate::error::chain;
use crate::fd_store;
use crate::heritage::{Heritage, Judge};
use crate::journal::Journal;
use crate::kernel::link_events::LinkEvents;
use crate::kernel::pins::PinDirectory;
use crate::kernel::queue_lock::{self, Lsm, Scratch, Taints};
use crate::manager::Manager;
use crate::policy::{Loaded, Origin, Policy, Strictness};
use crate::privileges::{self, Account};
use crate::reload::PolicySource;
use crate::report::Scope;
use crate::server::{self, Listener};
use crate::signals::Signals;

/// Run the broker in the foreground; a service manager restarts it and keeps its log.
///
/// Started by root, it ends as the user of --user with four capabilities permitted and none effective. The audit log,
/// one JSON object a line, goes to standard output, other messages to standard error (RUST_LOG sets how many).
///
/// SIGHUP and `xsk-broker reload` have it read its policy anew, with the same files: they have to be readable for its user.
///
/// Both also have it open --audit-log anew where the file was renamed. It does so as its user: the directory has to let that
/// user in, and the new file has to be that user's to write to (logrotate: `create 0640 xsk-broker adm`), or the directory
/// is. Where it cannot, it says so and goes on with the file that it has, which can be copied and truncated
/// (`copytruncate`): it appends.
///
/// A service manager is told when it is ready, reloads and stops (sd_notify), sees that it is alive where it wants to
/// (WatchdogSec=), and may have opened its sockets for it, by the names `broker` and `control` (FileDescriptorName=).
///
/// SIGTERM and SIGINT end it and leave what is held: holders go on receiving, as after a crash, and the next broker takes
/// their leases over. SIGUSR1 (RestartKillSignal=) does the same for a manager that starts it again: what is not bound yet
/// and kept by the manager goes on, under placeholders too. `xsk-broker purge` takes down what is left.
///
/// Example: xsk-broker serve --policy /etc/xsk-broker/policy.toml --user xsk-broker
#[derive(Debug, clap::Args)]
pub struct ServeArgs {
    /// The policy; `policy.d/*.toml` beside it are read too, in the order of their names
    #[arg(long, value_name = "FILE", default_value = "/etc/xsk-broker/policy.toml")]
    policy: PathBuf,

    /// Refuse to start where the policy names users, groups or interfaces that do not exist
    #[arg(long)]
    strict: bool,

    /// Where sockets and the lock file are; one broker for each
    #[arg(long, value_name = "DIR", default_value = "/run/xsk-broker")]
    run_dir: PathBuf,

    /// Where XDP programs are pinned; on a BPF file system, one broker for each
    #[arg(long, value_name = "DIR", default_value = "/sys/fs/bpf/xsk-broker")]
    bpf_dir: PathBuf,

    /// Where clients connect, mode 0666 [default: broker.sock in the run directory]
    #[arg(long, value_name = "PATH")]
    socket: Option<PathBuf>,

    /// Where operators connect, mode 0600 [default: control.sock in the run directory]
    #[arg(long, value_name = "PATH")]
    control_socket: Option<PathBuf>,

    /// The user that the daemon ends as, by name or uid; not root
    #[arg(long, value_name = "NAME|UID", default_value = "xsk-broker")]
    user: String,

    /// Do nothing, and tell what would become of the leases and programs that a broker before this one has left, and whether
    /// one runs still; what a service manager keeps of them (its fd store) is passed to the service alone, and not seen by this
    #[arg(long)]
    dry_run: bool,

    /// With --dry-run: print a JSON array
    #[arg(long, requires = "dry_run")]
    json: bool,

    /// Append the audit log to this file, in place of standard output; a reload opens it anew after a rotation
    #[arg(long, value_name = "FILE")]
    audit_log: Option<PathBuf>,
}

/// Starts and serves. Any failure before the daemon serves is one of set-up.
pub fn run(args: &ServeArgs) -> Exit {
    let result = match args.dry_run {
        true => dry_run(args).map_err(Failed::Setup),
        false => serve(args),
    };
    let (error, exit) = match result {
        Ok(()) => return Exit::Ok,
        Err(Failed::Setup(error)) if error.is::<NotRoot>() => (error, Exit::Denied),
        Err(Failed::Setup(error)) => (error, Exit::Config),
        Err(Failed::Serving(error)) => (error, Exit::Failed),
    };
    let hint = open_files::hint(&error);
    eprintln!("xsk-broker: {}{hint}", chain(error.as_ref()));
    exit
}

/// At which stage it failed.
enum Failed {
    Setup(anyhow::Error),
    Serving(anyhow::Error),
}

/// Tells what a start would take over.
fn dry_run(args: &ServeArgs) -> anyhow::Result<()> {
    place::demand_root(
        "serve must be started by root, and so must its --dry-run: what is pinned is closed to others",
    )?;
    let account = account(&args.user)?;
    let (_, loaded) = policy(args)?;
    // What a service manager has stored is passed to who is started by it.
    let stored = fd_store::Passed::default();
    let judge = Judge {
        policy: &loaded.policy,
        owners: &[0, account.uid],
        stored: &stored,
    };
    let outlook = Outlook::find([&args.run_dir, &args.bpf_dir], account, judge)?;
    outlook.print(args.json)
}

fn serve(args: &ServeArgs) -> Result<(), Failed> {
    let started = start(args).map_err(Failed::Setup)?;
    // Dropped last, after the engine has ended, by a panic too: it writes what the engine has said.
    let _log = started.log;
    let served = started.runtime.block_on(server::run(
        started.listeners,
        started.engine,
        &started.accounts,
        started.links,
        started.manager,
        started.signals,
    ));
    served.context("the broker stopped").map_err(Failed::Serving)
}

/// What serving takes.
struct Started {
    runtime: Runtime,
    signals: Signals,
    listeners: [Listener; 2],
    engine: engine::Running,
    accounts: Accounts,
    links: Vec<LinkEvents>,
    manager: Manager,
    log: Writer,
    /// Held until the process ends.
    _lock: Option<fs::File>,
}

fn start(args: &ServeArgs) -> anyhow::Result<Started> {
    // 0. What a service manager has left to this process, before anything else is open.
    let mut passed = Passed::take()?;
    let stored = passed.stored();
    let for_clients = passed.listener(Scope::Own, args.socket.as_deref())?;
    let for_operators = passed.listener(Scope::All, args.control_socket.as_deref())?;

    // 1. Root, and an account to end as. And as many fds as the kernel lets us have: each lease takes one for each queue.
    place::demand_root("serve must be started by root; it gives root up by itself (see --user)")?;
    let account = account(&args.user)?;
    let open_files = open_files::raise()?;

    // 2. The policy: a wrong one never starts the daemon. NSS is asked for names here, and never later.
    let (origin, loaded) = policy(args)?;

    // 3. One broker for each run directory. What is made from here on goes again if nothing comes of it.
    let sink = audit_sink(args.audit_log.as_deref())?;
    let mut place = Place::take(&args.run_dir, account)?;

    // 4. The private directory in bpffs, and what a broker before this one has left there and in the run directory.
    place.will_make(&args.bpf_dir);
    let pins = PinDirectory::create(&args.bpf_dir, account)?;
    let judge = Judge {
        policy: &loaded.policy,
        owners: &[0, account.uid],
        stored: &stored,
    };
    let heritage = Heritage::find(&args.run_dir, Some(&pins), judge)?;
    open_files::demand_for(heritage.leases.len())?;
    let journal = Journal::open(&args.run_dir, place.lock_file()?)?;
    let locks = queue_lock_parts(&loaded.policy, &args.run_dir, &pins, &stored)?;

    // 5. The sockets, with their final modes, and the kernel's news of devices.
    let listeners = [
        listener(for_clients, Scope::Own, args.socket.as_deref(), &args.run_dir)?,
        listener(
            for_operators,
            Scope::All,
            args.control_socket.as_deref(),
            &args.run_dir,
        )?,
    ];
    let mut links = vec![
        LinkEvents::links().context("cannot watch devices over rtnetlink")?,
        LinkEvents::routes().context("cannot watch routes over rtnetlink")?,
    ];
    match LinkEvents::queues() {
        Ok(queues) => links.push(queues),
        Err(error) => {
            tracing::warn!(%error, "no news of queue counts: the kernel has no ethtool over netlink");
        }
    }

    // 6. aya probes the kernel once, and finds less with less: a program's name, for one, takes CAP_PERFMON to probe.
    let features = aya::features();
    tracing::debug!(?features, "what aya found in the kernel");

    // 7. Give root up, for good.
    privileges::drop_to(account)?;
    if let Some((path, error)) = origin.first_unreadable(&loaded.files) {
        tracing::warn!(
            "{} cannot be read by uid {} ({error}), so the policy cannot be reloaded: chmod 0644, or chgrp and 0640",
            path.display(),
            account.uid
        );
    }

    // 8. Signals are heard before it is said that it serves: whoever has read that may stop it.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot make the runtime")?;
    let signals = {
        let _on_it = runtime.enter();
        Signals::hear()?
    };

    // 9. The engine's thread keeps the four capabilities permitted; this one, which talks to clients, keeps none.
    let accounts = Accounts::new(loaded.policy.limits().within_open_files(open_files));
    let message = format!(
        "serving {} and {} as uid {}",
        listeners[0].path().display(),
        listeners[1].path().display(),
        account.uid
    );
    let audit = Audit::new();
    audit.write(&Line::new(Event::Started).message(&message));
    tracing::info!("{message}; rules: {}", loaded.policy.rule_count());
    let manager = Manager::of_this_process()?;
    let parts = Parts {
        policy: loaded.policy,
        policy_source: PolicySource::new(origin),
        accounts: accounts.clone(),
        audit: audit.clone(),
        pins,
        journal,
        heritage,
        stored,
        manager: manager.clone(),
        locks,
    };
    let engine = engine::start(parts)?;
    privileges::renounce()?;

    // 10. What is said above is written by a thread that has no capability either.
    let log = Writer::start(&audit, sink)?;
    Ok(Started {
        runtime,
        signals,
        listeners,
        engine,
        accounts,
        links,
        manager,
        log,
        _lock: place.keep(),
    })
}

/// The socket for clients of that scope: a service manager's, or one of our own.
fn listener(
    passed: Option<PassedSocket>,
    scope: Scope,
    wanted: Option<&Path>,
    run_dir: &Path,
) -> anyhow::Result<Listener> {
    if let Some(socket) = passed {
        return Ok(Listener::passed(socket, scope)?);
    }
    let name = match scope {
        Scope::Own => "broker.sock",
        Scope::All => "control.sock",
    };
    let path = wanted.map_or_else(|| run_dir.join(name), Path::to_owned);
    Ok(Listener::bind(&path, scope)?)
}

/// What queue locks take that only root can make: a policy that is read later may want them.
fn queue_lock_parts(
    policy: &Policy,
    run_dir: &Path,
    pins: &PinDirectory,
    stored: &fd_store::Passed,
) -> anyhow::Result<queue_lock::Parts> {
    let scratch = Scratch::create()?.map_err(|failure| chain(&failure));
    let taints = Taints::read(run_dir)?;
    let directory = || pins.duplicate().context("cannot duplicate an fd");
    // Every bind and every socket option of the machine asks it: only where it is wanted, or confines what a broker before
    // this has handed out.
    let lsm = match policy.wants_lsm() || queue_lock::is_left_in(directory()?)? {
        true => Lsm::load(directory()?).map_err(|reason| chain(&reason)),
        false => Err("the policy wanted no such lock when the broker was started: restart it".to_owned()),
    };
    if let (Ok(lsm), true) = (&lsm, stored.has_nothing_of_ours()) {
        lsm.end_all_others();
    }
    Ok(queue_lock::Parts { scratch, taints, lsm })
}

/// The policy, with what it may want to be told on standard error.
fn policy(args: &ServeArgs) -> anyhow::Result<(Origin, Loaded)> {
    let strictness = match args.strict {
        true => Strictness::WarningsAreErrors,
        false => Strictness::WarningsPass,
    };
    let (origin, loaded) = Origin::load(&args.policy, strictness)?;
    for warning in &loaded.warnings {
        eprintln!("{warning}");
    }
    Ok((origin, loaded))
}

/// The account to end as, by name or number.
fn account(user: &str) -> anyhow::Result<Account> {
    let found = User::look_up(user).with_context(|| {
        format!(
            "there is nobody to end as: make the user with\n  useradd --system --no-create-home --shell /usr/sbin/nologin {user}\nor name another with --user"
        )
    })?;
    if found.uid == 0 || found.gid == 0 {
        bail!("--user {user} is root or in root's group: name a user of the broker's own");
    }
    Ok(Account {
        uid: found.uid,
        gid: found.gid,
    })
}

fn audit_sink(path: Option<&Path>) -> anyhow::Result<Sink> {
    match path {
        Some(path) => Ok(Sink::open(path)?),
        None => Sink::stdout().context("cannot duplicate standard output"),
    }
}
