//! Loading the lock: once, at the start, while the process is still root. It takes CAP_BPF and CAP_PERFMON; to use what was
//! loaded takes none, so that neither has to be kept for it.
//!
//! What a broker that crashed has left is taken over: new programs are attached over the same maps before the old ones
//! go, so that at no moment a socket is without a lock. All tickets that are found end, but for those of leases that go on,
//! once it is known which these are ([`Lsm::end_others`]).

use std::io;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex};

use aya::maps::{HashMap, Map, MapData, SkStorage};
use aya::programs::links::{FdLink, PinnedLink};
use aya::programs::{Lsm as LsmProgram, ProgramError};
use aya::{Btf, Ebpf, EbpfLoader};
use rustix::time::{ClockId, clock_gettime};
use xdp_ebpf::queue_lock::{self as names, COUNTS, ENDED, Ticket};

use super::kernel_types::{NoTypes, Offsets};
use super::pins::{self, Pin, Pins};
use super::{Loaded, Lsm, OWN, in_force};
use crate::error::{Failure, chain};
use crate::kernel::pins::PinDirectory;

/// Why the lock is not to be had.
#[derive(Debug, thiserror::Error)]
pub enum NotInForce {
    /// The kernel's types are not known.
    #[error(transparent)]
    NoTypes(#[from] NoTypes),
    /// The programs or maps are not taken.
    #[error("the kernel does not take its programs ({step}): {cause}")]
    NotLoaded {
        /// At which step.
        step: &'static str,
        /// Aya's and the kernel's words.
        cause: String,
    },
    /// They are taken, and have no effect.
    #[error(
        "its programs load, and the kernel does not ask them: `bpf` is not among the security modules of its command line \
         (lsm=)"
    )]
    NobodyAsks,
    /// They are asked, and do not do what they should.
    #[error("its programs admit {0}")]
    Admits(&'static str),
    /// The same.
    #[error("its programs refuse {0}")]
    Refuses(&'static str),
    /// A system call that has nothing to do with it.
    #[error("{call}")]
    Kernel {
        /// Which.
        call: &'static str,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// The same.
    #[error(transparent)]
    Failed(Failure),
}

/// Whether a name in the private directory in bpffs belongs to a queue lock.
pub fn is_pin(name: &str) -> bool {
    pins::is_pin(name)
}

/// Whether a broker that is no more has left the lock in force there.
///
/// # Errors
///
/// As readdir(3).
pub fn is_left_in(directory: PinDirectory) -> Result<bool, Failure> {
    Ok(!Pins::new(directory).names()?.is_empty())
}

/// Takes the lock down that a broker before has left, unless sockets may still be unbound that it confines. Says whether it
/// did, or with `dry_run` would.
///
/// # Errors
///
/// Where the map cannot be read, or the pins not be removed.
pub fn take_down_left(directory: PinDirectory, dry_run: bool) -> Result<bool, NotInForce> {
    let pins = Pins::new(directory);
    let unreadable = |error: &dyn std::error::Error| NotInForce::NotLoaded {
        step: "the tickets of brokers before",
        cause: chain(error),
    };
    let leases = MapData::from_pin(pins.path(Pin::Leases)).map_err(|error| unreadable(&error))?;
    let leases: HashMap<MapData, [u64; 2], u32> = Map::from_map_data(leases)
        .and_then(HashMap::try_from)
        .map_err(|error| unreadable(&error))?;
    for key in leases.keys() {
        let key = key.map_err(|error| unreadable(&error))?;
        if Ticket::from(key).number != OWN {
            return Ok(false);
        }
    }
    if !dry_run {
        pins.remove_all();
    }
    Ok(true)
}

impl Lsm {
    /// Loads the programs, attaches them, and sees whether they are in force. To be called as root, with the private
    /// directory in bpffs.
    ///
    /// # Errors
    ///
    /// [`NotInForce`]. Of what was loaded nothing is left then; what a broker before this has left is still in force.
    pub fn load(directory: PinDirectory) -> Result<Self, NotInForce> {
        let pins = Pins::new(directory);
        let found = pins.names().map_err(NotInForce::Failed)?;
        let broker = now();
        let parts = Parts::load(&pins, broker).inspect_err(|_| {
            if found.is_empty() {
                pins.remove_all();
            }
        })?;
        // Dropped, it removes its pins, unless a ticket is left.
        let loaded = Loaded {
            broker,
            last: AtomicU64::new(OWN),
            sockets: Mutex::new(parts.sockets),
            leases: Mutex::new(parts.leases),
            pins,
            _links: parts.links,
        };
        let own = <[u64; 2]>::from(loaded.ticket(OWN));
        loaded
            .leases()
            .insert(own, COUNTS, 0)
            .map_err(|error| not_loaded("a ticket", &error))?;
        in_force::check(&loaded)?;
        loaded.pins.remove_links_but(broker).map_err(NotInForce::Failed)?;
        Ok(Self(Arc::new(loaded)))
    }
}

impl Loaded {
    /// Ends the tickets of all other brokers but these, and says how many there are but those brokers' own.
    pub(super) fn end_all_but(&self, resumed: &[Ticket]) -> Result<usize, NotInForce> {
        let mut leases = self.leases();
        let all: Result<Vec<[u64; 2]>, _> = leases.keys().collect();
        let mut left = 0;
        for key in all.map_err(|error| not_loaded("the tickets of brokers before", &error))? {
            let ticket = Ticket::from(key);
            let ended = match ticket {
                Ticket { broker, .. } if broker == self.broker || resumed.contains(&ticket) => Ok(()),
                Ticket { number: OWN, .. } => leases.remove(&key),
                _ => {
                    left += 1;
                    leases.insert(key, ENDED, 0)
                }
            };
            ended.map_err(|error| not_loaded("the tickets of brokers before", &error))?;
        }
        Ok(left)
    }
}

/// What the object is made of.
struct Parts {
    sockets: SkStorage<MapData, [u64; 4]>,
    leases: HashMap<MapData, [u64; 2], u32>,
    links: [PinnedLink; 2],
}

impl Parts {
    fn load(pins: &Pins, broker: u64) -> Result<Self, NotInForce> {
        let offsets = Offsets::read()?;
        let types = Btf::from_sys_fs().map_err(|error| not_loaded("the kernel's types", &error))?;
        let mut ebpf = EbpfLoader::new()
            .override_global(names::SOCKET_SK, &offsets.socket_sk, true)
            .override_global(names::SOCK_FAMILY, &offsets.sock_family, true)
            // Made, or a former broker's.
            .map_pin_path(names::SOCKETS, pins.path(Pin::Sockets))
            .map_pin_path(names::LEASES, pins.path(Pin::Leases))
            .load(names::OBJECT)
            .map_err(|error| not_loaded("its maps", &error))?;
        let links = [
            attach(
                &mut ebpf,
                names::BIND,
                "socket_bind",
                &types,
                pins,
                Pin::Bind(broker),
            )?,
            attach(
                &mut ebpf,
                names::OPTION,
                "socket_setsockopt",
                &types,
                pins,
                Pin::Option(broker),
            )?,
        ];
        let mut map = |name| {
            ebpf.take_map(name)
                .ok_or_else(|| not_loaded("its maps", &io::Error::from(io::ErrorKind::NotFound)))
        };
        Ok(Self {
            sockets: map(names::SOCKETS)?
                .try_into()
                .map_err(|error| not_loaded("its maps", &error))?,
            leases: map(names::LEASES)?
                .try_into()
                .map_err(|error| not_loaded("its maps", &error))?,
            links,
        })
    }
}

/// Attaches a program to its hook, and pins the link.
fn attach(
    ebpf: &mut Ebpf,
    name: &str,
    hook: &'static str,
    types: &Btf,
    pins: &Pins,
    pin: Pin,
) -> Result<PinnedLink, NotInForce> {
    let program = ebpf
        .program_mut(name)
        .ok_or_else(|| not_loaded(hook, &io::Error::from(io::ErrorKind::NotFound)))?;
    let failed = |error: ProgramError| not_loaded(hook, &error);
    let program: &mut LsmProgram = program.try_into().map_err(failed)?;
    program.load(hook, types).map_err(failed)?;
    let link = program.attach().map_err(failed)?;
    let link = FdLink::from(program.take_link(link).map_err(failed)?);
    link.pin(pins.path(pin)).map_err(|error| not_loaded(hook, &error))
}

fn not_loaded(step: &'static str, error: &(dyn std::error::Error + 'static)) -> NotInForce {
    let words = chain(error);
    // Pages of it, where it has something to say: for the log.
    let (cause, verifier) = words.split_once("Verifier output:").unwrap_or((&words, ""));
    tracing::debug!(step, verifier, "the queue lock's programs are not taken");
    NotInForce::NotLoaded {
        step,
        cause: cause.trim().trim_end_matches('.').to_owned(),
    }
}

/// Nanoseconds since the machine began: no two brokers begin at the same.
fn now() -> u64 {
    let now = clock_gettime(ClockId::Boottime);
    let part = |value| u64::try_from(value).unwrap_or(0);
    part(now.tv_sec) * 1_000_000_000 + part(now.tv_nsec)
}
