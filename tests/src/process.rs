//! A child process whose output is kept line by line, and which ends with its [`Process`] or with the test.

use std::io::{BufRead, BufReader, Read};
use std::os::fd::OwnedFd;
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Condvar, Mutex, OnceLock, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use crate::namespace::Namespace;
use crate::patience::stretched;
use crate::sys;
use crate::uids::{CommandExt, User};

/// A running child. Dropping it kills it.
#[derive(Debug)]
pub struct Process {
    child: Child,
    pidfd: OwnedFd,
    stdout: Arc<Lines>,
    stderr: Arc<Lines>,
}

/// What a child has written to one of its outputs.
#[derive(Debug, Default)]
struct Lines {
    state: Mutex<LinesState>,
    more: Condvar,
}

#[derive(Debug, Default)]
struct LinesState {
    lines: Vec<String>,
    ended: bool,
}

impl Process {
    /// Starts a command inside of `namespace`, as `user` or else as root.
    ///
    /// The program is looked up inside; the working directory is `/`. It gets SIGKILL when this process ends.
    pub fn spawn(namespace: &Namespace, user: Option<&User>, mut command: Command) -> Result<Self> {
        command.stdin(Stdio::null());
        Ok(Self::start(namespace, user, command)?.0)
    }

    /// The same, with whatever standard input the command has.
    pub fn spawn_prepared(namespace: &Namespace, user: Option<&User>, command: Command) -> Result<Self> {
        Ok(Self::start(namespace, user, command)?.0)
    }

    /// The same, with a pipe to its standard input: for a program that is told what to do line by line.
    pub fn spawn_driven(
        namespace: &Namespace,
        user: Option<&User>,
        mut command: Command,
    ) -> Result<(Self, ChildStdin)> {
        command.stdin(Stdio::piped());
        let (process, stdin) = Self::start(namespace, user, command)?;
        Ok((process, stdin.context("the child has no pipe")?))
    }

    fn start(
        namespace: &Namespace,
        user: Option<&User>,
        mut command: Command,
    ) -> Result<(Self, Option<ChildStdin>)> {
        let what = format!("{}", command.get_program().display());
        let inside = namespace.clone();
        let parent = rustix::process::getpid();
        sys::before_exec(&mut command, move || inside.enter());
        if let Some(user) = user {
            command.as_user(user);
        }
        // After the change of uid, which clears it.
        sys::before_exec(&mut command, move || {
            rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
            // The parent may have died before that took effect.
            if rustix::process::getppid() == Some(parent) {
                Ok(())
            } else {
                Err(std::io::ErrorKind::NotFound.into())
            }
        });
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = fork(command).with_context(|| format!("starting {what}"))?;
        let stdout = Lines::collect(child.stdout.take())?;
        let stderr = Lines::collect(child.stderr.take())?;
        let pid = Pid::from_child(&child);
        // Not reaped yet, so the number is still the child's.
        let pidfd = pidfd_open(pid, PidfdFlags::empty()).context("pidfd_open")?;
        let stdin = child.stdin.take();
        let process = Self {
            child,
            pidfd,
            stdout,
            stderr,
        };
        Ok((process, stdin))
    }

    /// Its pid.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Its pidfd.
    pub fn pidfd(&self) -> &OwnedFd {
        &self.pidfd
    }

    /// All lines that it has written to its standard output until now.
    pub fn stdout(&self) -> Vec<String> {
        self.stdout.now()
    }

    /// All lines that it has written to its standard error until now.
    pub fn stderr(&self) -> Vec<String> {
        self.stderr.now()
    }

    /// Waits for a line on its standard output for which `wanted` has something, be it an old one.
    pub fn wait_stdout<T>(&self, timeout: Duration, wanted: impl FnMut(&str) -> Option<T>) -> Result<T> {
        self.stdout
            .wait(timeout, wanted)
            .with_context(|| self.last_words())
    }

    /// The same, on its standard error.
    pub fn wait_stderr<T>(&self, timeout: Duration, wanted: impl FnMut(&str) -> Option<T>) -> Result<T> {
        self.stderr
            .wait(timeout, wanted)
            .with_context(|| self.last_words())
    }

    /// Sends a signal. To one that has ended it is an error.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        pidfd_send_signal(&self.pidfd, signal).with_context(|| format!("signal {signal:?}"))
    }

    /// Kills it with SIGKILL and waits until it is gone.
    pub fn kill(&mut self) -> Result<ExitStatus> {
        if self.child.try_wait()?.is_none() {
            self.signal(Signal::KILL)?;
        }
        Ok(self.child.wait()?)
    }

    /// Whether it still runs.
    pub fn is_running(&mut self) -> Result<bool> {
        Ok(self.child.try_wait()?.is_none())
    }

    /// Waits until it ends by itself.
    pub fn wait(&mut self, timeout: Duration) -> Result<ExitStatus> {
        let timeout =
            Timespec::try_from(stretched(timeout)).map_err(|_| anyhow!("a time-out that is too long"))?;
        let mut fds = [PollFd::new(&self.pidfd, PollFlags::IN)];
        if poll(&mut fds, Some(&timeout))? == 0 {
            bail!("{} did not end in time: {}", self.pid(), self.last_words());
        }
        let status = self.child.wait()?;
        // What it wrote last may still be in the pipe.
        self.stdout.wait_end();
        self.stderr.wait_end();
        Ok(status)
    }

    /// What it wrote last, and how it ended if it did: for error messages.
    pub fn last_words(&self) -> String {
        let tail = |lines: Vec<String>| {
            let skip = lines.len().saturating_sub(20);
            lines.into_iter().skip(skip).collect::<Vec<_>>().join("\n")
        };
        format!(
            "process {}, its standard output:\n{}\nits standard error:\n{}",
            self.pid(),
            tail(self.stdout()),
            tail(self.stderr())
        )
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if self.kill().is_err() {
            // Nothing more can be done here, and the kernel kills it when this process ends.
        }
    }
}

/// Whether a process ended by SIGKILL.
pub fn was_killed(status: ExitStatus) -> bool {
    status.signal() == Some(libc::SIGKILL)
}

impl Lines {
    fn collect(pipe: Option<impl Read + Send + 'static>) -> Result<Arc<Self>> {
        let lines = Arc::new(Self::default());
        let pipe = pipe.context("the child has no pipe")?;
        let collected = Arc::clone(&lines);
        thread::Builder::new().name("output".to_owned()).spawn(move || {
            for line in BufReader::new(pipe).split(b'\n') {
                let Ok(line) = line else { break };
                let mut state = collected.state.lock().unwrap_or_else(PoisonError::into_inner);
                state.lines.push(String::from_utf8_lossy(&line).into_owned());
                collected.more.notify_all();
            }
            collected
                .state
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .ended = true;
            collected.more.notify_all();
        })?;
        Ok(lines)
    }

    fn now(&self) -> Vec<String> {
        self.state
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .lines
            .clone()
    }

    fn wait<T>(&self, timeout: Duration, mut wanted: impl FnMut(&str) -> Option<T>) -> Result<T> {
        let timeout = stretched(timeout);
        let deadline = Instant::now() + timeout;
        let mut seen = 0;
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            for line in &state.lines[seen..] {
                if let Some(found) = wanted(line) {
                    return Ok(found);
                }
            }
            seen = state.lines.len();
            if state.ended {
                bail!("it ended without the expected line");
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                bail!("no such line within {timeout:?}");
            }
            state = self
                .more
                .wait_timeout(state, left)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
    }

    /// Waits for the end of the pipe, but not for long: a grandchild may hold it.
    fn wait_end(&self) {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        drop(
            self.more
                .wait_timeout_while(state, stretched(Duration::from_millis(500)), |state| !state.ended),
        );
    }
}

/// Forks from a thread that lives as long as the process: the kernel sends a child its death signal when the
/// _thread_ that forked it ends, and a test's threads end before the test.
fn fork(command: Command) -> Result<Child> {
    type Job = (Command, Sender<std::io::Result<Child>>);
    static FORKER: OnceLock<Sender<Job>> = OnceLock::new();
    let forker = FORKER.get_or_init(|| {
        let (jobs, queue) = channel::<Job>();
        thread::spawn(move || {
            for (mut command, answer) in queue {
                if answer.send(command.spawn()).is_err() {
                    // Nobody waits for it; dropping the child leaves it to its death signal.
                }
            }
        });
        jobs
    });
    let (answer, result) = channel();
    forker
        .send((command, answer))
        .map_err(|_| anyhow!("the forking thread is gone"))?;
    Ok(result.recv().context("the forking thread is gone")??)
}
