//! `cargo xtask demo`: builds the real programs, and runs the demo with root's rights.

use anyhow::{Result, bail};

use crate::artifacts::Programs;
use crate::machine::Machine;
use crate::{repository, shell};

/// Show the main job on real packets, in network namespaces of its own.
///
/// A root broker with a policy; an ordinary user that acquires a queue, binds it and answers ARP, ICMP and 100,000
/// UDP echoes over AF_XDP without a capability; a refused request; a socket passed on by inheritance; a holder that is
/// killed and its queue granted to somebody else. Builds as you; network namespaces need root, directly or through
/// sudo. Ends with an error if any of it did not happen. Ctrl-C cleans up.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {}

pub(crate) fn run(_arguments: &Arguments) -> Result<()> {
    let machine = Machine::prepare(false)?;
    if let Some(reason) = machine.unfit {
        bail!("the demo cannot run here: {reason}");
    }
    let programs = Programs::build()?;
    // `env` rather than Command::env: sudo would drop the variables.
    let mut command = shell::as_root("env")?;
    command
        .args(programs.variables(&repository::root()?))
        .arg(&programs.demo);
    let status = command.status()?;
    if !status.success() {
        bail!("the demo ended with {status}");
    }
    Ok(())
}
