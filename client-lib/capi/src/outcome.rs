//! How a call went: a status for programs, a sentence for people, one of each for each thread.

#![expect(unsafe_code, reason = "functions that C calls by name")]

use std::cell::RefCell;
use std::ffi::{CString, c_char, c_int};
use std::panic::{AssertUnwindSafe, catch_unwind};

use xsk_client::CallError;
use xsk_client::wire::BrokerError;

/// What functions return that can fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C)]
pub enum Status {
    /// It worked.
    XskClientOk = 0,
    /// Called in a wrong way: a null pointer, text that is not UTF-8, a name or a set of queues that cannot be.
    XskClientUsage = -1,
    /// The broker cannot be reached, or the connection broke.
    XskClientUnreachable = -2,
    /// The broker's policy says no.
    XskClientDenied = -3,
    /// Not now: a queue is busy or a quota used up; see xsk_client_retry_after_ms().
    XskClientBusy = -4,
    /// The broker refused for another reason: there is no such lease, the socket is not bound.
    XskClientRefused = -5,
    /// Sockets were to be inherited, and there are none, or not those that the environment describes.
    XskClientNotInherited = -6,
    /// A fault of this library.
    XskClientFault = -7,
}

/// A status with its sentence.
#[derive(Debug)]
pub(crate) struct Failure {
    pub(crate) status: Status,
    text: String,
    retry_after_ms: u32,
}

#[derive(Debug, Default)]
struct Last {
    text: CString,
    retry_after_ms: u32,
}

thread_local! {
    static LAST: RefCell<Last> = RefCell::default();
}

impl Failure {
    pub(crate) fn usage(text: impl Into<String>) -> Self {
        Self::of(Status::XskClientUsage, text)
    }

    pub(crate) fn of(status: Status, text: impl Into<String>) -> Self {
        Self {
            status,
            text: text.into(),
            retry_after_ms: 0,
        }
    }
}

impl From<CallError> for Failure {
    fn from(error: CallError) -> Self {
        let status = match &error {
            CallError::Refused { cause, .. } => match &**cause {
                BrokerError::Denied { .. } => Status::XskClientDenied,
                BrokerError::QueueBusy { .. } | BrokerError::QuotaExceeded { .. } => Status::XskClientBusy,
                _ => Status::XskClientRefused,
            },
            CallError::Connect { .. } | CallError::Connection { .. } | CallError::Timeout { .. } => {
                Status::XskClientUnreachable
            }
            _ => Status::XskClientRefused,
        };
        let retry = error.retry_after().map_or(0, |it| it.as_millis());
        Self {
            retry_after_ms: u32::try_from(retry).unwrap_or(u32::MAX),
            ..Self::of(status, error.to_string())
        }
    }
}

/// Runs what a function does, keeps what went wrong, and lets no panic out.
pub(crate) fn guarded(run: impl FnOnce() -> Result<(), Failure>) -> c_int {
    let outcome = catch_unwind(AssertUnwindSafe(run)).unwrap_or_else(|_| {
        Err(Failure::of(
            Status::XskClientFault,
            "a fault of the library: see standard error",
        ))
    });
    let (status, last) = match outcome {
        Ok(()) => (Status::XskClientOk, Last::default()),
        Err(failure) => (
            failure.status,
            Last {
                // A NUL within would end it too early.
                text: CString::new(failure.text.replace('\0', "?")).unwrap_or_default(),
                retry_after_ms: failure.retry_after_ms,
            },
        ),
    };
    // At the thread's end there is nobody left to ask.
    LAST.try_with(|place| place.replace(last)).ok();
    status as c_int
}

/// A value of an object, or what stands for none: no panic gets out, and nothing is kept for xsk_client_error().
pub(crate) fn guarded_value<T>(none: T, run: impl FnOnce() -> Option<T>) -> T {
    match catch_unwind(AssertUnwindSafe(run)) {
        Ok(Some(value)) => value,
        Ok(None) | Err(_) => none,
    }
}

/// What went wrong in this thread's last call that returned a status: a sentence in English, without a newline; the empty
/// string after a call that worked. It belongs to the library and is good until this thread's next such call.
// SAFETY: no other function of this library has that name, and C's names beginning with xsk_client_ are ours.
#[unsafe(no_mangle)]
pub extern "C" fn xsk_client_error() -> *const c_char {
    guarded_value(c"".as_ptr(), || {
        LAST.try_with(|last| last.borrow().text.as_ptr()).ok()
    })
}

/// After XSK_CLIENT_BUSY: when it makes sense to try again, in milliseconds; 0 where waiting alone will not help.
// SAFETY: as above.
#[unsafe(no_mangle)]
pub extern "C" fn xsk_client_retry_after_ms() -> u32 {
    guarded_value(0, || LAST.try_with(|last| last.borrow().retry_after_ms).ok())
}
