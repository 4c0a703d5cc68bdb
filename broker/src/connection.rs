//! One client's connection: identity once, then requests, one at a time.
//!
//! A request has one absolute deadline from its first byte. A wrong request gets an error and the connection lives on;
//! bytes that are no request end this connection and no other. Fds that a client sends are dropped unseen: everything
//! is read with plain read(2).

mod methods;
mod reply;

use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::net::UnixStream;
use tokio::task::yield_now;
use tokio::time::{Instant, timeout_at};
use xsk_client::wire::{FramingError, MAX_MESSAGE_BYTES, MessageBuffer, Monitored, encode};

use crate::call::{Malformed, read_call};
use crate::charge::{Accounts, Charge};
use crate::engine::{EngineHandle, Turn};
pub(crate) use crate::error::RequestError;
use crate::error::{Error, Failure};
use crate::grant::HandOver;
use crate::identity::{Peer, hung_up};
use crate::limit::LimitReached;
use crate::monitor::{self, Feed};
use crate::quota::Resource;
use crate::report::Scope;
use crate::unread::Unread;

/// From the first byte of a request to its last, and from the first byte of a reply to its last.
const DEADLINE: Duration = Duration::from_secs(5);

/// One client.
#[derive(Debug)]
pub struct Connection {
    /// The stream that it came over.
    pub stream: UnixStream,
    /// Who it is.
    pub peer: Arc<Peer>,
    /// Which of the two sockets it came to.
    pub scope: Scope,
    /// The way to the engine.
    pub engine: EngineHandle,
    /// Where its requests are charged.
    pub accounts: Accounts,
    /// Its place among the connections of its uid; the control socket's are not counted.
    pub charge: Option<Charge>,
    /// For fds that it was sent and may not have read.
    pub unread: Option<Unread>,
}

/// Why a connection was closed from our side.
#[derive(Debug, thiserror::Error)]
enum Closed {
    #[error("the request was not whole within {} s", DEADLINE.as_secs())]
    RequestDeadline,
    #[error("the reply was not taken within {} s", DEADLINE.as_secs())]
    ReplyDeadline,
    #[error(transparent)]
    Framing(#[from] FramingError),
    #[error(transparent)]
    Malformed(#[from] Malformed),
    #[error(transparent)]
    Monitor(#[from] monitor::Closed),
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// What goes back.
pub(crate) enum Answer {
    Message(Vec<u8>),
    Grant(Box<HandOver>),
    Monitor(Box<(Arc<Feed>, Monitored)>),
}

impl Connection {
    /// Serves the client until it hangs up or misbehaves.
    pub async fn serve(mut self) {
        let (uid, pid) = (self.peer.subject().uid, self.peer.process().pid());
        match self.serve_requests().await {
            Ok(()) => tracing::debug!(uid, pid, "client hung up"),
            // Quoted and cut: parts of it may be the client's words. Not for an ordinary log, which anybody could fill.
            Err(closed) => {
                let why: String = closed.to_string().chars().take(200).collect();
                tracing::debug!(uid, pid, ?why, "connection closed");
            }
        }
        // For as long the connection counts, too.
        if let Some(unread) = self.unread {
            unread.until_read_or_gone(&self.stream).await;
        }
    }

    async fn serve_requests(&mut self) -> Result<(), Closed> {
        let mut buffer = MessageBuffer::new(MAX_MESSAGE_BYTES);
        while let Some(message) = self.next_message(&mut buffer).await? {
            yield_now().await;
            let call = match read_call(&message)? {
                Ok(call) => call,
                Err(wrong) => {
                    self.send(&encode(&wrong).map_err(io::Error::from)?).await?;
                    continue;
                }
            };
            // What it sent before it died is nobody's wish any more.
            if self.peer.process().has_exited() || !call.oneway && hung_up(self.stream.as_fd()) {
                return Ok(());
            }
            // Until it is answered.
            let charge = match self.charge_request() {
                Ok(charge) => charge,
                Err(reached) => {
                    self.send(&self.error_message(reached, &call)).await?;
                    continue;
                }
            };
            let answer = self.answer(&call).await;
            if call.oneway {
                if let Err(error) = answer {
                    // Who calls so gets no word back (varlink.org/Method-Call).
                    let reply = self.error_message(error, &call);
                    tracing::debug!(reply = %String::from_utf8_lossy(&reply), "a call without a reply failed");
                }
                continue;
            }
            match answer.map_err(|error| self.error_message(error, &call)) {
                Ok(Answer::Message(message)) | Err(message) => self.send(&message).await?,
                Ok(Answer::Grant(hand_over)) => self.send_grant(*hand_over, &call).await?,
                Ok(Answer::Monitor(begun)) => {
                    drop(charge);
                    // From then on nobody looks whether fds were read.
                    self.until_read(Instant::now() + DEADLINE).await?;
                    let turn = self.turn();
                    return Ok(monitor::stream(&mut self.stream, &self.engine, turn, *begun).await?);
                }
            }
        }
        Ok(())
    }

    /// The next whole message. `None`: the client hung up, in the middle of one or not.
    async fn next_message(&mut self, buffer: &mut MessageBuffer) -> Result<Option<Vec<u8>>, Closed> {
        let mut deadline = None;
        loop {
            if let Some(message) = buffer.next_message()? {
                return Ok(Some(message));
            }
            if !buffer.is_empty() && deadline.is_none() {
                deadline = Some(Instant::now() + DEADLINE);
            }
            // A sender that never pauses would keep the time-out below from being looked at.
            if deadline.is_some_and(|deadline| Instant::now() >= deadline) {
                return Err(Closed::RequestDeadline);
            }
            let ready = self.readable();
            match deadline {
                Some(deadline) => timeout_at(deadline, ready)
                    .await
                    .map_err(|_| Closed::RequestDeadline)??,
                None => ready.await?,
            }
            // tokio does not count a readable stream as work: without this, a client that never pauses would have the
            // whole thread, and nobody else would be heard.
            yield_now().await;
            let mut bytes = [0; 4096];
            match self.stream.try_read(&mut bytes) {
                Ok(0) => return Ok(None),
                Ok(count) => buffer.extend(bytes.get(..count).unwrap_or_default()),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Waits for something to read. Meanwhile it looks whether the client has read the fds that it was sent.
    async fn readable(&mut self) -> io::Result<()> {
        if let Some(unread) = &self.unread {
            tokio::select! {
                ready = self.stream.readable() => return ready,
                () = unread.until_read_or_gone(&self.stream) => self.unread = None,
            }
        }
        self.stream.readable().await
    }

    /// The control socket's requests are not counted.
    fn charge_request(&self) -> Result<Option<Charge>, LimitReached> {
        match self.scope {
            Scope::All => Ok(None),
            Scope::Own => {
                let uid = self.peer.subject().uid;
                self.accounts.charge(uid, Resource::Requests, 1).map(Some)
            }
        }
    }

    /// An operator's word does not wait for what users ask for.
    fn turn(&self) -> Turn {
        match self.scope {
            Scope::Own => Turn::Of(self.peer.subject().uid),
            Scope::All => Turn::First,
        }
    }
}

/// No parameters, no result.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Empty {}

#[derive(Serialize)]
struct Success<'a, T> {
    parameters: &'a T,
}

pub(crate) fn reply(parameters: &impl Serialize) -> Result<Answer, RequestError> {
    encode(&Success { parameters })
        .map(Answer::Message)
        .map_err(|error| unencodable(error).into())
}

fn unencodable(error: serde_json::Error) -> Error {
    Failure::kernel("encoding of", "a reply", io::Error::from(error)).into()
}
