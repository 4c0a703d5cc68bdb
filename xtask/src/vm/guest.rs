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
use super::qemu::{Accelerator, Qemu};

/// What QEMU ends with when the guest writes 0x10 to isa-debug-exit: the value, doubled, plus one.
const GOOD: i32 = 33;

/// Two network devices of the guest's, joined by a hub of QEMU's: `iommu_platform` is what makes virtio-net use
/// the DMA interface, without which it has no zero-copy.
const DEVICES: [&str; 17] = [
    "-device",
    "isa-debug-exit,iobase=0xf4,iosize=0x04",
    "-device",
    "pcie-root-port,id=rp0,chassis=1,slot=1",
    "-device",
    "pcie-root-port,id=rp1,chassis=2,slot=2",
    "-netdev",
    "hubport,id=n0,hubid=0",
    "-netdev",
    "hubport,id=n1,hubid=0",
    "-device",
    "virtio-net-pci,bus=rp0,netdev=n0,mac=52:54:00:00:00:01,romfile=,iommu_platform=on",
    "-device",
    "virtio-net-pci,bus=rp1,netdev=n1,mac=52:54:00:00:00:02,romfile=,iommu_platform=on",
    "-nographic",
    "-nodefaults",
    "-no-reboot",
];

/// A machine to be run.
#[derive(Debug)]
pub(super) struct Guest<'a> {
    pub(super) qemu: &'a Qemu,
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
        let mut command = self.qemu.command();
        let accelerator = self.qemu.accelerator;
        command
            .args(["-M", "q35", "-smp", "2", "-m", "768"])
            .args(["-cpu", "max", "-accel", accelerator.argument()])
            .args(DEVICES)
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
        format!(
            "console=ttyS0 panic=-1 no_timer_check loglevel=4 XSK_E2E_PATIENCE={} -- {}",
            accelerator.patience(),
            self.arguments.join(" ")
        )
    }
}
