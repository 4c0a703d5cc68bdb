//! What goes back to a client: a message, fds with it, or an error in words that are meant for it.

use std::sync::atomic::{AtomicU64, Ordering};

use tokio::io::AsyncWriteExt;
use tokio::time::{Instant, timeout_at};
use xsk_client::wire::{BrokerError, Call, encode};

use super::{Closed, Connection, DEADLINE, Success, unencodable};
use crate::end;
use crate::error::{Error, Failure, RequestError, chain};
use crate::grant::HandOver;
use crate::outgoing;
use crate::unread::until_read;
use crate::watch::Watch;

impl Connection {
    /// Waits until the client has read all earlier replies, and with them any fds.
    pub(super) async fn until_read(&mut self, deadline: Instant) -> Result<(), Closed> {
        timeout_at(deadline, until_read(&self.stream))
            .await
            .map_err(|_| Closed::ReplyDeadline)??;
        self.unread = None;
        Ok(())
    }

    pub(super) async fn send(&mut self, message: &[u8]) -> Result<(), Closed> {
        let deadline = Instant::now() + DEADLINE;
        timeout_at(deadline, self.stream.write_all(message))
            .await
            .map_err(|_| Closed::ReplyDeadline)??;
        Ok(())
    }

    /// Sends a reply whose first byte carries fds, and has the holder watched from then on.
    pub(super) async fn send_grant(
        &mut self,
        mut hand_over: HandOver,
        call: &Call<'_>,
    ) -> Result<(), Closed> {
        // Before anything is sent: a lease that nobody watches would never end.
        let ready = Watch::of(self.peer.process())
            .map_err(Error::from)
            .and_then(|watch| {
                let message = encode(&Success {
                    parameters: &hand_over.reply,
                })
                .map_err(unencodable)?;
                Ok((watch, message))
            });
        let (watch, message) = match ready {
            Ok(ready) => ready,
            Err(error) => {
                drop(hand_over);
                let message = self.error_message(error, call);
                return self.send(&message).await;
            }
        };

        let deadline = Instant::now() + DEADLINE;
        self.until_read(deadline).await?;
        hand_over.until_stored().await;
        if !hand_over.is_wanted(self.turn()).await.unwrap_or(false) {
            let gone: Error = end::no_such_lease(hand_over.lease()).into();
            return self.send(&self.error_message(gone, call)).await;
        }
        let fds = std::mem::take(&mut hand_over.fds);
        // Whatever becomes of the sending: they may be in flight from here on.
        self.unread = hand_over.unread.take();
        let sent = timeout_at(
            deadline,
            outgoing::send_with_fds(&mut self.stream, &message, &fds),
        )
        .await;
        match sent.map_err(|_| Closed::ReplyDeadline)? {
            // As many fds are on their way to clients as the kernel allows; nothing of the reply was sent.
            Err(error) if error.raw_os_error() == Some(libc::ETOOMANYREFS) => {
                drop(hand_over);
                let failure: Error = Failure::kernel("sendmsg(SCM_RIGHTS)", "a client", error).into();
                return self.send(&self.error_message(failure, call)).await;
            }
            sent => sent?,
        }
        if let Some((lease, ended)) = hand_over.delivered() {
            tokio::spawn(watch.until_exit(lease, ended, self.engine.clone()));
        }
        Ok(())
    }

    /// An error as it goes over the wire. Failures of ours are opaque there and whole in the log.
    pub(super) fn error_message(&self, error: impl Into<RequestError>, call: &Call<'_>) -> Vec<u8> {
        static INCIDENTS: AtomicU64 = AtomicU64::new(1);

        let encoded = match error.into() {
            RequestError::Service(error) => encode(&error),
            RequestError::Request(Error::Refused(error)) => encode(&error),
            RequestError::Request(Error::Failed(failure)) => {
                let incident = INCIDENTS.fetch_add(1, Ordering::Relaxed);
                let (uid, pid) = (self.peer.subject().uid, self.peer.process().pid());
                tracing::error!(incident, uid, pid, method = %call.method, "request failed: {}", chain(&failure));
                let message =
                    format!("the broker could not do it; its log has the cause under incident {incident}");
                encode(&BrokerError::Failed { message })
            }
        };
        encoded.unwrap_or_else(|_| {
            b"{\"error\":\"org.xskbroker.Broker.Failed\",\"parameters\":{\"message\":\"\"}}\0".to_vec()
        })
    }
}
