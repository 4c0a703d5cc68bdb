//! What a call asks for, done: by the engine, and with patience for queues that are about to be free.

use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep};
use xsk_client::wire::{
    Acquire, Activate, Bind, BrokerError, Call, Explain, INTERFACE, LeaseReference, Reload,
    SERVICE_INTERFACE, ServiceError, Transfer,
};

use super::{Answer, Connection, Empty, RequestError, reply};
use crate::call::{invalid, parameters};
use crate::engine::Engine;
use crate::error::Error;
use crate::grant::{self, HandOver};
use crate::identity::{Process, hung_up};
use crate::lease::LeaseId;
use crate::reload::{self, Unwanted};
use crate::report::{self, Scope};
use crate::watch::Watch;
use crate::{end, monitor, revoke, service, transfer};

/// The longest label: it is written into the log again and again.
const LABEL_BYTES: usize = 256;

/// How long an `Acquire` waits for a queue whose last holder is gone while the kernel still holds it.
const LINGER_PATIENCE: Duration = Duration::from_millis(500);

impl Connection {
    /// Does what a call asks for.
    pub(super) async fn answer(&self, call: &Call<'_>) -> Result<Answer, RequestError> {
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
