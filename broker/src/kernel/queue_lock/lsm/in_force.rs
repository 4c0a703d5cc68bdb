//! Whether the lock is in force: shown by what a socket of the broker's own is refused, and by nothing else. Where `lsm=`
//! on the kernel's command line leaves bpf out, the programs load and attach, and nobody asks them.

use std::io;
use std::os::fd::OwnedFd;

use rustix::io::Errno;
use xdp_ebpf::queue_lock::{Permit, Ticket};
use xsk_client::sys::{self, BindFlags, Ring};

use super::load::NotInForce;
use super::{Loaded, OWN};

/// Any device: the socket has no ring, so that no bind of it succeeds.
const INDEX: u32 = 1;
const QUEUE: u32 = 0;

/// Tries what is to be refused and what is not.
///
/// # Errors
///
/// [`NotInForce`].
pub(super) fn check(lock: &Loaded) -> Result<(), NotInForce> {
    let kernel = |call, source| NotInForce::Kernel { call, source };
    let socket = sys::xdp_socket().map_err(|source| kernel("socket(AF_XDP)", source))?;
    // Nothing was said of it yet: as everybody else's it is none of the lock's business.
    expect(
        may_bind(&socket, INDEX, QUEUE, BindFlags::XDP_COPY)?,
        Answer::Asked,
        "a socket of another program",
    )?;

    let permit = Permit {
        ticket: lock.ticket(OWN),
        interface_index: INDEX,
        queue: QUEUE,
        required_flags: BindFlags::XDP_COPY.bits(),
        refused_flags: BindFlags::XDP_SHARED_UMEM.bits(),
        options: 0,
    };
    let set = |permit| lock.permit(&socket, permit).map_err(NotInForce::Failed);
    set(permit)?;
    // This one first: where nobody asks the programs, it is what tells.
    let other_queue = may_bind(&socket, INDEX, QUEUE + 1, BindFlags::XDP_COPY)?;
    if other_queue == Answer::Asked {
        return Err(NotInForce::NobodyAsks);
    }
    let shared = BindFlags::XDP_COPY | BindFlags::XDP_SHARED_UMEM;
    for (index, queue, flags, expected, what) in [
        (
            INDEX,
            QUEUE,
            BindFlags::XDP_COPY,
            Answer::Asked,
            "what was granted",
        ),
        (
            INDEX + 1,
            QUEUE,
            BindFlags::XDP_COPY,
            Answer::Refused,
            "another device",
        ),
        (INDEX, QUEUE, BindFlags::empty(), Answer::Refused, "another mode"),
        (INDEX, QUEUE, shared, Answer::Refused, "a refused flag"),
    ] {
        expect(may_bind(&socket, index, queue, flags)?, expected, what)?;
    }
    let ring = answer(sys::create_ring(&socket, Ring::Rx, 1), "setsockopt(XDP_RX_RING)")?;
    expect(ring, Answer::Refused, "a ring")?;

    set(Permit {
        ticket: Ticket {
            // Nobody's: brokers begin after the machine.
            broker: 0,
            number: 1,
        },
        ..permit
    })?;
    let ended = may_bind(&socket, INDEX, QUEUE, BindFlags::XDP_COPY)?;
    expect(ended, Answer::Refused, "what was granted, after its end")
}

/// What became of a try.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Answer {
    /// EPERM.
    Refused,
    /// It came to AF_XDP's own code, which answers anything else to what is tried here.
    Asked,
}

fn may_bind(socket: &OwnedFd, index: u32, queue: u32, flags: BindFlags) -> Result<Answer, NotInForce> {
    answer(sys::bind(socket, index, queue, flags), "bind(AF_XDP)")
}

fn answer(tried: io::Result<()>, call: &'static str) -> Result<Answer, NotInForce> {
    match tried {
        Err(error) if Errno::from_io_error(&error) == Some(Errno::PERM) => Ok(Answer::Refused),
        Err(error) if matches!(Errno::from_io_error(&error), Some(Errno::INVAL | Errno::NODEV)) => {
            Ok(Answer::Asked)
        }
        Err(source) => Err(NotInForce::Kernel { call, source }),
        // A ring that was made: the option came through.
        Ok(()) => Ok(Answer::Asked),
    }
}

fn expect(answer: Answer, expected: Answer, what: &'static str) -> Result<(), NotInForce> {
    if answer == expected {
        return Ok(());
    }
    Err(match expected {
        Answer::Refused => NotInForce::Admits(what),
        Answer::Asked => NotInForce::Refuses(what),
    })
}
