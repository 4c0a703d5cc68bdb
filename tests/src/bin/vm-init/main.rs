//! The first program of the virtual machine that `cargo xtask vm` boots: mounts, loads modules, runs the
//! end-to-end suite as it is, and tells its end.
//!
//! Two words reach the host: the line `vm-init: tests ended: …` on the second serial line, and the exit code
//! that isa-debug-exit gives QEMU. Everything else that happens here ends in a machine that is switched off without
//! them, which the host takes for the failure that it is.

mod exit;

use std::fs::{self, File};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail};
use e2e::netlink::{LinkState, Netlink};
use rustix::mount::{MountFlags, mount};
use rustix::process::{Pid, WaitOptions, wait};
use rustix::system::RebootCommand;

use exit::Word;

/// The serial line that the host reads the tests from; the kernel's console is the first one.
const REPORT: &str = "/dev/ttyS1";

fn main() {
    if let Err(error) = run() {
        // To the kernel's console, whose tail the host shows.
        eprintln!("vm-init: {error:#}");
    }
    // The machine is still here only if it was not told to exit.
    if let Err(error) = rustix::system::reboot(RebootCommand::PowerOff) {
        eprintln!("vm-init: cannot switch off: {error}");
    }
}

fn run() -> Result<()> {
    mounts()?;
    load_modules()?;
    // As every system has it, and some tests talk over it.
    let netlink = Netlink::new()?;
    netlink.set_link(netlink.link("lo")?.index, LinkState::Up)?;
    let report = File::options()
        .read(true)
        .write(true)
        .open(REPORT)
        .context(REPORT)?;
    let mut line = rustix::termios::tcgetattr(&report).context("tcgetattr")?;
    line.make_raw();
    rustix::termios::tcsetattr(&report, rustix::termios::OptionalActions::Now, &line).context("tcsetattr")?;

    let end = suite(&report)?;
    say(&report, &format!("tests ended: {end}"))?;
    rustix::termios::tcdrain(&report).context("tcdrain")?;
    exit::exit(if end == "exit 0" { Word::Good } else { Word::Bad })
}

fn mounts() -> Result<()> {
    for (kind, place) in [
        ("proc", "/proc"),
        ("sysfs", "/sys"),
        ("devtmpfs", "/dev"),
        ("tmpfs", "/run"),
        ("tmpfs", "/tmp"),
        ("tracefs", "/sys/kernel/tracing"),
        ("securityfs", "/sys/kernel/security"),
        ("cgroup2", "/sys/fs/cgroup"),
    ] {
        mount(kind, place, kind, MountFlags::NOSUID, None)
            .with_context(|| format!("mounting {kind} at {place}"))?;
    }
    // As systemd does it: whoever has a cgroup of its own is charged for its memory.
    fs::write("/sys/fs/cgroup/cgroup.subtree_control", "+memory").context("the memory controller")
}

/// The files are numbered in the order that they need.
fn load_modules() -> Result<()> {
    let mut files: Vec<_> = fs::read_dir("/modules")?
        .map(|entry| entry.map(|entry| entry.path()))
        .collect::<Result<_, _>>()?;
    files.sort();
    for file in files {
        let module = fs::read(&file)?;
        rustix::system::init_module(&module, c"").with_context(|| file.display().to_string())?;
    }
    Ok(())
}

/// What tests do without here. The C program is there if whoever made the image could compile it.
fn lacking() -> String {
    let always = "python3 sh systemd-analyze";
    match fs::exists("/bin/peer-capi") {
        Ok(true) => always.to_owned(),
        _ => format!("{always} peer-capi"),
    }
}

/// Runs the suite, with what followed `--` on the kernel's command line as its arguments.
fn suite(report: &File) -> Result<String> {
    let child = Command::new("/bin/e2e")
        .args(["--test-threads=1"])
        .args(std::env::args().skip(1))
        .env_clear()
        .envs(std::env::vars().filter(|(name, _)| name.starts_with("XSK_")))
        .env("PATH", "/bin")
        .env("RUST_BACKTRACE", "1")
        .env("XSK_CI", "1")
        .env("XSK_E2E_BROKER", "/bin/xsk-broker")
        .env("XSK_E2E_CLIENT_DIR", "/bin/examples")
        .env("XSK_E2E_PAPERS", "/papers")
        .env("XSK_E2E_PEER_DIR", "/bin")
        .env("XSK_E2E_IMAGE_LACKS", lacking())
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(report.try_clone()?)
        .stderr(report.try_clone()?)
        .spawn()
        .context("starting /bin/e2e")?;
    let wanted = Pid::from_child(&child);
    // As the first process we inherit every orphan, and the tests count what is left in /proc.
    loop {
        match wait(WaitOptions::empty()) {
            Ok(Some((pid, status))) if pid == wanted => {
                return Ok(match (status.exit_status(), status.terminating_signal()) {
                    (Some(code), _) => format!("exit {code}"),
                    (_, Some(signal)) => format!("signal {signal}"),
                    _ => bail!("wait: {status:?}"),
                });
            }
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error).context("wait"),
        }
    }
}

fn say(mut report: &File, line: &str) -> Result<()> {
    use std::io::Write as _;
    writeln!(report, "vm-init: {line}").context(REPORT)
}
