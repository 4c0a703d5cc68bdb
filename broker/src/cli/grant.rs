//! `xsk-broker grant IF:QUEUES -- COMMAND`: takes queues and becomes the command, which inherits the sockets.

use std::ffi::OsString;
use std::io;
use std::os::unix::process::CommandExt;
use std::process::Command;

use anyhow::Context;
use command_fds::{CommandFdExt, FdMapping};
use rustix::process::{Gid, Uid};
use xsk_client::wire::{Acquire, Target};

use super::exit::Exit;
use super::output::BrokerSocket;
use super::qemu::QemuCommand;
use super::user::User;
use super::wish::Wish;

/// The first fd that is passed on (sd_listen_fds(3), SD_LISTEN_FDS_START).
const FIRST_FD: i32 = 3;

/// Take queues and run a command that inherits their sockets.
///
/// This process becomes the command, so the lease lives as long as the command does. It finds its sockets from file
/// descriptor 3 on, and in its environment LISTEN_FDS, LISTEN_PID, LISTEN_FDNAMES (xsk-eth0-4 for queue 4 of eth0),
/// XSK_LEASE (the broker's reply as JSON) and XSK_BROKER_SOCKET. The command has to bind them and to activate the
/// lease in time; `Grant::from_env()` of the Rust library does. With --kind bound it finds the umem's memfd
/// (xsk-eth0-umem) in place of the sockets, which the broker gives it for `Bind`.
///
/// With --kind bare the broker looks by itself whether the sockets are bound, for programs that know nothing of it:
/// QEMU. In its command {qemu} stands for `af-xdp,ifname=eth0,queues=1,start-queue=2,inhibit=on,sock-fds=3`, and
/// {qemu:3} for the same of queue 3 alone. QEMU needs an RLIMIT_MEMLOCK of 32 MiB for each queue; that is checked first.
///
/// Example: xsk-broker grant eth0:2 --as alice -- ./echo
///
/// Example: xsk-broker grant eth0:2 --kind bare --as vm7 -- qemu-system-x86_64 -netdev {qemu},id=n0 …
#[derive(Debug, clap::Args)]
pub struct GrantArgs {
    /// Which queues of which interface, as in eth0:2-4
    #[arg(value_name = "IF:QUEUES")]
    target: Target,

    /// Ask as this user, and run the command as it; for root [default: whoever runs this]
    #[arg(long = "as", value_name = "USER|UID")]
    user: Option<String>,

    #[command(flatten)]
    wish: Wish,

    /// A text by which `list` and the audit log show the lease, at most 256 bytes
    #[arg(long, value_name = "TEXT")]
    label: Option<String>,

    #[command(flatten)]
    broker: BrokerSocket,

    /// What to run
    #[arg(last = true, required = true, value_name = "COMMAND")]
    command: Vec<OsString>,
}

/// Runs the command. Returns only if it failed.
///
/// # Errors
///
/// As the broker says, and where the command cannot be run.
pub fn run(args: GrantArgs) -> anyhow::Result<Exit> {
    let request = Acquire {
        label: args.label,
        ..args.wish.acquire(args.target)?
    };
    let qemu = QemuCommand::read(&args.command, &request.queues, request.sockets)?;
    if let Some(user) = &args.user {
        become_user(user)?;
    }
    // As who it will be: the limit is inherited, and the capability to exceed it is not an ordinary user's.
    qemu.check_memlock(&request.queues)?;
    if qemu.has_wide_netdev(&request.queues) {
        eprintln!(
            "xsk-broker: warning: up to version 11.1, QEMU receives on the first queue of a netdev only; write a -netdev for each queue, as in {{qemu:{}}}",
            request.queues.iter().next().unwrap_or_default()
        );
    }

    // The connection is closed by exec: a lease lives as long as the process, not the connection.
    let mut broker = args.broker.connect()?;
    let (lease, fds) = broker.acquire(&request)?;

    let sockets = lease.sockets.iter().map(|socket| socket.queue.to_string());
    let umem = lease.umem_file_descriptor.map(|_| "umem".to_owned());
    let names: Vec<String> = sockets
        .chain(umem)
        .map(|name| format!("xsk-{}-{name}", lease.interface))
        .collect();
    let mappings = (FIRST_FD..)
        .zip(fds)
        .map(|(child_fd, parent_fd)| FdMapping { parent_fd, child_fd })
        .collect();
    let queues = lease.sockets.iter().map(|socket| socket.queue);
    let filled = qemu.fill_in(&lease.interface, &queues.zip(FIRST_FD..).collect::<Vec<_>>());
    let (program, arguments) = filled.split_first().context("no command given")?;
    let mut command = Command::new(program);
    command
        .args(arguments)
        .env("LISTEN_FDS", names.len().to_string())
        .env("LISTEN_PID", std::process::id().to_string())
        .env("LISTEN_FDNAMES", names.join(":"))
        .env("XSK_LEASE", serde_json::to_string(&lease)?)
        .env("XSK_BROKER_SOCKET", &args.broker.socket)
        .fd_mappings(mappings)?;
    let error = command.exec();
    Err(error).with_context(|| format!("cannot run {}", program.display()))
}

/// Gives up root for a user: groups, gid and uid. The kernel clears all capabilities with the last (capabilities(7)).
fn become_user(name: &str) -> anyhow::Result<()> {
    if !rustix::process::geteuid().is_root() {
        let message =
            format!("--as {name} is for root: without it, the request is made as the user that you are");
        return Err(io::Error::new(io::ErrorKind::PermissionDenied, message).into());
    }
    let user = User::look_up(name)?;
    let groups: Vec<Gid> = user.groups.into_iter().map(Gid::from_raw).collect();
    let (uid, gid) = (Uid::from_raw(user.uid), Gid::from_raw(user.gid));
    // This process has one thread: what these set is the process's.
    rustix::thread::set_thread_groups(&groups).context("setgroups")?;
    rustix::thread::set_thread_res_gid(gid, gid, gid).context("setresgid")?;
    rustix::thread::set_thread_res_uid(uid, uid, uid).context("setresuid")?;
    Ok(())
}
