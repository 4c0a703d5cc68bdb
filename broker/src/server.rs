//! The two sockets: accepts, learns who connected, and gives each client a task of its own.
//!
//! It runs on the main thread, which holds no capability. An error on one connection, or in accepting one, never ends
//! the daemon.

use std::fs;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::net::UnixListener as StdListener;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rustix::fs::Mode;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::oneshot;
use xsk_client::wire::{BrokerError, encode};

use crate::activation::PassedSocket;
use crate::adopt::Adopted;
use crate::charge::{Accounts, Charge};
use crate::connection::Connection;
use crate::end::{self, Reason, StopFor};
use crate::engine::{Engine, EngineHandle, Running, Turn};
use crate::error::{Failure, chain};
use crate::identity::Peer;
use crate::kernel::link_events::LinkEvents;
use crate::kernel::peer::refuse_passed_fds;
use crate::kernel::readable::Readable;
use crate::links;
use crate::manager::Manager;
use crate::notify;
use crate::quota::Resource;
use crate::reload;
use crate::report::Scope;
use crate::signals::{Asked, Signals};
use crate::watch::Watch;

/// How many may wait to be accepted; the kernel takes no more than net.core.somaxconn.
const BACKLOG: i32 = 4096;

/// A socket that clients connect to.
#[derive(Debug)]
pub struct Listener {
    socket: StdListener,
    path: PathBuf,
    scope: Scope,
    whose: Whose,
}

/// Who made a socket, and removes its file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Whose {
    Ours,
    ServiceManagers,
}

impl Listener {
    /// Binds the socket, with its final mode from the start. The caller holds the lock of the run directory, so that
    /// a socket which is there already is a leftover.
    ///
    /// # Errors
    ///
    /// What unlink and bind say.
    pub fn bind(path: &Path, scope: Scope) -> Result<Self, Failure> {
        let failed = |call, source: io::Error| Failure::kernel(call, path.display(), source);
        match fs::remove_file(path) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(failed("unlink", error)),
        }
        // The policy decides who may use the one; the other is its owner's alone.
        let mask = match scope {
            Scope::Own => Mode::XUSR | Mode::XGRP | Mode::XOTH,
            Scope::All => Mode::XUSR | Mode::RWXG | Mode::RWXO,
        };
        let before = rustix::process::umask(mask);
        let socket = StdListener::bind(path);
        rustix::process::umask(before);
        let socket = socket.map_err(|source| failed("bind", source))?;
        // What std has set is 128: fewer than connect at once on a busy host.
        rustix::net::listen(&socket, BACKLOG).map_err(|errno| failed("listen", errno.into()))?;
        Self::prepared(socket, path.to_owned(), scope, Whose::Ours)
    }

    /// Takes one that a service manager has bound.
    ///
    /// # Errors
    ///
    /// What fcntl says.
    pub fn passed(passed: PassedSocket, scope: Scope) -> Result<Self, Failure> {
        let PassedSocket { socket, path } = passed;
        Self::prepared(socket, path, scope, Whose::ServiceManagers)
    }

    fn prepared(socket: StdListener, path: PathBuf, scope: Scope, whose: Whose) -> Result<Self, Failure> {
        socket
            .set_nonblocking(true)
            .map_err(|source| Failure::kernel("fcntl(O_NONBLOCK)", path.display(), source))?;
        if let Err(error) = refuse_passed_fds(socket.as_fd()) {
            tracing::debug!(%error, "no SO_PASSRIGHTS here: fds that clients send are dropped by read(2)");
        }
        Ok(Self {
            socket,
            path,
            scope,
            whose,
        })
    }

    /// Where clients connect to it.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

/// Serves until a signal or until the engine stops.
///
/// # Errors
///
/// Where the runtime cannot be set up, or the engine stopped by itself.
pub async fn run(
    listeners: [Listener; 2],
    engine: Running,
    accounts: &Accounts,
    sources: Vec<LinkEvents>,
    manager: Manager,
    mut signals: Signals,
) -> Result<(), Failure> {
    let failed = |call| move |source| Failure::kernel(call, "the runtime", source);
    let mut paths = Vec::new();
    let mut tasks = tokio::task::JoinSet::new();
    for listener in listeners {
        let Listener {
            socket,
            path,
            scope,
            whose,
        } = listener;
        let socket = UnixListener::from_std(socket).map_err(failed("epoll of a listener"))?;
        tasks.spawn(accept(socket, scope, engine.handle.clone(), accounts.clone()));
        if whose == Whose::Ours {
            paths.push(path);
        }
    }
    tasks.spawn(watch_adopted(engine.adopted, engine.handle.clone()));
    for source in sources {
        let news = source
            .readable_fd()
            .and_then(Readable::new)
            .map_err(failed("epoll of netlink"))?;
        tasks.spawn(watch_links(source, news, engine.handle.clone()));
    }

    tasks.spawn(notify::watchdog(manager.clone(), engine.handle.clone()));
    notify::ready(&manager, &engine.handle).await?;

    let mut engine_ended = engine.ended;
    let stop_for = loop {
        tokio::select! {
            asked = signals.next() => match asked {
                Asked::Stop(stop_for) => break stop_for,
                Asked::Reload => drop(tasks.spawn(reload::at_signal(engine.handle.clone()))),
            },
            // Those that accept and watch go on for ever; a reload is over.
            Some(_) = tasks.join_next() => {}
            _ = &mut engine_ended => return Err(Failure::EngineStopped),
        }
    };
    notify::stopping(&manager);
    tasks.shutdown().await;
    stop(&engine.handle, engine_ended, stop_for).await?;
    for path in paths {
        if let Err(error) = fs::remove_file(&path) {
            tracing::warn!(path = %path.display(), %error, "cannot remove a socket");
        }
    }
    Ok(())
}

async fn stop(engine: &EngineHandle, ended: oneshot::Receiver<()>, stop_for: StopFor) -> Result<(), Failure> {
    let stop = move |engine: &mut Engine| end::stop(engine, stop_for);
    engine.call(Turn::First, stop).await?;
    engine.stop();
    // An error is the sender's drop: the thread's end, which is what we wait for.
    drop(ended.await);
    Ok(())
}

async fn accept(listener: UnixListener, scope: Scope, engine: EngineHandle, accounts: Accounts) {
    /// Where there are no fds left it helps nobody to try at once.
    const PAUSE: Duration = Duration::from_millis(50);

    loop {
        match listener.accept().await {
            Ok((stream, _)) => welcome(stream, scope, &engine, &accounts),
            Err(error) => {
                tracing::warn!(%error, "accept");
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
}

/// Learns who connected and starts serving them; whoever cannot be identified or has too many connections is closed.
fn welcome(stream: UnixStream, scope: Scope, engine: &EngineHandle, accounts: &Accounts) {
    // The cheapest question first: a storm of connections should cost as little as it can.
    let charge = match scope {
        Scope::All => None,
        Scope::Own => match charge(&stream, accounts) {
            Some(charge) => Some(charge),
            None => return,
        },
    };
    let peer = match Peer::from_connection(stream.as_fd()) {
        Ok(peer) => Arc::new(peer),
        Err(error) => {
            tracing::debug!("connection closed: {}", chain(&error));
            return;
        }
    };
    let engine = engine.clone();
    tokio::spawn(
        Connection {
            stream,
            peer,
            scope,
            engine,
            accounts: accounts.clone(),
            charge,
            unread: None,
        }
        .serve(),
    );
}

/// Charges a connection to its uid. `None`: it is one too many, which its client is told by the only answer that it gets,
/// whatever it asks.
fn charge(stream: &UnixStream, accounts: &Accounts) -> Option<Charge> {
    let uid = stream.peer_cred().ok()?.uid();
    let reached = match accounts.charge(uid, Resource::Connections, 1) {
        Ok(charge) => return Some(charge),
        Err(reached) => reached,
    };
    let error = BrokerError::from(reached);
    tracing::debug!("connection closed: {error}");
    // Nothing was sent yet, so there is room for it, unless the client is gone.
    let sent = encode(&error)
        .map_err(io::Error::from)
        .and_then(|message| stream.try_write(&message));
    if let Err(error) = sent {
        tracing::debug!(uid, %error, "cannot tell a client why its connection is closed");
    }
    None
}

/// Has the holders watched of leases that another broker granted.
async fn watch_adopted(adopted: oneshot::Receiver<Vec<Adopted>>, engine: EngineHandle) {
    // An error is the engine's end, of which `run` hears.
    for Adopted { lease, holder, ended } in adopted.await.unwrap_or_default() {
        match Watch::of(&holder) {
            Ok(watch) => drop(tokio::spawn(watch.until_exit(lease, ended, engine.clone()))),
            // A lease that nobody watches would never end.
            Err(failure) => {
                tracing::error!(lease = lease.0, "{}", chain(&failure));
                engine.post(move |engine| end::end(engine, lease, Reason::Restarted));
            }
        }
    }
}

async fn watch_links(source: LinkEvents, news: Readable, engine: EngineHandle) {
    loop {
        let Ok(mut ready) = news.ready().await else { return };
        match source.receive() {
            Ok(events) => events
                .into_iter()
                .for_each(|event| engine.post(move |engine| links::heed(engine, event))),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => ready.clear_ready(),
            Err(error) => {
                tracing::warn!(%error, "netlink");
                ready.clear_ready();
            }
        }
    }
}
