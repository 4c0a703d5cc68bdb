//! The exit codes, in one table (sysexits.h where it has a word for it).

use std::io::{self, ErrorKind};
use std::process::ExitCode;

use xsk_client::wire::{BrokerError, NoWish, ServiceError};
use xsk_client::{CallError, MemlockTooLow};

use super::place::{InUse, NoDirectory, NotRoot};
use super::purge::PinnedElsewhere;
use super::qemu::Misplaced;
use crate::kernel::pins::PinDirectoryError;
use crate::policy::PolicyError;

/// How a command ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// It did what was asked.
    Ok = 0,
    /// It failed for a reason that has no code of its own.
    Failed = 1,
    /// The command line is wrong, or asks for what no broker could give.
    Usage = 2,
    /// The broker cannot be reached (EX_UNAVAILABLE).
    Unreachable = 69,
    /// A queue is busy, a quota used up, or somebody has to end first: later it may work (EX_TEMPFAIL). After `revoke` and `reload --revoke`:
    /// something goes on. After `purge`: a broker runs.
    Busy = 75,
    /// The policy says no, or the kernel would (EX_NOPERM).
    Denied = 77,
    /// The policy or the set-up of this machine is wrong (EX_CONFIG).
    Config = 78,
}

/// The table for `--help`.
pub const TABLE: &str = "\
Exit codes:
   0  done
   1  failed
   2  wrong usage
  69  the broker cannot be reached
  75  a queue is busy, a quota used up, or a lease or process has to end first; later it may work. `revoke`,
      `reload --revoke`: something goes on. `purge`: a broker runs
  77  denied: by the policy, by the mode of the socket, or for want of root
  78  the policy or the set-up of this machine is wrong, which no waiting cures";

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}

/// What an error means for the exit code.
pub fn of_error(error: &anyhow::Error) -> Exit {
    match error.downcast_ref::<CallError>() {
        Some(CallError::Connect { cause, .. }) if cause.kind() == ErrorKind::PermissionDenied => Exit::Denied,
        Some(CallError::Connect { .. } | CallError::Connection { .. } | CallError::Timeout { .. }) => {
            Exit::Unreachable
        }
        Some(CallError::Refused { cause, .. }) => of_refusal(cause),
        Some(CallError::Service { cause, .. }) if matches!(**cause, ServiceError::PermissionDenied {}) => {
            Exit::Denied
        }
        None if error.is::<NotRoot>() => Exit::Denied,
        None if error.is::<InUse>() => Exit::Busy,
        None if error.is::<NoDirectory>() || error.is::<PinnedElsewhere>() => Exit::Config,
        None if let Some(error) = error.downcast_ref::<PinDirectoryError>() => match error {
            PinDirectoryError::InUse(_) => Exit::Busy,
            PinDirectoryError::Failed(_) => Exit::Failed,
            PinDirectoryError::NoBpffs(_) | PinDirectoryError::Foreign { .. } => Exit::Config,
        },
        None if error.is::<PolicyError>() || error.is::<MemlockTooLow>() => Exit::Config,
        None if error.is::<Misplaced>() || error.is::<NoWish>() => Exit::Usage,
        None if error
            .downcast_ref::<io::Error>()
            .is_some_and(|error| error.kind() == ErrorKind::PermissionDenied) =>
        {
            Exit::Denied
        }
        Some(_) | None => Exit::Failed,
    }
}

fn of_refusal(refusal: &BrokerError) -> Exit {
    match refusal {
        BrokerError::Denied { .. } => Exit::Denied,
        BrokerError::QueueBusy { .. } | BrokerError::QuotaExceeded { .. } => Exit::Busy,
        BrokerError::DeviceUnavailable { .. }
        | BrokerError::NoSuchQueue { .. }
        | BrokerError::PolicyWrong { .. }
        | BrokerError::ZeroCopyUnavailable { .. }
        | BrokerError::SocketKindUnsupported { .. } => Exit::Config,
        _ => Exit::Failed,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_names_every_code() {
        for exit in [
            Exit::Ok,
            Exit::Failed,
            Exit::Usage,
            Exit::Unreachable,
            Exit::Busy,
            Exit::Denied,
            Exit::Config,
        ] {
            let code = format!("{:>4}  ", exit as u8);
            assert!(TABLE.lines().any(|line| line.starts_with(&code)), "{exit:?}");
        }
    }
}
