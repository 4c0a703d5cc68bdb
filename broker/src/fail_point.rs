//! Places at which a broker can be told to die, for the tests of what it leaves then. In debug builds only: of a release
//! nothing is left of this file but an empty function.

/// Where it is told so: the name of the place, and after a colon how many times it is passed unharmed.
#[cfg(debug_assertions)]
const VARIABLE: &str = "XSK_BROKER_FAIL_POINT";

/// Dies by SIGKILL here and now, if this is the place.
#[cfg(debug_assertions)]
pub(crate) fn pass(place: &str) {
    use std::sync::atomic::{AtomicU64, Ordering};

    static PASSED: AtomicU64 = AtomicU64::new(0);

    let Ok(wanted) = std::env::var(VARIABLE) else {
        return;
    };
    let (wanted, unharmed) = wanted.split_once(':').unwrap_or((&wanted, "0"));
    if wanted == place && PASSED.fetch_add(1, Ordering::Relaxed).to_string() == unharmed {
        if let Err(error) =
            rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL)
        {
            tracing::error!(%error, place, "cannot die here");
        }
        // Until the signal is delivered to this thread.
        loop {
            std::thread::park();
        }
    }
}

/// Nothing.
#[cfg(not(debug_assertions))]
#[inline(always)]
pub(crate) fn pass(_place: &str) {}
