//! The emulator: the system's own if it is new enough, else Debian's, unpacked and not installed.
//!
//! Before 10.0 the emulation of cmpxchg16b is broken with several threads: guests die at random places. Older ones
//! are therefore refused, not worked around.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

use super::apt::Apt;
use crate::shell;

const PROGRAM: &str = "qemu-system-x86_64";
const OLDEST: u32 = 10;
const SUITE: &str = "bookworm-backports";

/// A QEMU that starts.
#[derive(Debug)]
pub(super) struct Qemu {
    program: PathBuf,
    /// Where it was unpacked, if it is not the system's.
    unpacked: Option<PathBuf>,
    pub(super) version: String,
    pub(super) accelerator: Accelerator,
    /// Whether it can be started in a network namespace of its own, and make a tap there.
    pub(super) may_make_taps: bool,
}

/// What runs the guest's instructions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Accelerator {
    Kvm,
    Tcg,
}

impl Qemu {
    /// The system's, or the one that was unpacked before.
    pub(super) fn present(cache: &Path) -> Result<Option<Self>> {
        if let Some(program) = shell::find(PROGRAM)
            && let Ok(qemu) = Self::open(program, None)
        {
            return Ok(Some(qemu));
        }
        let folder = cache.join("qemu");
        folder.is_dir().then(|| Self::in_folder(folder)).transpose()
    }

    /// Fetches Debian's.
    pub(super) fn fetch(cache: &Path, apt: &Apt) -> Result<Self> {
        let folder = cache.join("qemu");
        apt.unpack(&apt.closure("qemu-system-x86", SUITE)?, &folder)?;
        Self::in_folder(folder)
    }

    fn in_folder(folder: PathBuf) -> Result<Self> {
        Self::open(folder.join("usr/bin").join(PROGRAM), Some(folder))
    }

    fn open(program: PathBuf, unpacked: Option<PathBuf>) -> Result<Self> {
        let mut qemu = Self {
            program,
            unpacked,
            version: String::new(),
            accelerator: Accelerator::Tcg,
            may_make_taps: may_make_taps(),
        };
        let text = shell::output(qemu.command(false).arg("--version"))?;
        let version = text
            .strip_prefix("QEMU emulator version ")
            .and_then(|rest| rest.split_whitespace().next())
            .with_context(|| format!("{} tells no version", qemu.program.display()))?;
        let major = version.split('.').next().and_then(|major| major.parse().ok());
        if major.is_none_or(|major: u32| major < OLDEST) {
            bail!("QEMU {version} is older than {OLDEST}.0, which corrupts guests");
        }
        version.clone_into(&mut qemu.version);
        Ok(qemu)
    }

    /// The program, with what an unpacked one needs to find its libraries and firmware; in a network namespace of its own
    /// or in the caller's.
    pub(super) fn command(&self, in_namespace: bool) -> Command {
        let mut command = if in_namespace {
            let mut command = Command::new(NAMESPACE[0]);
            command.args(&NAMESPACE[1..]).args(WITH_ITS_PARENT);
            command
        } else {
            let mut command = Command::new(WITH_ITS_PARENT[0]);
            command.args(&WITH_ITS_PARENT[1..]);
            command
        };
        command.arg(&self.program).stdin(Stdio::null());
        let Some(folder) = &self.unpacked else {
            return command;
        };
        let libraries = ["usr/lib/x86_64-linux-gnu", "lib/x86_64-linux-gnu"].map(|below| folder.join(below));
        command
            .env(
                "LD_LIBRARY_PATH",
                libraries.map(|library| library.display().to_string()).join(":"),
            )
            .env("QEMU_MODULE_DIR", folder.join("usr/lib/x86_64-linux-gnu/qemu"));
        for below in ["usr/share/qemu", "usr/share/seabios"] {
            command.arg("-L").arg(folder.join(below));
        }
        command
    }

    /// Chooses KVM if this kernel really boots with it: that the device opens proves nothing, since a nested one may
    /// run no ordinary kernel.
    pub(super) fn probe_kvm(&mut self, kernel: &Path) -> Result<()> {
        if fs::OpenOptions::new()
            .read(true)
            .write(true)
            .open("/dev/kvm")
            .is_err()
        {
            return Ok(());
        }
        // It has no root file system, so it panics, and QEMU ends, once it has come all the way there.
        let started = Instant::now();
        let mut child = self
            .command(false)
            .args(["-M", "q35", "-accel", "kvm", "-cpu", "max", "-m", "256"])
            .args([
                "-nographic",
                "-nodefaults",
                "-no-reboot",
                "-serial",
                "stdio",
                "-kernel",
            ])
            .arg(kernel)
            .args(["-append", "console=ttyS0 panic=-1"])
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()?;
        while started.elapsed() < Duration::from_secs(10) && child.try_wait()?.is_none() {
            std::thread::sleep(Duration::from_millis(20));
        }
        child.kill()?;
        let output = child.wait_with_output()?;
        if String::from_utf8_lossy(&output.stdout).contains("Kernel panic") {
            self.accelerator = Accelerator::Kvm;
        }
        Ok(())
    }
}

/// Starts a program in a network namespace of its own, in which it is root, without being it here (unshare(1) of
/// util-linux, which every Debian has).
const NAMESPACE: [&str; 4] = ["unshare", "--map-root-user", "--net", "--"];

/// Starts a program that ends when the thread that started it does, by a kill as well (setpriv(1) of util-linux): else a
/// machine would go on for an hour. After [`NAMESPACE`], which clears that signal.
const WITH_ITS_PARENT: [&str; 4] = ["setpriv", "--pdeathsig", "KILL", "--"];

/// Whether this machine lets ordinary users have network namespaces and taps.
fn may_make_taps() -> bool {
    let tun = fs::OpenOptions::new().read(true).write(true).open("/dev/net/tun");
    let mut namespace = Command::new(NAMESPACE[0]);
    namespace
        .args(&NAMESPACE[1..])
        .arg("true")
        .stdin(Stdio::null())
        .stderr(Stdio::null());
    tun.is_ok() && namespace.status().is_ok_and(|status| status.success())
}

impl Accelerator {
    /// As QEMU's `-accel` takes it.
    pub(super) fn argument(self) -> &'static str {
        match self {
            Self::Kvm => "kvm",
            Self::Tcg => "tcg,thread=multi",
        }
    }

    /// How much longer than on bare metal everything may take, which the tests are told.
    pub(super) fn patience(self) -> u32 {
        match self {
            Self::Kvm => 2,
            Self::Tcg => 10,
        }
    }
}
