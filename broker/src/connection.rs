//! One client's connection: identity once, then requests, one at a time.
//!
//! A request has one absolute deadline from its first byte. A wrong request gets an error and the connection lives on;
//! bytes that are no request end this connection and no other. Fds that a client sends are dropped unseen: everything
//! is read with plain read(2).

mod reply;

use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::net::UnixStream;
use tokio::task::yield_now;
use tokio::time::{Instant, sleep, timeout_at};
use xsk_client::wire::{
    Acquire, Activate, Bind, BrokerError, Call, Explain, FramingError, INTERFACE, LeaseReference,
    MAX_MESSAGE_BYTES, MessageBuffer, Monitored, Reload, SERVICE_INTERFACE, ServiceError, Transfer, encode,
};

use crate::call::{Malformed, invalid, parameters, read_call};
use crate::charge::{Accounts, Charge};
use crate::end;
use crate::engine::{Engine, EngineHandle, Turn};
pub(crate) use crate::error::RequestError;
use crate::error::{Error, Failure};
use crate::grant::{self, HandOver};
use crate::identity::{Peer, Process, hung_up};
use crate::lease::LeaseId;
use crate::limit::LimitReached;
use crate::monitor::{self, Feed};
use crate::quota::Resource;
use crate::reload::{self, Unwanted};
use crate::report::{self, Scope};
use crate::revoke;
use crate::unread::Unread;
use crate::watch::Watch;
use crate::{service, transfer};

/// From the first byte of a request to its last, and from the first byte of a reply to its last.
const DEADLINE: Duration = Duration::from_secs(5);

/// The longest label: it is written into the log again and again.
const LABEL_BYTES: usize = 256;

/// How long an `Acquire` waits for a queue whose last holder is gone while the kernel still holds it.
const LINGER_PATIENCE: Duration = Duration::from_millis(500);

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

    /// Does what a call asks for.
    async fn answer(&self, call: &Call<'_>) -> Result<Answer, RequestError> {
        if call.upgrade {
            return Err(invalid(call, "this service grants no upgrade").into());
        }
        let (interface, method) = call.method.rsplit_once('.').unwrap_or(("", &call.method));
        match interface {
            INTERFACE => self.broker_method(call, method).await,
            SERVICE_INTERFACE => service::answer(call, method),
            _ => Err(ServiceError::InterfaceNotFound {
                interface: interface.to_owned(),
            }
            .into()),
        }
    }

    async fn broker_method(&self, call: &Call<'_>, method: &str) -> Result<Answer, RequestError> {
        let (peer, scope, turn) = (Arc::clone(&self.peer), self.scope, self.turn());
        match method {
            "Acquire" | "Bind" if call.oneway => {
                let message =
                    "file descriptors go with the reply, and a oneway call has none: call without oneway";
                Err(invalid(call, message).into())
            }
            "Acquire" => {
                let acquire = parameters::<Acquire>(call)?;
                if acquire
                    .label
                    .as_ref()
                    .is_some_and(|label| label.len() > LABEL_BYTES)
                {
                    return Err(invalid(call, format!("label: {LABEL_BYTES} bytes are the most")).into());
                }
                acquire.check().map_err(|error| invalid(call, error))?;
                Ok(Answer::Grant(Box::new(self.acquire(acquire).await?)))
            }
            "Bind" => {
                let id = LeaseId(parameters::<Bind>(call)?.lease);
                Ok(Answer::Grant(Box::new(self.bind(id).await?)))
            }
            "Activate" => {
                let id = LeaseId(parameters::<Activate>(call)?.lease);
                reply(
                    &self
                        .engine
                        .call(turn, move |engine| grant::activate(engine, &peer, id))
                        .await??,
                )
            }
            "Transfer" => {
                let call = parameters::<Transfer>(call)?;
                let to = Arc::new(Process::named(&call)?);
                let watch = Watch::of(&to)?;
                let id = LeaseId(call.lease);
                let (moved, ended) = self
                    .engine
                    .call(turn, move |engine| transfer::transfer(engine, &peer, id, to))
                    .await??;
                tokio::spawn(watch.until_exit(id, ended, self.engine.clone()));
                reply(&moved)
            }
            "Release" => {
                let id = LeaseId(parameters::<LeaseReference>(call)?.lease);
                self.engine
                    .call(turn, move |engine| end::release(engine, &peer, id))
                    .await?;
                reply(&Empty {})
            }
            "ListLeases" => {
                let Empty {} = parameters(call)?;
                reply(
                    &self
                        .engine
                        .call(turn, move |engine| {
                            report::leases(engine, scope, peer.subject().uid)
                        })
                        .await?,
                )
            }
            "Monitor" if !call.more => Err(ServiceError::ExpectedMore {}.into()),
            "Monitor" => {
                let Empty {} = parameters(call)?;
                let begin = move |engine: &mut Engine| monitor::begin(engine, scope, &peer);
                let begun = self.engine.call(turn, begin).await?;
                Ok(Answer::Monitor(Box::new(begun)))
            }
            "ListInterfaces" => {
                let Empty {} = parameters(call)?;
                reply(
                    &self
                        .engine
                        .call(turn, move |engine| report::interfaces(engine, scope, &peer))
                        .await??,
                )
            }
            "Explain" => {
                let explain = parameters::<Explain>(call)?;
                explain.acquire().check().map_err(|error| invalid(call, error))?;
                if scope == Scope::Own && (explain.uid.is_some() || explain.gids.is_some()) {
                    return Err(ServiceError::PermissionDenied {}.into());
                }
                reply(
                    &self
                        .engine
                        .call(turn, move |engine| report::explain(engine, scope, &peer, explain))
                        .await?,
                )
            }
            "GetStatus" | "Revoke" | "Reload" if scope == Scope::Own => {
                Err(ServiceError::PermissionDenied {}.into())
            }
            "GetStatus" => {
                let Empty {} = parameters(call)?;
                reply(&self.engine.call(turn, report::status).await?)
            }
            "Revoke" => {
                let id = LeaseId(parameters::<LeaseReference>(call)?.lease);
                reply(&revoke::revoke(&self.engine, turn, id).await?)
            }
            "Reload" => {
                let unwanted = match parameters::<Reload>(call)?.revoke {
                    Some(true) => Unwanted::Ended,
                    Some(false) | None => Unwanted::Kept,
                };
                reply(&reload::reload(&self.engine, Some(peer), unwanted).await?)
            }
            _ => Err(ServiceError::MethodNotFound {
                method: call.method.clone().into_owned(),
            }
            .into()),
        }
    }

    async fn acquire(&self, call: Acquire) -> Result<HandOver, Error> {
        let (handle, peer, this_call) = (self.engine.clone(), Arc::clone(&self.peer), call.clone());
        let acquired = self
            .patiently(move |engine| grant::acquire(engine, &handle, &peer, this_call.clone()))
            .await;
        match acquired {
            Ok(hand_over) => Ok(hand_over),
            Err(error) => {
                let peer = Arc::clone(&self.peer);
                let written = move |engine: &mut Engine| {
                    grant::refused(engine, &peer, &call, &error);
                    Err(error)
                };
                self.engine.call(self.turn(), written).await?
            }
        }
    }

    async fn bind(&self, id: LeaseId) -> Result<HandOver, Error> {
        let (handle, peer) = (self.engine.clone(), Arc::clone(&self.peer));
        self.patiently(move |engine| grant::bind(engine, &handle, &peer, id))
            .await
    }

    /// Has the engine do something, with some patience for queues that the kernel is about to let go of. Only this client
    /// waits.
    async fn patiently<T: Send + 'static>(
        &self,
        job: impl Fn(&mut Engine) -> Result<T, Error> + Clone + Send + 'static,
    ) -> Result<T, Error> {
        let give_up = Instant::now() + LINGER_PATIENCE;
        loop {
            let result = self.engine.call(self.turn(), job.clone()).await?;
            match &result {
                Err(Error::Refused(BrokerError::QueueBusy {
                    retry_after_ms: Some(wait_ms),
                    ..
                })) if Instant::now() + Duration::from_millis(*wait_ms) < give_up => {
                    sleep(Duration::from_millis(*wait_ms)).await;
                }
                _ => return result,
            }
            // Nobody waits for it any more.
            if self.peer.process().has_exited() || hung_up(self.stream.as_fd()) {
                return result;
            }
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
