//! From the bytes of a message to a method's parameters: strictly, so that no client's mistake passes for a wish.
//!
//! What is no JSON object ends the connection. An object with wrong members is a wrong request: its sender is told what
//! is wrong with it.

use serde::Deserialize;
use serde_json::value::RawValue;
use xsk_client::wire::{self, BrokerError, Call};

/// Why a message is none.
#[derive(Debug, thiserror::Error)]
pub enum Malformed {
    /// Its bytes are not JSON, or not UTF-8, or more than one value.
    #[error("not JSON: {0}")]
    Json(#[from] serde_json::Error),
    /// It is another JSON value.
    #[error("not a JSON object")]
    NotAnObject,
}

/// Reads a message as a call; the inner error is for its sender.
///
/// # Errors
///
/// [`Malformed`]: whoever sends that does not speak the protocol.
pub fn read_call(message: &[u8]) -> Result<Result<Call<'_>, BrokerError>, Malformed> {
    // The whole message first, to its last byte, and without recursion, however deep it is.
    let whole: &RawValue = serde_json::from_slice(message)?;
    if !whole.get().starts_with('{') {
        return Err(Malformed::NotAnObject);
    }
    let call = wire::object(&mut serde_json::Deserializer::from_str(whole.get()));
    Ok(call.map_err(|error| BrokerError::InvalidRequest {
        message: format!("not a call: {error}"),
    }))
}

/// A call's parameters; none are an empty object.
///
/// # Errors
///
/// [`BrokerError::InvalidRequest`] says which member is wrong.
pub fn parameters<T: for<'de> Deserialize<'de>>(call: &Call<'_>) -> Result<T, BrokerError> {
    let json = call.parameters.map_or("{}", |parameters| parameters.get());
    wire::object(&mut serde_json::Deserializer::from_str(json)).map_err(|error| invalid(call, error))
}

/// A call whose parameters are wrong.
pub fn invalid(call: &Call<'_>, what: impl std::fmt::Display) -> BrokerError {
    BrokerError::InvalidRequest {
        message: format!("parameters of {}: {what}", call.method),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wrong_call_is_not_a_malformed_message() {
        let words = |message: &str| match read_call(message.as_bytes()) {
            Ok(Ok(call)) => call.method.into_owned(),
            Ok(Err(wrong)) => wrong.to_string(),
            Err(malformed) => malformed.to_string(),
        };
        assert_eq!(words(r#" {"method":"a.B"} "#), "a.B");
        assert_eq!(words("[]"), "not a JSON object");
        assert!(
            words(r#"{"method":"a.B","paramters":{}}"#).starts_with("not a call: unknown field `paramters`")
        );
        assert!(words(r#"{"method":"a.B"}{}"#).starts_with("not JSON: trailing characters"));
        assert!(words(&"[".repeat(100_000)).starts_with("not JSON: EOF"));
    }
}
