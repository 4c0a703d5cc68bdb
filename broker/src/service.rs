//! `org.varlink.service`: what every Varlink service answers.

use serde::Deserialize;
use xsk_client::wire::{
    self, Call, INTERFACE, InterfaceDescription, SERVICE_INTERFACE, ServiceError, ServiceInfo,
};

use crate::call::parameters;
use crate::connection::{Answer, Empty, RequestError, reply};

/// Answers a call of that interface.
pub(crate) fn answer(call: &Call<'_>, method: &str) -> Result<Answer, RequestError> {
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct GetInterfaceDescription {
        interface: String,
    }

    match method {
        "GetInfo" => {
            let Empty {} = parameters(call)?;
            reply(&ServiceInfo {
                vendor: "xsk-broker".into(),
                product: "xsk-broker".into(),
                version: env!("CARGO_PKG_VERSION").into(),
                url: env!("CARGO_PKG_REPOSITORY").into(),
                interfaces: vec![SERVICE_INTERFACE.into(), INTERFACE.into()],
            })
        }
        "GetInterfaceDescription" => {
            let wanted = parameters::<GetInterfaceDescription>(call)?.interface;
            let description = match wanted.as_str() {
                INTERFACE => wire::DESCRIPTION,
                SERVICE_INTERFACE => wire::SERVICE_DESCRIPTION,
                _ => return Err(ServiceError::InterfaceNotFound { interface: wanted }.into()),
            };
            reply(&InterfaceDescription {
                description: description.into(),
            })
        }
        _ => Err(ServiceError::MethodNotFound {
            method: call.method.clone().into_owned(),
        }
        .into()),
    }
}
