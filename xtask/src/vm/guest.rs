//! One run of a virtual machine: from its command line to how it ended.
//!
//! The kernel's console goes to a file; what the tests say comes by a serial line of its own, so that neither cuts
//! into the other's lines. **Invariant**: only exit code 33 is a good end, which nothing but the guest's own word
//! through the device isa-debug-exit brings about; a guest that panics ends QEMU with code 0.

use std::fs;
use std::io::{BufRead as _, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};

use super::kernel::Kernel;
use super::machine::{Machine, Nic};
use super::qemu::{Accelerator, Qemu};

/// What QEMU ends with when the guest writes 0x10 to isa-debug-exit: the value, doubled, plus one.
const GOOD: i32 = 33;

/// What every machine has: the device for its last word, and slots for network devices.
const DEVICES: [&str; 15] = [
    "-device",
    "isa-debug-exit,iobase=0xf4,iosize=0x04",
    "-device",
    "pcie-root-port,id=rp0,chassis=1,slot=1",
    "-device",
    "pcie-root-port,id=rp1,chassis=2,slot=2",
    "-device",
    "pcie-root-port,id=rp2,chassis=3,slot=3",
    "-netdev",
    "hubport,id=n0,hubid=0",
    "-netdev",
    "hubport,id=n1,hubid=0",
    "-nographic",
    "-nodefaults",
    "-no-reboot",
];

/// The two devices that are joined by a hub of QEMU's.
const WIRED: [&str; 2] = ["52:54:00:00:00:01", "52:54:00:00:00:02"];
/// A device with so many queues, half of which are in use, since the guest has half as many processors.
const QUEUES: u32 = 4;
const MANY_QUEUES: &str = "52:54:00:00:00:03";

/// A machine to be run.
#[derive(Debug)]
pub(super) struct Guest<'a> {
    pub(super) qemu: &'a Qemu,
    pub(super) machine: &'a Machine,
    pub(super) kernel: &'a Kernel,
    pub(super) initramfs: &'a Path,
    /// Where the kernel's console is written.
    pub(super) console: PathBuf,
    /// What the init program is started with.
    pub(super) arguments: Vec<String>,
    pub(super) time_limit: Duration,
}

/// How it ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum End {
    /// By the guest's word that all was well.
    Good,
    /// By anything else, in words.
    Bad(String),
}

impl Guest<'_> {
    /// Runs it, and hands over each line of the tests as it comes.
    pub(super) fn run(&self, mut on_line: impl FnMut(&str)) -> Result<End> {
        let mut command = self.qemu.command(self.has_tap());
        let accelerator = self.qemu.accelerator;
        command
            .args(["-M", "q35", "-smp", "2", "-m", "768"])
            .args(["-cpu", "max", "-accel", accelerator.argument()])
            .args(DEVICES)
            .args(self.network_devices())
            .arg("-serial")
            .arg(format!("file:{}", self.console.display()))
            .args(["-serial", "stdio", "-kernel"])
            .arg(&self.kernel.image)
            .arg("-initrd")
            .arg(self.initramfs)
            .arg("-append")
            .arg(self.command_line(accelerator));
        let mut child = command
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .context("QEMU cannot be started")?;
        let (sender, lines) = channel();
        let stdout = child.stdout.take().context("QEMU has no output")?;
        let reader = thread::spawn(move || {
            for line in BufReader::new(stdout).split(b'\n').map_while(Result::ok) {
                let line = String::from_utf8_lossy(&line).replace('\r', "");
                if sender.send(line).is_err() {
                    break;
                }
            }
        });
        let deadline = Instant::now() + self.time_limit;
        let mut in_time = true;
        loop {
            match lines.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok(line) => on_line(&line),
                Err(RecvTimeoutError::Disconnected) => break,
                Err(RecvTimeoutError::Timeout) => {
                    in_time = false;
                    child.kill()?;
                    // What it said until now, the line that it is in the middle of included.
                    lines.iter().for_each(|line| on_line(&line));
                    break;
                }
            }
        }
        let status = child.wait()?;
        drop(reader.join());
        let mut complaints = String::new();
        if let Some(mut stderr) = child.stderr.take() {
            stderr.read_to_string(&mut complaints)?;
        }
        Ok(match status.code() {
            _ if !in_time => End::Bad(format!("it did not end within {} s", self.time_limit.as_secs())),
            Some(GOOD) => End::Good,
            Some(0) => End::Bad("it crashed, or switched itself off".to_owned()),
            _ => End::Bad(format!("QEMU ended with {status} {}", complaints.trim())),
        })
    }

    /// The last lines of the kernel's console.
    pub(super) fn console_tail(&self, lines: usize) -> String {
        let text = fs::read(&self.console).unwrap_or_default();
        let text = String::from_utf8_lossy(&text).replace('\r', "");
        let all: Vec<&str> = text.lines().collect();
        all[all.len().saturating_sub(lines)..].join("\n")
    }

    fn command_line(&self, accelerator: Accelerator) -> String {
        // What follows `--` is the init program's; NAME=VALUE before it, its environment.
        let mut line = format!(
            "console=ttyS0 panic=-1 no_timer_check loglevel=4 {} XSK_E2E_PATIENCE={} XSK_E2E_NICS={},{}",
            self.machine.options,
            accelerator.patience(),
            self.machine.nic.driver(),
            WIRED.join(","),
        );
        if self.has_tap() {
            line += &format!(" XSK_E2E_QUEUES_NIC={MANY_QUEUES}");
        }
        line + " -- " + &self.arguments.join(" ")
    }

    fn network_devices(&self) -> Vec<String> {
        let mut devices = Vec::new();
        for (slot, mac) in WIRED.iter().enumerate() {
            let device = self.machine.nic.device();
            devices.push("-device".to_owned());
            devices.push(format!("{device},bus=rp{slot},netdev=n{slot},mac={mac},romfile="));
        }
        if self.has_tap() {
            let vectors = 2 * QUEUES + 2;
            devices.extend([
                "-netdev".to_owned(),
                format!("tap,id=n2,ifname=xsk-e2e,queues={QUEUES},script=no,downscript=no"),
                "-device".to_owned(),
                format!(
                    "virtio-net-pci,bus=rp2,netdev=n2,mac={MANY_QUEUES},mq=on,vectors={vectors},romfile="
                ),
            ]);
        }
        devices
    }

    /// Only a tap has several queues in QEMU. It is made in a network namespace that QEMU has to itself.
    fn has_tap(&self) -> bool {
        self.machine.nic == Nic::VirtioNet && self.qemu.may_make_taps
    }
}
