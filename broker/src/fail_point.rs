//! Places at which a broker can be told to die, for the tests of what it leaves then. In debug builds only: of a release
//! nothing is left of this file but an empty function.

/// Where it is told so, by the name of the place; with `panic at ` before it, to panic there.
#[cfg(debug_assertions)]
const VARIABLE: &str = "XSK_BROKER_FAIL_POINT";

/// Dies by SIGKILL here and now, if this is the place.
#[cfg(debug_assertions)]
#[expect(clippy::panic, reason = "it is what the test wants to see the broker do")]
pub(crate) fn pass(place: &str) {
    let Ok(wanted) = std::env::var(VARIABLE) else {
        return;
    };
    if wanted.strip_prefix("panic at ") == Some(place) {
        panic!("as {VARIABLE} says");
    }
    if wanted == place {
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
