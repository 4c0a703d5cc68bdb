//! What the verbs that ask the broker have in common: which socket, and text or JSON.

use std::fmt::Write as _;
use std::io::{self, Write as _};
use std::path::PathBuf;
use std::time::Duration;

use serde::Serialize;
use serde_json::value::RawValue;
use xsk_client::wire::DEFAULT_SOCKET;
use xsk_client::{Broker, CallError};

use crate::ascii;

/// What the socket for operators is called, in the run directory of its broker.
const CONTROL_SOCKET_NAME: &str = "control.sock";

/// How a device's link is, in a word.
pub const fn link_word(up: bool, carrier: bool) -> &'static str {
    match (up, carrier) {
        (true, true) => "up",
        (true, false) => "no carrier",
        (false, _) => "down",
    }
}

/// Where the broker listens for everybody.
#[derive(Debug, Clone, clap::Args)]
pub struct BrokerSocket {
    /// The broker's socket
    #[arg(long, value_name = "PATH", env = "XSK_BROKER_SOCKET", default_value = DEFAULT_SOCKET)]
    pub socket: PathBuf,
}

impl BrokerSocket {
    /// Connects as anybody.
    ///
    /// # Errors
    ///
    /// [`CallError::Connect`].
    pub fn connect(&self) -> Result<Broker, CallError> {
        Broker::connect_to(&self.socket)
    }
}

/// Where the broker listens.
#[derive(Debug, Clone, clap::Args)]
pub struct Sockets {
    #[command(flatten)]
    broker: BrokerSocket,

    /// The broker's socket for operators, which is tried first [default: control.sock beside --socket]
    #[arg(long, value_name = "PATH", env = "XSK_BROKER_CONTROL_SOCKET")]
    control_socket: Option<PathBuf>,
}

impl Sockets {
    /// The one that was named, else the one of the same broker.
    fn control_socket(&self) -> PathBuf {
        let beside = || self.broker.socket.with_file_name(CONTROL_SOCKET_NAME);
        self.control_socket.clone().unwrap_or_else(beside)
    }

    /// Connects as an operator.
    ///
    /// # Errors
    ///
    /// [`CallError::Connect`].
    pub fn connect_as_operator(&self) -> anyhow::Result<Broker> {
        let connected = Broker::connect_to(self.control_socket());
        let denied = |error: &CallError| match error {
            CallError::Connect { cause, .. } => cause.kind() == io::ErrorKind::PermissionDenied,
            _ => false,
        };
        match connected {
            Err(error) if denied(&error) => Err(anyhow::Error::new(error).context("this is for root")),
            connected => Ok(connected?),
        }
    }

    /// Connects as an operator where that is possible, which is for root, else as anybody.
    ///
    /// # Errors
    ///
    /// [`CallError::Connect`].
    pub fn connect_for_most(&self) -> Result<Broker, CallError> {
        self.connect_as_operator().or_else(|_| self.broker.connect())
    }
}

/// Calls a method and prints its result: as the reply's parameters, or as text.
///
/// # Errors
///
/// The call's, and those of standard output.
pub fn print<R: serde::de::DeserializeOwned>(
    broker: &mut Broker,
    method: &'static str,
    parameters: &impl Serialize,
    json: bool,
    text: impl FnOnce(&R) -> String,
) -> anyhow::Result<R> {
    let raw: Box<RawValue> = broker.call(method, parameters)?;
    let reply: R = serde_json::from_str(raw.get())?;
    match json {
        true => put_json(raw.get())?,
        false => put(&text(&reply))?,
    }
    Ok(reply)
}

/// Writes to standard output. A reader that closed it early, as `head` does, is no error.
///
/// # Errors
///
/// As write(2).
pub fn put(text: &str) -> io::Result<()> {
    match io::stdout().write_all(text.as_bytes()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        result => result,
    }
}

/// Writes JSON to standard output, as a line of printable ASCII: clients chose some of it.
///
/// # Errors
///
/// As write(2).
pub fn put_json(json: &str) -> io::Result<()> {
    put(&(ascii::json(json) + "\n"))
}

/// A time as people say it: the two largest units.
pub fn duration(ms: u64) -> String {
    let duration = Duration::from_millis(ms);
    if ms < 1000 {
        return format!("{ms}ms");
    }
    let seconds = duration.as_secs();
    let parts = [
        (seconds / 86400, "d"),
        (seconds / 3600 % 24, "h"),
        (seconds / 60 % 60, "m"),
        (seconds % 60, "s"),
    ];
    let first = parts.iter().position(|(amount, _)| *amount > 0).unwrap_or(3);
    parts
        .iter()
        .skip(first)
        .take(2)
        .fold(String::new(), |mut text, (amount, unit)| {
            // Writing to a String cannot fail.
            let _infallible = write!(text, "{amount}{unit}");
            text
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_have_two_units() {
        let cases = [
            (0, "0ms"),
            (999, "999ms"),
            (1000, "1s"),
            (61_000, "1m1s"),
            (3_600_000, "1h0m"),
            (90_061_000, "1d1h"),
        ];
        for (ms, text) in cases {
            assert_eq!(duration(ms), text);
        }
    }
}
