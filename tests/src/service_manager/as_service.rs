//! The other half of the stand-in: the process that becomes the service.

use std::io::IoSliceMut;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use command_fds::{CommandFdExt, FdMapping};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
use rustix::process::Signal;
use rustix::thread::CapabilitySet;
use serde_json::Value;

use super::{MAX_BYTES, MAX_FDS};

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
