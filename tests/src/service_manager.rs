//! A stand-in for a service manager: it opens sockets, starts the broker with them, and hears what the broker says.
//!
//! The process is started as systemd does it: with fds from 3 on, LISTEN_FDS, LISTEN_PID and LISTEN_FDNAMES, a
//! NOTIFY_SOCKET, and no more capabilities than a unit leaves it. Since a pid is known only to the process itself, this
//! test program is started first, as [`as_service`], and becomes the service.

use std::collections::BTreeMap;
use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixDatagram, UnixListener};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use command_fds::{CommandFdExt, FdMapping};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketFlags, SocketType, recvmsg, sendmsg, socketpair, sockopt,
};
use rustix::process::Signal;
use rustix::thread::CapabilitySet;
use serde_json::{Value, json};

use crate::binaries;
use crate::holder;
use crate::patience::stretched;
use crate::process::Process;
use crate::world::{Side, World};

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

    /// Passes nothing more, and closes what it passed.
    pub fn close_all(&self) {
        self.service.lock().fds.clear();
    }

    /// What the service says next.
    pub fn hear(&self, timeout: Duration) -> Result<Said> {
        let timeout = Some(stretched(timeout));
        sockopt::set_socket_timeout(&self.notify, sockopt::Timeout::Recv, timeout)?;
        let mut bytes = vec![0; MAX_BYTES];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS), ScmCredentials(1))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let received = recvmsg(
            &self.notify,
            &mut [IoSliceMut::new(&mut bytes)],
            &mut control,
            RecvFlags::CMSG_CLOEXEC,
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
            for fd in fds {
                self.pass(name, fd);
            }
        } else if said.value("FDSTOREREMOVE") == "1" {
            self.service.lock().fds.retain(|(stored, _)| stored != name);
        }
        Ok(())
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

impl Service {
    fn lock(&self) -> MutexGuard<'_, Started> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
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

/// The body of a test program that becomes a service.
///
/// # Panics
///
/// Where it cannot.
#[expect(clippy::panic, reason = "it is the body of a test")]
pub fn as_service(_arguments: &[String]) {
    let Err(error) = become_service();
    panic!("cannot become the service: {error:?}");
}

fn become_service() -> Result<std::convert::Infallible> {
    let mut bytes = vec![0; MAX_BYTES];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let received = recvmsg(
        std::io::stdin(),
        &mut [IoSliceMut::new(&mut bytes)],
        &mut control,
        RecvFlags::CMSG_CLOEXEC,
    )?;
    let mut fds: Vec<OwnedFd> = Vec::new();
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = message {
            fds.extend(rights);
        }
    }
    let order: Value = serde_json::from_slice(bytes.get(..received.bytes).unwrap_or_default())?;
    let text = |value: &Value| value.as_str().map(str::to_owned).context("no text");
    let list = |name: &str| -> Result<Vec<String>> {
        order[name]
            .as_array()
            .context("no list")?
            .iter()
            .map(text)
            .collect()
    };
    let mut command = Command::new(PathBuf::from(text(&order["program"])?));
    command.args(list("arguments")?).env_clear().stdin(Stdio::null());
    for (name, value) in order["environment"].as_object().context("no environment")? {
        command.env(name, text(value)?);
    }
    let names = list("names")?;
    ensure!(names.len() == fds.len(), "fds were lost on the way");
    if !fds.is_empty() {
        command
            .env("LISTEN_FDS", fds.len().to_string())
            .env("LISTEN_PID", std::process::id().to_string())
            .env("LISTEN_FDNAMES", names.join(":"));
        let mappings = (3..)
            .zip(fds)
            .map(|(child_fd, parent_fd)| FdMapping { parent_fd, child_fd });
        command.fd_mappings(mappings.collect())?;
    }
    if let Some(kept) = order["capabilities"].as_u64() {
        cut_bounding_set(CapabilitySet::from_bits_retain(kept))?;
    }
    // It was the main thread that was to die with the test.
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
    Err(command.exec()).context("exec")
}

fn cut_bounding_set(kept: CapabilitySet) -> Result<()> {
    for number in 0..64 {
        let capability = CapabilitySet::from_bits_retain(1 << number);
        if kept.contains(capability) {
            continue;
        }
        match rustix::thread::remove_capability_from_bounding_set(capability) {
            Ok(()) => {}
            // Beyond the last one that this kernel knows.
            Err(rustix::io::Errno::INVAL) => break,
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}
