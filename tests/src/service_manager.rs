//! A stand-in for a service manager: it opens sockets, starts the broker with them, and hears what the broker says.
//!
//! The process is started as systemd does it: with fds from 3 on, LISTEN_FDS, LISTEN_PID and LISTEN_FDNAMES, a
//! NOTIFY_SOCKET, and no more capabilities than a unit leaves it. Since a pid is known only to the process itself, this
//! test program is started first, as [`as_service`], and becomes the service.

mod as_service;

use std::collections::BTreeMap;
use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixDatagram, UnixListener};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketFlags, SocketType, recvmsg, sendmsg, socketpair, sockopt,
};
use rustix::thread::CapabilitySet;
use serde_json::json;

use crate::binaries;
use crate::holder;
use crate::patience::stretched;
use crate::process::Process;
use crate::world::{Side, World};

pub use as_service::as_service;

/// At most this many fds are passed: more than fit in a message are none of its business.
const MAX_FDS: usize = 64;
/// Of a message to a service or from it.
const MAX_BYTES: usize = 64 * 1024;

/// The manager. Its sockets live as long as it does.
#[derive(Debug)]
pub struct ServiceManager<'w> {
    world: &'w World,
    notify: UnixDatagram,
    service: Service,
}

/// How a service is started. Cheap to clone; whoever has it starts with what the manager has then.
#[derive(Debug, Clone)]
pub struct Service(Arc<Mutex<Started>>);

#[derive(Debug)]
struct Started {
    fds: Vec<(String, OwnedFd)>,
    environment: BTreeMap<String, String>,
    /// What the bounding set is cut to.
    capabilities: Option<u64>,
}

/// What the service has said, and who it was.
#[derive(Debug, Clone)]
pub struct Said {
    /// Who sent it, as the kernel attests it.
    pub pid: u32,
    /// Each `NAME=VALUE`.
    pub fields: BTreeMap<String, String>,
}

impl Said {
    /// The value of one; empty where it was not said.
    pub fn value(&self, name: &str) -> &str {
        self.fields.get(name).map_or("", String::as_str)
    }
}

impl<'w> ServiceManager<'w> {
    /// One that passes nothing yet.
    pub fn new(world: &'w World) -> Result<Self> {
        let path = world.path("notify");
        let notify = UnixDatagram::bind(&path).context("binding the notify socket")?;
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o777))?;
        sockopt::set_socket_passcred(&notify, true)?;
        let environment = BTreeMap::from([("NOTIFY_SOCKET".to_owned(), "/run/notify".to_owned())]);
        Ok(Self {
            world,
            notify,
            service: Service(Arc::new(Mutex::new(Started {
                fds: Vec::new(),
                environment,
                capabilities: None,
            }))),
        })
    }

    /// What a broker is started by.
    pub fn service(&self) -> Service {
        self.service.clone()
    }

    /// A variable of the service's environment.
    pub fn set(&self, name: &str, value: &str) {
        self.service
            .lock()
            .environment
            .insert(name.to_owned(), value.to_owned());
    }

    /// Leaves the service no more than these capabilities.
    pub fn bound_to(&self, capabilities: CapabilitySet) {
        self.service.lock().capabilities = Some(capabilities.bits());
    }

    /// Opens a listening socket with that mode, and passes it by that name from the next start on.
    pub fn listen(&self, name: &str, inside: &Path, mode: u32) -> Result<()> {
        let listener = self.world.run_in(Side::Host, || -> Result<UnixListener> {
            std::fs::create_dir_all(inside.parent().context("a path without a directory")?)?;
            let listener = UnixListener::bind(inside)?;
            std::fs::set_permissions(inside, std::fs::Permissions::from_mode(mode))?;
            Ok(listener)
        })??;
        self.pass(name, listener.into());
        Ok(())
    }

    /// Passes any fd by that name from the next start on.
    pub fn pass(&self, name: &str, fd: OwnedFd) {
        self.service.lock().fds.push((name.to_owned(), fd));
    }

    /// Passes another fd by a name from the next start on, and closes the one that it had.
    pub fn replace(&self, name: &str, fd: OwnedFd) {
        self.service.lock().fds.retain(|(stored, _)| stored != name);
        self.pass(name, fd);
    }

    /// Says so much to itself that no more fits, as where it reads nothing for a while.
    pub fn stall(&self) -> Result<()> {
        let sender = UnixDatagram::unbound()?;
        sender.connect(self.world.path("notify"))?;
        sender.set_nonblocking(true)?;
        loop {
            match sender.send(b"STATUS=as much as fits\n") {
                Ok(_) => {}
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error).context("filling the notify socket"),
            }
        }
    }

    /// Passes nothing more, and closes what it passed.
    pub fn close_all(&self) {
        self.service.lock().fds.clear();
    }

    /// What the service says next.
    pub fn hear(&self, timeout: Duration) -> Result<Said> {
        let timeout = Some(stretched(timeout));
        sockopt::set_socket_timeout(&self.notify, sockopt::Timeout::Recv, timeout)?;
        self.service.hear(&self.notify, RecvFlags::empty())
    }

    /// Keeps and removes fds by itself as the service says, until what this gives is dropped. Nobody else is to hear what
    /// the service says meanwhile.
    pub fn tend(&self) -> Result<Tending> {
        Tending::start(self.notify.try_clone()?, self.service.clone())
    }

    /// The names of what is passed at the next start, in the order in which it came.
    pub fn names(&self) -> Vec<String> {
        let started = self.service.lock();
        started.fds.iter().map(|(name, _)| name.clone()).collect()
    }

    /// Hears what the service says until these are the names of what is passed.
    pub fn wait_names(&self, names: &[&str], timeout: Duration) -> Result<()> {
        while self.names() != names {
            self.hear(timeout)
                .with_context(|| format!("waiting for {names:?}, there are {:?}", self.names()))?;
        }
        Ok(())
    }
}

impl Drop for ServiceManager<'_> {
    fn drop(&mut self) {
        drop(std::fs::remove_file(self.world.path("notify")));
    }
}

impl Service {
    fn lock(&self) -> MutexGuard<'_, Started> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What the service says next, with what it asks for done.
    fn hear(&self, notify: &UnixDatagram, flags: RecvFlags) -> Result<Said> {
        let mut bytes = vec![0; MAX_BYTES];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS), ScmCredentials(1))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let received = recvmsg(
            notify,
            &mut [IoSliceMut::new(&mut bytes)],
            &mut control,
            RecvFlags::CMSG_CLOEXEC | flags,
        )
        .context("the service says nothing")?;
        let mut pid = None;
        let mut fds: Vec<OwnedFd> = Vec::new();
        for message in control.drain() {
            match message {
                RecvAncillaryMessage::ScmCredentials(sender) => {
                    pid = Some(sender.pid.as_raw_nonzero().get());
                }
                RecvAncillaryMessage::ScmRights(rights) => fds.extend(rights),
                _ => {}
            }
        }
        let text = std::str::from_utf8(bytes.get(..received.bytes).unwrap_or_default())?;
        let field = |line: &str| {
            line.split_once('=')
                .map(|(name, value)| (name.to_owned(), value.to_owned()))
        };
        let said = Said {
            pid: u32::try_from(pid.context("a message without its sender")?)?,
            fields: text.lines().filter_map(field).collect(),
        };
        self.store(&said, fds)?;
        Ok(said)
    }

    /// Does what a service manager with a store does: it keeps fds and passes them at each start, until they are removed.
    fn store(&self, said: &Said, fds: Vec<OwnedFd>) -> Result<()> {
        let name = said.value("FDNAME");
        if said.value("FDSTORE") == "1" {
            ensure!(
                fds.len() == 1 && !name.is_empty(),
                "{} fds to store: {said:?}",
                fds.len()
            );
            // Else it is polled, which has an AF_XDP socket transmit.
            ensure!(said.value("FDPOLL") == "0", "it is not to be polled: {said:?}");
            let named = fds.into_iter().map(|fd| (name.to_owned(), fd));
            self.lock().fds.extend(named);
        } else if said.value("FDSTOREREMOVE") == "1" {
            self.lock().fds.retain(|(stored, _)| stored != name);
        }
        Ok(())
    }

    /// Starts a program as this service on the host's side, as root.
    pub(crate) fn start(
        &self,
        world: &World,
        program: &Path,
        arguments: &[String],
        environment: &[(String, String)],
    ) -> Result<Process> {
        let started = self.lock();
        ensure!(started.fds.len() <= MAX_FDS, "too many fds to pass");
        let mut variables: BTreeMap<&str, &str> = environment
            .iter()
            .map(|(name, value)| (name.as_str(), value.as_str()))
            .collect();
        variables.extend(
            started
                .environment
                .iter()
                .map(|(name, value)| (name.as_str(), value.as_str())),
        );
        let names: Vec<&str> = started.fds.iter().map(|(name, _)| name.as_str()).collect();
        let order = json!({
            "program": program,
            "arguments": arguments,
            "environment": variables,
            "names": names,
            "capabilities": started.capabilities,
        });
        let (ours, theirs) = socketpair(
            AddressFamily::UNIX,
            SocketType::SEQPACKET,
            SocketFlags::CLOEXEC,
            None,
        )?;
        let fds: Vec<BorrowedFd<'_>> = started.fds.iter().map(|(_, fd)| fd.as_fd()).collect();
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !fds.is_empty() {
            ensure!(
                control.push(SendAncillaryMessage::ScmRights(&fds)),
                "no room for the fds"
            );
        }
        let order = order.to_string();
        sendmsg(
            &ours,
            &[IoSlice::new(order.as_bytes())],
            &mut control,
            SendFlags::NOSIGNAL,
        )
        .context("telling what to become")?;

        let body = binaries::this_program()?;
        let name = body
            .file_name()
            .and_then(|name| name.to_str())
            .context("a program without a name")?;
        let mut command = Command::new(world.install(name, &body)?);
        command
            .env_clear()
            .args(holder::BODY_OPTIONS)
            .env(holder::BODY, "as_service")
            .stdin(Stdio::from(theirs));
        Process::spawn_prepared(world.namespace(Side::Host), None, command)
    }
}

/// A manager that does what the service says while nobody looks.
#[derive(Debug)]
pub struct Tending {
    notify: Arc<Mutex<UnixDatagram>>,
    service: Service,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<Result<()>>>,
}

impl Tending {
    fn start(notify: UnixDatagram, service: Service) -> Result<Self> {
        const PAUSE: Duration = Duration::from_millis(1);

        let (notify, stop) = (Arc::new(Mutex::new(notify)), Arc::new(AtomicBool::new(false)));
        let mut tending = Self {
            notify,
            service,
            stop,
            thread: None,
        };
        let (notify, service, stop) = (
            Arc::clone(&tending.notify),
            tending.service.clone(),
            Arc::clone(&tending.stop),
        );
        let tend = move || {
            while !stop.load(Ordering::Relaxed) {
                hear_all(&notify, &service)?;
                thread::sleep(PAUSE);
            }
            Ok(())
        };
        tending.thread = Some(thread::Builder::new().name("manager".into()).spawn(tend)?);
        Ok(tending)
    }

    /// Everything that the service has said so far is done, as it is before a manager starts one anew.
    pub fn catch_up(&self) -> Result<()> {
        hear_all(&self.notify, &self.service)
    }

    /// Waits until something is so of the names of what is passed at the next start.
    pub fn wait(&self, timeout: Duration, mut so: impl FnMut(&[String]) -> bool) -> Result<()> {
        let give_up = Instant::now() + stretched(timeout);
        loop {
            let names: Vec<String> = self
                .service
                .lock()
                .fds
                .iter()
                .map(|(name, _)| name.clone())
                .collect();
            if so(&names) {
                return Ok(());
            }
            ensure!(Instant::now() < give_up, "there are {names:?}");
            thread::sleep(Duration::from_millis(1));
        }
    }
}

/// Whatever was said: `notify` is held until it is done.
fn hear_all(notify: &Mutex<UnixDatagram>, service: &Service) -> Result<()> {
    let notify = notify.lock().unwrap_or_else(PoisonError::into_inner);
    loop {
        match service.hear(&notify, RecvFlags::DONTWAIT) {
            Ok(_) => {}
            Err(error) if error.downcast_ref() == Some(&Errno::WOULDBLOCK) => return Ok(()),
            Err(error) => return Err(error),
        }
    }
}

impl Drop for Tending {
    #[expect(clippy::panic, reason = "it is a test's")]
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        let ended = self.thread.take().map(JoinHandle::join);
        if !matches!(ended, Some(Ok(Ok(())))) && !thread::panicking() {
            panic!("the stand-in for a service manager has failed: {ended:?}");
        }
    }
}
