//! `xsk-broker revoke LEASE`: ends anybody's lease, and says what that has stopped and what it has not.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::Context;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Signal, pidfd_send_signal};
use serde::Serialize;
use xsk_client::wire::Lease;
use xsk_client::{Broker, ProcessId};

use super::cut;
use super::exit::Exit;
use super::keepers::{self, Keeper, target_of};
use super::output::{Sockets, put};
use crate::ascii;

/// End a lease, whoever holds it, and say what goes on all the same. For root.
///
/// Each rung stops more and costs more:
///
/// 1. `revoke 7`: packets go to the host again before this returns. The socket itself is its holder's: it can go on
///    transmitting, and the kernel keeps the queue for it, until every file descriptor and mapping of it is gone.
///
/// 2. `revoke 7 --kill`: ends the holder with SIGKILL, with your rights, not the broker's. A child that has the socket
///    too goes on; it is named.
///
/// 3. `revoke 7 --cut-device`: revokes, and prints what ends every AF_XDP socket of the device for good, and what that
///    costs; with --lose-all-leases-addresses-and-routes it does it.
///
/// Exit code 0: nothing goes on. 75: something does, and the output says what.
#[derive(Debug, clap::Args)]
pub struct RevokeArgs {
    /// The lease's number, as `list` shows it
    #[arg(value_parser = number)]
    lease: u64,

    /// End its holder, too
    #[arg(long)]
    kill: bool,

    /// Revoke, and print how its device is cut off from all sockets, and what is lost by that
    #[arg(long)]
    cut_device: bool,

    /// Do so
    #[arg(long, requires = "cut_device")]
    lose_all_leases_addresses_and_routes: bool,

    /// Print what was stopped and what goes on as JSON
    #[arg(long)]
    json: bool,

    #[command(flatten)]
    sockets: Sockets,
}

/// How it ended.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Outcome {
    /// As it was, before anything was done.
    lease: Lease,
    rx_stopped: bool,
    tx_may_continue: bool,
    /// Whether the holder was ended by this command.
    killed: bool,
    /// Whether the device was cut by this command.
    cut: bool,
    /// Who still has a socket of it.
    keepers: Vec<Keeper>,
    /// How its device is cut, for people, if that was asked for and not done.
    #[serde(skip_serializing_if = "Option::is_none")]
    how_to_cut: Option<String>,
}

fn number(text: &str) -> Result<u64, &'static str> {
    text.parse()
        .map_err(|_| "a lease is named by its number, as the first column of `xsk-broker list` shows it")
}

/// Runs the command.
///
/// # Errors
///
/// As the broker says, and where the holder cannot be ended or the device not cut.
pub fn run(args: &RevokeArgs) -> anyhow::Result<Exit> {
    let mut broker = args.sockets.connect_as_operator()?;
    // What it was, its sockets included: after the end there may be nothing left to ask about.
    let before = find(&mut broker, args.lease)?;
    let revoked = broker.revoke(args.lease)?;
    let Some(lease) = before else {
        // It came into being between the two questions.
        anyhow::bail!("lease {} has ended; ask `list` what became of it", args.lease);
    };
    let killed = args.kill && kill(&lease)?;
    if args.lose_all_leases_addresses_and_routes {
        cut::cut(&lease)?;
    }
    let is_over = if killed || args.lose_all_leases_addresses_and_routes || !lease.holder.alive {
        wait_until_free(&mut broker, args.lease)?
    } else {
        revoked.lease.is_none()
    };
    // Whoever has what is good for nothing is no matter.
    let keepers = match args.lose_all_leases_addresses_and_routes || !revoked.tx_may_continue {
        true => Vec::new(),
        false => keepers::of(&lease, broker.get_status()?.pid),
    };
    let outcome = Outcome {
        rx_stopped: revoked.rx_stopped || is_over,
        tx_may_continue: !is_over || !keepers.is_empty(),
        killed,
        cut: args.lose_all_leases_addresses_and_routes,
        keepers,
        how_to_cut: (args.cut_device && !args.lose_all_leases_addresses_and_routes)
            .then(|| cut::recipe(&lease)),
        lease,
    };
    put(&match args.json {
        true => ascii::json(&serde_json::to_string(&outcome)?) + "\n",
        false => told(&outcome),
    })?;
    Ok(match outcome.tx_may_continue {
        true => Exit::Busy,
        false => Exit::Ok,
    })
}

fn find(broker: &mut Broker, id: u64) -> anyhow::Result<Option<Lease>> {
    Ok(broker
        .list_leases()?
        .leases
        .into_iter()
        .find(|lease| lease.lease == id))
}

/// Ends the process that the broker has named, and no other that may have got its pid. `false`: it was gone already.
fn kill(lease: &Lease) -> anyhow::Result<bool> {
    const PATIENCE: Timespec = Timespec {
        tv_sec: 10,
        tv_nsec: 0,
    };
    let pid = lease.holder.pid;
    let Some(pidfd) =
        ProcessId::open(&lease.holder).with_context(|| format!("pidfd_open of process {pid}"))?
    else {
        return Ok(false);
    };
    match pidfd_send_signal(&pidfd, Signal::KILL) {
        Ok(()) => {}
        Err(rustix::io::Errno::SRCH) => return Ok(false),
        Err(error) => return Err(error).with_context(|| format!("cannot end process {pid}")),
    }
    let exited = poll(&mut [PollFd::new(&pidfd, PollFlags::IN)], Some(&PATIENCE))?;
    anyhow::ensure!(
        exited > 0,
        "process {pid} was sent SIGKILL and has not exited in 10 s"
    );
    Ok(true)
}

/// Whether the kernel has let go of its queues: that takes it 10 to 50 ms after the last user of a socket is gone.
fn wait_until_free(broker: &mut Broker, id: u64) -> anyhow::Result<bool> {
    const PATIENCE: Duration = Duration::from_secs(2);
    const PAUSE: Duration = Duration::from_millis(10);

    let deadline = Instant::now() + PATIENCE;
    loop {
        if find(broker, id)?.is_none() {
            return Ok(true);
        }
        if Instant::now() > deadline {
            return Ok(false);
        }
        thread::sleep(PAUSE);
    }
}

fn is_bound(lease: &Lease) -> bool {
    lease.queues.iter().any(|queue| queue.mode.is_some())
}

/// What was stopped and what was not.
fn told(outcome: &Outcome) -> String {
    let lease = &outcome.lease;
    let (id, target, holder) = (lease.lease, target_of(lease), &lease.holder);
    let mut text = format!("lease {id} of {target} has ended\n");
    if outcome.killed {
        text += &format!(
            "its holder, pid {} of uid {}, was ended\n",
            holder.pid, holder.uid
        );
    }
    if outcome.cut {
        text += &format!("{} was cut off from every AF_XDP socket\n", lease.interface);
    }
    text += match outcome.rx_stopped {
        true => "RX stopped: its packets go to the host's stack now\n",
        false => {
            "RX: its packets go to the host's stack now, but by way of its holder's memory, since its socket is zero-copy: until \
             that is gone, whoever has it reads each frame of the queue, and can change it on its way\n"
        }
    };
    if !outcome.tx_may_continue {
        let how = match is_bound(lease) {
            true => "TX stopped: no socket of it is left\n",
            false => "TX never began: no socket of it was bound, and none can be any more\n",
        };
        return text + how + outcome.how_to_cut.as_deref().unwrap_or_default();
    }
    text += &match is_bound(lease) {
        true => format!(
            "TX goes on: whoever has a socket of it can go on transmitting on {target} until every file descriptor and \
             mapping of it is gone; no call of the kernel takes that back\n"
        ),
        false => format!(
            "TX is possible: its sockets were not seen bound, and whoever has them can still bind them to {} and transmit\n",
            lease.interface
        ),
    };
    for keeper in &outcome.keepers {
        text += &format!("  {keeper}\n");
    }
    if !outcome.killed && outcome.keepers.iter().any(|keeper| keeper.pid == holder.pid) {
        text += &format!("`xsk-broker revoke {id} --kill` ends its holder\n");
    }
    text += &match &outcome.how_to_cut {
        Some(how) => how.clone(),
        None => format!(
            "`xsk-broker revoke {id} --cut-device` says how to cut {} for good\n",
            lease.interface
        ),
    };
    text
}
