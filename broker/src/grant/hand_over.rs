//! What is on the way to a holder: a new lease or its sockets, with the reply. Undo is Drop.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use serde::Serialize;
use tokio::sync::oneshot::{self, error::TryRecvError};
use xsk_client::wire::{Acquired, BindReply};

use crate::end::{self, Reason};
use crate::engine::{Engine, EngineHandle, Turn};
use crate::error::Failure;
use crate::identity::Process;
use crate::lease::LeaseId;
use crate::manager::Sent;
use crate::unread::Unread;

/// A lease, or its sockets, on the way to its holder: the reply and the fds that go with it.
///
/// Unless [`HandOver::delivered`] is called the lease ends, whatever the reason: a client that hung up, a deadline, a
/// full socket. It does not where its holder has given it away meanwhile.
#[derive(Debug)]
#[must_use = "a lease that is not delivered ends"]
pub struct HandOver {
    /// What to answer.
    pub reply: HandOverReply,
    /// In the order of the reply's indexes.
    pub fds: Vec<OwnedFd>,
    /// What charges the client for them, until somebody else keeps it.
    pub unread: Option<Unread>,
    /// Resolves when the service manager was sent what the next broker is to have of it.
    pub(super) stored: Option<Sent>,
    pub(super) lease: LeaseId,
    /// Whose lease it is; it may give it away before this is delivered.
    pub(super) holder: Arc<Process>,
    pub(super) is_delivered: bool,
    /// Resolves when the lease has ended; nobody has it yet when the lease is new.
    pub(super) ended: Option<oneshot::Receiver<()>>,
    pub(super) engine: EngineHandle,
}

/// What goes to a holder with fds.
#[derive(Debug, Serialize)]
#[serde(untagged)]
pub enum HandOverReply {
    /// A new lease.
    Acquired(Acquired),
    /// The sockets of a lease of kind `bound`.
    Bound(BindReply),
}

impl HandOver {
    /// Whether it is still to be delivered: the lease has not ended meanwhile, nor moved to another process.
    ///
    /// # Errors
    ///
    /// Where the engine has stopped.
    pub async fn is_wanted(&mut self, turn: Turn) -> Result<bool, Failure> {
        // A new lease has this holder's watch until either: nobody else has to be asked.
        if let Some(ended) = &mut self.ended {
            return Ok(matches!(ended.try_recv(), Err(TryRecvError::Empty)));
        }
        let (lease, holder) = (self.lease, Arc::clone(&self.holder));
        let is_held = move |engine: &mut Engine| {
            let lease = engine.leases.get_mut(lease);
            lease.is_some_and(|lease| lease.is_live() && lease.holder().is(&holder))
        };
        self.engine.call(turn, is_held).await
    }

    /// Waits until a service manager that keeps fds has those that the next broker needs for this lease: only then may
    /// anybody else have its sockets. Not for ever: without them it is as without such a manager.
    pub async fn until_stored(&mut self) {
        if let Some(stored) = self.stored.take()
            && !stored.in_time().await
        {
            tracing::info!(
                lease = self.lease.0,
                "the service manager takes no fds to keep now (NOTIFY_SOCKET): this lease may not outlive a restart"
            );
        }
    }

    /// The number of the lease.
    pub fn lease(&self) -> LeaseId {
        self.lease
    }

    /// The client has the fds. Gives a new lease, and what resolves when it has ended.
    pub fn delivered(mut self) -> Option<(LeaseId, oneshot::Receiver<()>)> {
        self.is_delivered = true;
        self.ended.take().map(|ended| (self.lease, ended))
    }
}

impl Drop for HandOver {
    fn drop(&mut self) {
        if !self.is_delivered {
            let (lease, holder) = (self.lease, Arc::clone(&self.holder));
            self.engine
                .post(move |engine| end::of_holder(engine, lease, &holder, Reason::NotDelivered));
        }
    }
}
