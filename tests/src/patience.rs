//! How long to wait for what is sure to come: a while on a machine, much longer on an emulated one.
//!
//! Only waits that end with the event are stretched. A time that a test is _about_ (a deadline of the broker's, a
//! silence) stays what it is.

use std::sync::OnceLock;
use std::time::Duration;

/// The variable that says by how much everything is slower here; `cargo xtask vm` sets it.
const VARIABLE: &str = "XSK_E2E_PATIENCE";

/// That long on an ordinary machine, and as much longer here as this one is slower.
pub fn stretched(duration: Duration) -> Duration {
    static FACTOR: OnceLock<u32> = OnceLock::new();
    let factor = FACTOR.get_or_init(|| {
        let told = std::env::var(VARIABLE).ok().and_then(|text| text.parse().ok());
        told.unwrap_or(1).clamp(1, 1000)
    });
    duration * *factor
}
