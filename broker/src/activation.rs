//! Sockets that a service manager has opened and left to this process (sd_listen_fds(3)).
//!
//! **Invariants**: nothing is taken that was meant for another process; and what is taken is what its name says, or the
//! daemon does not start: a socket of another kind, or one that everybody may operate the broker by, is a mistake.

#![expect(unsafe_code, reason = "inherited fds are numbers until somebody owns them")]

use std::fs;
use std::io;
use std::os::fd::{AsFd, FromRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::net::{AddressFamily, SocketType, sockopt};

use crate::fd_store;
use crate::report::Scope;

/// What is wrong with what was passed.
#[derive(Debug, thiserror::Error)]
pub enum ActivationError {
    /// The environment and the fds do not agree.
    #[error(
        "LISTEN_FDS, LISTEN_PID and LISTEN_FDNAMES of the environment do not agree with each other or with what is open"
    )]
    Environment(#[source] io::Error),
    /// A name that nobody here knows.
    #[error(
        "the service manager has passed a socket by the name {0:?}, and `broker` and `control` are expected: write \
         FileDescriptorName=broker or FileDescriptorName=control in its .socket unit"
    )]
    UnknownName(String),
    /// One name for two.
    #[error("the service manager has passed two sockets by the name `{0}`")]
    Twice(&'static str),
    /// Another kind of file or socket.
    #[error(
        "what the service manager has passed by the name `{0}` is no listening stream socket of AF_UNIX: its .socket unit \
         needs ListenStream= with a path, and Accept=no"
    )]
    NotListening(&'static str),
    /// Nobody could say who may connect to it.
    #[error("the socket that the service manager has passed by the name `{0}` is bound to no path")]
    NoPath(&'static str),
    /// Its path cannot be looked at.
    #[error("cannot look at {path}, by which the service manager has passed `{name}`")]
    Unseen {
        name: &'static str,
        path: PathBuf,
        source: io::Error,
    },
    /// Whoever connects is an operator.
    #[error(
        "everybody may connect to {} (mode {mode:04o}), the socket for operators: write SocketMode=0600 in its .socket unit",
        path.display()
    )]
    OpenToAll { path: PathBuf, mode: u32 },
    /// The command line says so too, and says something else.
    #[error(
        "the service manager has passed `{name}` on {}, and the command line wants it on {}: leave one of them out",
        path.display(), wanted.display()
    )]
    TwoPaths {
        name: &'static str,
        path: PathBuf,
        wanted: PathBuf,
    },
}

/// What was passed and is not in use yet.
#[derive(Debug)]
pub struct Passed(Vec<(String, OwnedFd)>);

/// A socket that was passed.
#[derive(Debug)]
pub struct PassedSocket {
    /// The socket.
    pub socket: UnixListener,
    /// Where clients connect to it.
    pub path: PathBuf,
}

impl Passed {
    /// Takes everything that was passed to this process. To be called first of all, once.
    ///
    /// # Errors
    ///
    /// [`ActivationError::Environment`], [`ActivationError::UnknownName`].
    pub fn take() -> Result<Self, ActivationError> {
        static TAKEN: AtomicBool = AtomicBool::new(false);

        if TAKEN.swap(true, Ordering::AcqRel) {
            return Ok(Self(Vec::new()));
        }
        let fds = sd_notify::listen_fds().map_err(ActivationError::Environment)?;
        // Of another process's the names are none of ours.
        let names: Vec<String> = match std::env::var("LISTEN_FDNAMES") {
            _ if fds.len() == 0 => Vec::new(),
            Ok(names) => names.split(':').map(str::to_owned).collect(),
            Err(_) => vec!["unknown".to_owned(); fds.len()],
        };
        if names.len() != fds.len() {
            let found = format!("{} fds, {} names", fds.len(), names.len());
            return Err(ActivationError::Environment(io::Error::other(found)));
        }
        let take = |(fd, name)| {
            // SAFETY: it is open (setting close-on-exec has succeeded), and nobody else in this process owns it: LISTEN_PID
            // says that it was left to exactly this process, whose first act this is, and `TAKEN` that this is the only
            // take.
            (name, unsafe { OwnedFd::from_raw_fd(fd) })
        };
        let passed: Vec<(String, OwnedFd)> = fds.zip(names).map(take).collect();
        // What listens comes from a .socket unit; anything else some process of this service has stored.
        let is_unknown = |(name, fd): &&(String, OwnedFd)| {
            !is_of_listener(name) && sockopt::socket_acceptconn(fd).is_ok_and(|listens| listens)
        };
        match passed.iter().find(is_unknown) {
            Some((unknown, _)) => Err(ActivationError::UnknownName(unknown.clone())),
            None => Ok(Self(passed)),
        }
    }

    /// Takes what an earlier process of this service has stored there.
    pub fn stored(&mut self) -> fd_store::Passed {
        let mut stored = fd_store::Passed::default();
        let (listeners, others) = self.0.drain(..).partition(|(name, _)| is_of_listener(name));
        self.0 = listeners;
        let others: Vec<(String, OwnedFd)> = others;
        for (name, fd) in others {
            stored.add(&name, fd);
        }
        stored
    }

    /// Takes the socket that clients of that scope connect to, if it was passed. `wanted` is where the command line has it.
    ///
    /// # Errors
    ///
    /// [`ActivationError`]: it is not what it should be.
    pub fn listener(
        &mut self,
        scope: Scope,
        wanted: Option<&Path>,
    ) -> Result<Option<PassedSocket>, ActivationError> {
        let name = name_of(scope);
        let (mine, others) = self.0.drain(..).partition(|(passed, _)| passed == name);
        self.0 = others;
        let mut mine: Vec<(String, OwnedFd)> = mine;
        let Some((_, fd)) = mine.pop() else {
            return Ok(None);
        };
        if !mine.is_empty() {
            return Err(ActivationError::Twice(name));
        }
        if !is_listening(&fd) {
            return Err(ActivationError::NotListening(name));
        }
        let socket = UnixListener::from(fd);
        let path = match socket.local_addr() {
            Ok(address) => address.as_pathname().map(Path::to_owned),
            Err(_) => None,
        };
        let path = path.ok_or(ActivationError::NoPath(name))?;
        if let Some(wanted) = wanted.filter(|wanted| *wanted != path) {
            let wanted = wanted.to_owned();
            return Err(ActivationError::TwoPaths { name, path, wanted });
        }
        let (uid, mode) = match fs::symlink_metadata(&path) {
            Ok(found) => (found.uid(), found.mode() & 0o777),
            Err(source) => return Err(ActivationError::Unseen { name, path, source }),
        };
        // To connect takes the right to write.
        if scope == Scope::All && mode & 0o002 != 0 {
            return Err(ActivationError::OpenToAll { path, mode });
        }
        tracing::info!(
            "socket `{name}` comes from the service manager: {}, mode {mode:04o}, uid {uid}",
            path.display()
        );
        Ok(Some(PassedSocket { socket, path }))
    }
}

/// The name of a socket, as `FileDescriptorName=` gives it.
fn name_of(scope: Scope) -> &'static str {
    match scope {
        Scope::Own => "broker",
        Scope::All => "control",
    }
}

fn is_of_listener(name: &str) -> bool {
    [Scope::Own, Scope::All].map(name_of).contains(&name)
}

fn is_listening(fd: impl AsFd) -> bool {
    sockopt::socket_domain(&fd).is_ok_and(|domain| domain == AddressFamily::UNIX)
        && sockopt::socket_type(&fd).is_ok_and(|kind| kind == SocketType::STREAM)
        && sockopt::socket_acceptconn(&fd).is_ok_and(|listens| listens)
}
