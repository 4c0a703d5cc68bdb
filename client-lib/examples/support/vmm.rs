//! How the example starts its VMM: itself once more, as another user and with the sockets, which becomes the VMM when it
//! is told.

use std::io::Write;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::{env, io, process};

use anyhow::{Context, bail, ensure};
use command_fds::{CommandFdExt, FdMapping};
use xsk_client::Grant;
use xsk_client::wire::Target;

const BECOME: &str = "become";

/// Queue, uid and command. `None`: this process is to become a VMM.
pub(crate) fn arguments() -> anyhow::Result<Option<(Target, u32, Vec<String>)>> {
    let words: Vec<String> = env::args().skip(1).collect();
    match words.as_slice() {
        [first, ..] if first == BECOME => Ok(None),
        [target, uid, command @ ..] if !command.is_empty() => {
            Ok(Some((target.parse()?, uid.parse()?, command.to_vec())))
        }
        _ => bail!("usage: manager IF:QUEUE UID COMMAND [ARGUMENT…]"),
    }
}

/// Starts it, with the sockets from fd 3 on. Std drops root's groups with the change of uid, and the kernel drops its
/// capabilities.
pub(crate) fn start(grant: Grant, uid: u32, vmm: &[String]) -> anyhow::Result<Child> {
    let (acquired, sockets) = grant.into_parts();
    let names: Vec<String> = acquired
        .sockets
        .iter()
        .map(|socket| format!("xsk-{}-{}", acquired.interface, socket.queue))
        .collect();
    let mappings = (3..)
        .zip(sockets)
        .map(|(child_fd, parent_fd)| FdMapping { parent_fd, child_fd });
    let mut command = Command::new(env::current_exe()?);
    command
        .arg(BECOME)
        .args(vmm)
        .uid(uid)
        .gid(uid)
        .stdin(Stdio::piped());
    command
        .env("XSK_LEASE", serde_json::to_string(&acquired)?)
        .env("LISTEN_FDS", names.len().to_string())
        .env("LISTEN_FDNAMES", names.join(":"));
    command.fd_mappings(mappings.collect())?;
    Ok(command.spawn()?)
}

/// Tells it to begin.
pub(crate) fn go(vmm: &mut Child) -> anyhow::Result<()> {
    let mut told = vmm.stdin.take().context("the VMM has no standard input")?;
    Ok(told.write_all(b"go\n")?)
}

/// Waits to be told, so that the lease is its own from its first step, and becomes the VMM.
pub(crate) fn become_it() -> anyhow::Result<()> {
    ensure!(
        io::stdin().read_line(&mut String::new())? > 0,
        "the manager is gone"
    );
    let mut words = env::args().skip(2);
    let program = words.next().context("which VMM?")?;
    let error = Command::new(&program)
        .args(words)
        .env("LISTEN_PID", process::id().to_string())
        .stdin(Stdio::null())
        .exec();
    Err(error).context(program)
}
