//! Unprivileged processes: the client library's examples, and bodies of tests that are processes of their own.
//!
//! A body is a function of the test program, which is started again for it:
//!
//! ```text
//! e2e::bodies![sleeper];
//! fn sleeper(arguments: &[String]) { … }
//! let holder = Holder::body(&world, Side::Host, &uid.user(), "sleeper", &["5"])?;
//! ```

use std::path::Path;
use std::process::{ChildStdin, Command, ExitStatus, Stdio};
use std::time::Duration;

use anyhow::{Context, Result};

use crate::binaries;
use crate::process::Process;
use crate::uids::User;
use crate::world::{Side, World};

/// The variable that names the body which a test program is started again for.
pub const BODY: &str = "XSK_E2E_BODY";
/// The variable that has its arguments, as a JSON array.
pub const ARGUMENTS: &str = "XSK_E2E_ARGUMENTS";
/// The test that [`bodies`](crate::bodies) makes, which runs the body.
pub const ENTRY: &str = "run_as_body";

/// How this test program is told to run its entry for bodies, and nothing else.
pub const BODY_OPTIONS: [&str; 5] = ["--exact", ENTRY, "--nocapture", "--quiet", "--test-threads=1"];

/// A process of an ordinary user: no capability in any set, no_new_privs, memlock of 8 MiB. Dropping it kills it.
#[derive(Debug)]
pub struct Holder {
    process: Process,
}

impl Holder {
    /// Starts a program, which is made executable inside as `/run/bin/NAME`, as that user on that side.
    ///
    /// Its environment is empty but for what `environment` has.
    pub fn program(
        world: &World,
        side: Side,
        user: &User,
        program: &Path,
        prepare: impl FnOnce(&mut Command),
    ) -> Result<Self> {
        let name = program
            .file_name()
            .and_then(|name| name.to_str())
            .context("a program without a name")?;
        let mut command = Command::new(world.install(name, program)?);
        command
            .env_clear()
            .env("RUST_BACKTRACE", "1")
            .stdin(Stdio::null());
        prepare(&mut command);
        let process = Process::spawn_prepared(world.namespace(side), Some(user), command)?;
        Ok(Self { process })
    }

    /// Starts an example of the client library.
    pub fn example(world: &World, side: Side, user: &User, name: &str, arguments: &[&str]) -> Result<Self> {
        Self::program(world, side, user, &binaries::client(name)?, |command| {
            command.args(arguments);
        })
    }

    /// Starts this test program again, for a body of its [`bodies`](crate::bodies).
    pub fn body(world: &World, side: Side, user: &User, name: &str, arguments: &[&str]) -> Result<Self> {
        Self::body_with(world, side, user, name, arguments, Stdio::null())
    }

    /// The same, with that standard input.
    pub fn body_with(
        world: &World,
        side: Side,
        user: &User,
        name: &str,
        arguments: &[&str],
        stdin: Stdio,
    ) -> Result<Self> {
        let arguments = serde_json::to_string(arguments)?;
        Self::program(world, side, user, &binaries::this_program()?, |command| {
            command.args(BODY_OPTIONS);
            command.env(BODY, name).env(ARGUMENTS, arguments).stdin(stdin);
        })
    }

    /// The same with a pipe to its standard input: for a body that waits to be told to go on.
    pub fn driven_body(
        world: &World,
        side: Side,
        user: &User,
        name: &str,
        arguments: &[&str],
    ) -> Result<(Self, ChildStdin)> {
        let program = binaries::this_program()?;
        let file_name = program.file_name().and_then(|name| name.to_str());
        let mut command =
            Command::new(world.install(file_name.context("a program without a name")?, &program)?);
        command
            .env_clear()
            .env("RUST_BACKTRACE", "1")
            .args(BODY_OPTIONS)
            .env(BODY, name)
            .env(ARGUMENTS, serde_json::to_string(arguments)?);
        let (process, stdin) = Process::spawn_driven(world.namespace(side), Some(user), command)?;
        Ok((Self { process }, stdin))
    }

    /// Starts the broker's `grant`, with those arguments, in front of a body: it becomes the body.
    ///
    /// `None` starts it as root, for `--as`.
    pub fn granted(
        world: &World,
        user: Option<&User>,
        grant: &[&str],
        name: &str,
        arguments: &[&str],
    ) -> Result<Self> {
        Self::granted_with(world, user, grant, (name, arguments), &[])
    }

    /// The same with more at the end of the command line, for a body that reads it: what `grant` replaces there.
    pub fn granted_with(
        world: &World,
        user: Option<&User>,
        grant: &[&str],
        (name, arguments): (&str, &[&str]),
        command_line: &[&str],
    ) -> Result<Self> {
        let body = binaries::this_program()?;
        let body_name = body.file_name().and_then(|name| name.to_str());
        let body = world.install(body_name.context("a program without a name")?, &body)?;
        let mut command = Command::new(world.install("xsk-broker", &binaries::broker()?)?);
        command
            .env_clear()
            .env(BODY, name)
            .env(ARGUMENTS, serde_json::to_string(arguments)?)
            .arg("grant")
            .args(grant)
            .arg("--")
            .arg(body)
            .args(BODY_OPTIONS)
            .args(command_line);
        let process = Process::spawn(world.namespace(Side::Host), user, command)?;
        Ok(Self { process })
    }

    /// Its process.
    pub fn process(&self) -> &Process {
        &self.process
    }

    /// Its pid.
    pub fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// Waits for a line that starts with `beginning`, and returns the line.
    pub fn wait_line(&self, beginning: &str, timeout: Duration) -> Result<String> {
        self.process
            .wait_stdout(timeout, |line| {
                line.starts_with(beginning).then(|| line.to_owned())
            })
            .with_context(|| format!("waiting for the line `{beginning} …`"))
    }

    /// Waits until it says that its lease is active.
    pub fn wait_active(&self) -> Result<String> {
        self.wait_line("active", Duration::from_secs(20))
    }

    /// SIGKILL, and its end.
    pub fn kill(&mut self) -> Result<ExitStatus> {
        self.process.kill()
    }

    /// Waits until it ends by itself.
    pub fn wait(&mut self, timeout: Duration) -> Result<ExitStatus> {
        self.process.wait(timeout)
    }
}

/// A function that runs as a process.
pub type Body = fn(&[String]);

/// What the test of [`bodies`](crate::bodies) does: nothing, unless this process was started for a body.
///
/// # Panics
///
/// Where the name or the arguments are none.
#[expect(clippy::panic, reason = "it is the body of a test")]
pub fn run_as_body(bodies: &[(&str, Body)]) {
    let Ok(wanted) = std::env::var(BODY) else { return };
    let arguments = std::env::var(ARGUMENTS).unwrap_or_else(|_| "[]".to_owned());
    let Ok(arguments) = serde_json::from_str::<Vec<String>>(&arguments) else {
        panic!("{ARGUMENTS} is not an array of strings: {arguments}");
    };
    let Some((_, body)) = bodies.iter().find(|(name, _)| *name == wanted) else {
        panic!("this program has no body {wanted}");
    };
    body(&arguments);
    // Before libtest sums up its one test.
    std::process::exit(0);
}

/// Declares the bodies of a test program, once, at its root.
#[macro_export]
macro_rules! bodies {
    ($($path:path),* $(,)?) => {
        #[test]
        fn run_as_body() {
            $crate::holder::run_as_body(&[$({
                let path = stringify!($path);
                (path.rsplit("::").next().unwrap_or(path).trim(), $path as $crate::holder::Body)
            }),*]);
        }
    };
}
