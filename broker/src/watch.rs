//! Watching a holder: its lease ends when the process does.

use std::sync::Arc;

use tokio::sync::oneshot;

use crate::end::{self, Reason};
use crate::engine::EngineHandle;
use crate::error::Failure;
use crate::identity::Process;
use crate::kernel::readable::Readable;
use crate::lease::LeaseId;

/// A process that is about to be watched.
#[derive(Debug)]
pub(crate) struct Watch {
    pidfd: Readable,
    process: Arc<Process>,
}

impl Watch {
    /// Has the reactor look at a process's pidfd. To be had before the process becomes a holder: a lease that nobody
    /// watches would never end.
    ///
    /// # Errors
    ///
    /// What epoll_ctl(2) says, or EMFILE.
    pub(crate) fn of(process: &Arc<Process>) -> Result<Self, Failure> {
        let pidfd = process
            .pidfd()
            .ok_or_else(|| rustix::io::Errno::SRCH.into())
            .and_then(|pidfd| pidfd.try_clone_to_owned())
            .and_then(Readable::new)
            .map_err(|source| Failure::kernel("epoll", "a holder's pidfd", source))?;
        Ok(Self {
            pidfd,
            process: Arc::clone(process),
        })
    }

    /// Ends the lease when the process exits.
    pub(crate) async fn until_exit(self, lease: LeaseId, ended: oneshot::Receiver<()>, engine: EngineHandle) {
        tokio::select! {
            // The lease dropped its side: it has ended in another way, or has another holder.
            _ = ended => {}
            // A pidfd is readable once its process has exited, and an error here means that it cannot be watched.
            _ = self.pidfd.ready() => {
                engine.post(move |engine| end::of_holder(engine, lease, &self.process, Reason::HolderExited));
            }
        }
    }
}
