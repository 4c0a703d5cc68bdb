//! The real broker, running on the host's side of a world.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rustix::process::{Resource, Rlimit, Signal, setrlimit};
use xsk_client::Broker as Client;

use crate::binaries;
use crate::connector::Connector;
use crate::patience::stretched;
use crate::process::Process;
use crate::service_manager::Service;
use crate::sys;
use crate::uids::{Uid, User};
use crate::world::{Side, World};

/// How long it may take to answer, or to stop.
const PATIENCE: Duration = Duration::from_secs(20);

/// Where one broker has its things. Two in one world differ by name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Paths {
    name: String,
    pins: String,
}

impl Paths {
    /// With the default name these are the paths that the broker and its clients use when they are told none.
    pub fn new(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            pins: name.to_owned(),
        }
    }

    /// `--run-dir`
    pub fn run_dir(&self) -> PathBuf {
        Path::new("/run").join(&self.name)
    }

    /// `--bpf-dir`
    pub fn bpf_dir(&self) -> PathBuf {
        Path::new("/run/bpf").join(&self.pins)
    }

    /// `--socket`
    pub fn socket(&self) -> PathBuf {
        self.run_dir().join("broker.sock")
    }

    /// `--control-socket`
    pub fn control_socket(&self) -> PathBuf {
        self.run_dir().join("control.sock")
    }

    /// `--policy`
    pub fn policy(&self) -> PathBuf {
        Path::new("/run").join(format!("{}.toml", self.name))
    }
}

/// A broker to be started.
#[derive(Debug, Clone)]
pub struct BrokerBuilder {
    paths: Paths,
    arguments: Vec<String>,
    environment: Vec<(String, String)>,
    open_files: Option<u64>,
    stdout: Option<Arc<OwnedFd>>,
    service: Option<Service>,
}

impl BrokerBuilder {
    /// Another name than `xsk-broker`.
    #[must_use]
    pub fn name(mut self, name: &str) -> Self {
        self.paths = Paths::new(name);
        self
    }

    /// More arguments for `serve`.
    #[must_use]
    pub fn arguments(mut self, arguments: &[&str]) -> Self {
        self.arguments.extend(arguments.iter().map(ToString::to_string));
        self
    }

    /// A variable of its environment, which is empty else.
    #[must_use]
    pub fn environment(mut self, name: &str, value: &str) -> Self {
        self.environment.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Its RLIMIT_NOFILE, for good.
    #[must_use]
    pub fn open_files(mut self, most: u64) -> Self {
        self.open_files = Some(most);
        self
    }

    /// Its standard output, which [`BrokerProcess::audit`] does not see then.
    #[must_use]
    pub fn stdout(mut self, fd: OwnedFd) -> Self {
        self.stdout = Some(Arc::new(fd));
        self
    }

    /// Started by a service manager, with what that passes and limits.
    #[must_use]
    pub fn service(mut self, service: Service) -> Self {
        self.service = Some(service);
        self
    }

    /// Writes the policy, starts the broker, and waits until it answers.
    pub fn start<'w>(self, world: &'w World, policy: &str) -> Result<BrokerProcess<'w>> {
        let mut broker = self.launch(world, policy)?;
        broker.wait_until_it_answers()?;
        Ok(broker)
    }

    /// Writes the policy and starts the broker, without waiting: for one that is expected to refuse.
    pub fn launch<'w>(self, world: &'w World, policy: &str) -> Result<BrokerProcess<'w>> {
        write_policy(world, &self.paths, policy)?;
        let uid = Uid::take()?;
        let process = spawn(world, &self, &uid)?;
        Ok(BrokerProcess {
            world,
            builder: self,
            uid,
            process,
            connectors: Mutex::default(),
        })
    }
}

/// A running broker, as a uid of the pool. Dropping it kills it with SIGKILL.
#[derive(Debug)]
pub struct BrokerProcess<'w> {
    world: &'w World,
    builder: BrokerBuilder,
    uid: Uid,
    process: Process,
    /// By uid: who connects for it. A process lives as long as the broker, and so do its leases.
    connectors: Mutex<BTreeMap<u32, Arc<Connector>>>,
}

impl<'w> BrokerProcess<'w> {
    /// One with the default name and paths.
    pub fn builder() -> BrokerBuilder {
        BrokerBuilder {
            paths: Paths::new("xsk-broker"),
            arguments: Vec::new(),
            environment: vec![("RUST_BACKTRACE".to_owned(), "1".to_owned())],
            open_files: None,
            stdout: None,
            service: None,
        }
    }

    /// Starts one with the default name and paths, and waits until it answers.
    pub fn start(world: &'w World, policy: &str) -> Result<Self> {
        Self::builder().start(world, policy)
    }

    /// A process of that user, the same one each time, which connects for it.
    pub fn connector(&self, user: &Uid) -> Result<Arc<Connector>> {
        let mut connectors = self.connectors.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(connector) = connectors.get(&user.number()) {
            return Ok(Arc::clone(connector));
        }
        let connector = Arc::new(Connector::start(self.world, &user.user())?);
        connectors.insert(user.number(), Arc::clone(&connector));
        Ok(connector)
    }

    /// Ends those processes, and so their leases.
    pub fn dismiss_connectors(&self) {
        let mut connectors = self.connectors.lock().unwrap_or_else(PoisonError::into_inner);
        connectors.clear();
    }

    /// The library's client over a connection of that user's process.
    pub fn client_of(&self, user: &Uid) -> Result<Client> {
        let path = self.paths().socket();
        let stream = self.connector(user)?.connect(&path);
        Ok(Client::over(
            stream.with_context(|| format!("connecting to {}", path.display()))?,
        ))
    }

    /// Its files, as those inside of the world see them.
    pub fn paths(&self) -> &Paths {
        &self.builder.paths
    }

    /// The uid that it runs as.
    pub fn uid(&self) -> u32 {
        self.uid.number()
    }

    /// Has it started with another `--bpf-dir` from now on, by the name in the file system.
    pub fn will_pin_in(&mut self, name: &str) {
        name.clone_into(&mut self.builder.paths.pins);
    }

    /// Its process: pid, audit lines (standard output), log (standard error), signals.
    pub fn process(&self) -> &Process {
        &self.process
    }

    /// The broker socket, as this process can connect to it from any thread.
    pub fn socket(&self) -> PathBuf {
        outside(self.world, &self.paths().socket())
    }

    /// The control socket, as this process can connect to it from any thread.
    pub fn control_socket(&self) -> PathBuf {
        outside(self.world, &self.paths().control_socket())
    }

    /// The audit log until now: one JSON object a line.
    pub fn audit(&self) -> Result<Vec<serde_json::Value>> {
        let lines = self.process.stdout();
        // Before it became the broker, a service's process had another program.
        let is_before = |line: &&String| self.builder.service.is_some() && !line.starts_with('{');
        lines
            .iter()
            .skip_while(is_before)
            .map(|line| serde_json::from_str(line).with_context(|| line.clone()))
            .collect()
    }

    /// Waits for an audit line, be it an old one.
    pub fn wait_audit(
        &self,
        timeout: Duration,
        mut wanted: impl FnMut(&serde_json::Value) -> bool,
    ) -> Result<serde_json::Value> {
        self.process.wait_stdout(timeout, |line| {
            serde_json::from_str(line).ok().filter(|value| wanted(value))
        })
    }

    /// Runs the broker's CLI on the host's side as root and waits for its end.
    pub fn cli(&self, arguments: &[&str]) -> Result<Output> {
        cli(self.world, None, arguments)
    }

    /// The same as an ordinary user.
    pub fn cli_as(&self, user: &User, arguments: &[&str]) -> Result<Output> {
        cli(self.world, Some(user), arguments)
    }

    /// Replaces the policy file. The broker does not know of it yet.
    pub fn write_policy(&self, policy: &str) -> Result<()> {
        write_policy(self.world, self.paths(), policy)
    }

    /// SIGKILL: it gets no chance to clean up.
    pub fn kill(&mut self) -> Result<ExitStatus> {
        self.process.kill()
    }

    /// SIGTERM, and its end.
    pub fn stop(&mut self) -> Result<ExitStatus> {
        self.process.signal(Signal::TERM)?;
        self.process.wait(PATIENCE)
    }

    /// Whether it runs.
    pub fn is_running(&mut self) -> Result<bool> {
        self.process.is_running()
    }

    /// Waits for an end that comes by itself.
    pub fn wait(&mut self) -> Result<ExitStatus> {
        self.process.wait(PATIENCE)
    }

    /// Starts it anew, with the same paths and the same uid, after it has ended. Its output starts anew as well.
    pub fn restart(&mut self) -> Result<()> {
        ensure!(!self.process.is_running()?, "the broker still runs");
        self.process = spawn(self.world, &self.builder, &self.uid)?;
        self.wait_until_it_answers()
    }

    /// The same with a variable of its environment for this one time, and without waiting: for one that is expected to end.
    pub fn relaunch_with(&mut self, name: &str, value: &str) -> Result<()> {
        let mut builder = self.builder.clone();
        builder.environment.push((name.to_owned(), value.to_owned()));
        self.relaunch(&builder)
    }

    /// The same with that RLIMIT_NOFILE.
    pub fn relaunch_within(&mut self, open_files: u64) -> Result<()> {
        let builder = self.builder.clone().open_files(open_files);
        self.relaunch(&builder)
    }

    fn relaunch(&mut self, builder: &BrokerBuilder) -> Result<()> {
        ensure!(!self.process.is_running()?, "the broker still runs");
        self.process = spawn(self.world, builder, &self.uid)?;
        Ok(())
    }

    /// Waits until it answers.
    pub fn wait_until_it_answers(&mut self) -> Result<()> {
        let deadline = Instant::now() + stretched(PATIENCE);
        loop {
            let Err(error) = ask_for_info(&self.socket()) else {
                return Ok(());
            };
            if !self.process.is_running()? {
                let status = self.process.wait(PATIENCE)?;
                bail!(
                    "the broker ended at once, with {status}: {}",
                    self.process.last_words()
                );
            }
            if Instant::now() > deadline {
                return Err(error
                    .context(self.process.last_words())
                    .context("the broker does not answer"));
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

/// What a command printed, and how it ended.
#[derive(Debug, Clone)]
pub struct Output {
    /// Its exit code; `None` where a signal ended it.
    pub code: Option<i32>,
    /// Its standard output.
    pub stdout: String,
    /// Its standard error.
    pub stderr: String,
}

/// Runs the broker's CLI on the host's side, as `user` or else as root, and waits for its end; no broker needs to
/// run.
pub fn cli(world: &World, user: Option<&User>, arguments: &[&str]) -> Result<Output> {
    let mut process = start_cli(world, user, arguments)?;
    let status = process.wait(PATIENCE)?;
    let text = |lines: Vec<String>| lines.iter().map(|line| format!("{line}\n")).collect();
    Ok(Output {
        code: status.code(),
        stdout: text(process.stdout()),
        stderr: text(process.stderr()),
    })
}

/// The same without waiting: for `grant … -- COMMAND`, which becomes the command.
pub fn start_cli(world: &World, user: Option<&User>, arguments: &[&str]) -> Result<Process> {
    let mut command = Command::new(world.install("xsk-broker", &binaries::broker()?)?);
    command.env_clear().env("RUST_BACKTRACE", "1").args(arguments);
    Process::spawn(world.namespace(Side::Host), user, command)
}

fn spawn(world: &World, builder: &BrokerBuilder, uid: &Uid) -> Result<Process> {
    let paths = &builder.paths;
    let program = world.install("xsk-broker", &binaries::broker()?)?;
    let options = [
        ("--policy", paths.policy()),
        ("--run-dir", paths.run_dir()),
        ("--bpf-dir", paths.bpf_dir()),
        ("--socket", paths.socket()),
        ("--control-socket", paths.control_socket()),
        ("--user", uid.number().to_string().into()),
    ];
    let mut arguments = vec!["serve".to_owned()];
    for (option, value) in options {
        arguments.extend([option.to_owned(), value.display().to_string()]);
    }
    arguments.extend(builder.arguments.iter().cloned());
    if let Some(service) = &builder.service {
        return service.start(world, &program, &arguments, &builder.environment);
    }
    let mut command = Command::new(program);
    command
        .env_clear()
        .envs(builder.environment.iter().map(|(name, value)| (name, value)))
        .args(&arguments);
    if let Some(most) = builder.open_files {
        let limit = Rlimit {
            current: Some(most),
            maximum: Some(most),
        };
        sys::before_exec(&mut command, move || Ok(setrlimit(Resource::Nofile, limit)?));
    }
    if let Some(stdout) = &builder.stdout {
        let stdout = Arc::clone(stdout);
        sys::before_exec(&mut command, move || sys::become_stdout(&stdout));
    }
    Process::spawn(world.namespace(Side::Host), None, command)
}

fn write_policy(world: &World, paths: &Paths, policy: &str) -> Result<()> {
    let inside = paths.policy();
    world.write(inside.strip_prefix("/run")?, policy, 0o644).map(drop)
}

fn outside(world: &World, inside: &Path) -> PathBuf {
    world.path(inside.strip_prefix("/run").unwrap_or(inside))
}

/// `org.varlink.service.GetInfo`, by hand: whoever answers it is up.
fn ask_for_info(socket: &Path) -> Result<()> {
    let mut stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(stretched(Duration::from_secs(5))))?;
    stream.write_all(b"{\"method\":\"org.varlink.service.GetInfo\"}\0")?;
    let mut answer = Vec::new();
    let mut byte = [0];
    loop {
        stream.read_exact(&mut byte)?;
        if byte == [0] {
            break;
        }
        answer.push(byte[0]);
    }
    let answer: serde_json::Value = serde_json::from_slice(&answer)?;
    ensure!(
        answer["parameters"]["interfaces"].is_array(),
        "an unexpected answer: {answer}"
    );
    Ok(())
}
