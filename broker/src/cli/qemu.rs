//! `{qemu}` in a command: what QEMU's `-netdev` wants to hear of sockets that it inherits.
//!
//! QEMU (8.2 or newer, built with libxdp) takes raw sockets by the numbers of their fds, in the order of the queues. It
//! registers a umem of its own for each, pinned against RLIMIT_MEMLOCK, and crashes where that is too low: so the
//! limit is looked at before anything is asked for.

use std::collections::BTreeSet;
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};

use xsk_client::MemlockTooLow;
use xsk_client::wire::{InterfaceName, NameError, QueueSet, SocketKind};

/// What QEMU registers for each queue: chunks of 4096 bytes for four rings of 2048 (`af_xdp_umem_create`, net/af-xdp.c).
const UMEM_BYTES: u64 = 4 * 2048 * 4096;

/// Why a place cannot be filled in.
#[derive(Debug, thiserror::Error)]
pub enum Misplaced {
    /// QEMU makes the rings itself.
    #[error("{{qemu}} wants sockets that have no rings yet: add --kind bare")]
    Kind,
    /// Something else stands in it.
    #[error("{0}: write {{qemu}} or, for some of the queues, {{qemu:2}}")]
    Form(String),
    /// It names no queues.
    #[error(transparent)]
    Queues(#[from] NameError),
    /// It names a queue of nobody's.
    #[error("{{qemu:{these}}}: queue {other} is not among {queues}, which are asked for")]
    NotAskedFor {
        /// What it names.
        these: QueueSet,
        /// The queue.
        other: u32,
        /// What is asked for.
        queues: QueueSet,
    },
    /// QEMU knows a first queue and how many.
    #[error("{{qemu}}: QEMU takes queues in a row, and {0} are not; write a -netdev for each, as in {{qemu:{first}}}", first = .0.iter().next().unwrap_or_default())]
    Gap(QueueSet),
    /// A socket has one user.
    #[error("{{qemu}}: queue {0} is given to two netdevs")]
    Twice(u32),
}

/// A command with its places for `-netdev` options found.
#[derive(Debug)]
pub struct QemuCommand {
    arguments: Vec<Vec<Piece>>,
}

/// A part of an argument.
#[derive(Debug, PartialEq, Eq)]
enum Piece {
    Text(Vec<u8>),
    /// `{qemu}`, all queues, or `{qemu:2}`.
    Netdev(Option<QueueSet>),
}

impl QemuCommand {
    /// Finds the places, and holds them against what is asked for.
    ///
    /// # Errors
    ///
    /// [`Misplaced`].
    pub fn read(command: &[OsString], queues: &QueueSet, kind: SocketKind) -> Result<Self, Misplaced> {
        let arguments = command
            .iter()
            .map(|argument| pieces(argument))
            .collect::<Result<_, _>>()?;
        let this = Self { arguments };
        let mut named = BTreeSet::new();
        for place in this.places() {
            if kind != SocketKind::Bare {
                return Err(Misplaced::Kind);
            }
            let these = place.as_ref().unwrap_or(queues);
            if let Some(other) = these.iter().find(|queue| !queues.contains(*queue)) {
                let (these, queues) = (these.clone(), queues.clone());
                return Err(Misplaced::NotAskedFor { these, other, queues });
            }
            if these
                .iter()
                .zip(these.iter().skip(1))
                .any(|(one, next)| one + 1 != next)
            {
                return Err(Misplaced::Gap(these.clone()));
            }
            if let Some(twice) = these.iter().find(|queue| !named.insert(*queue)) {
                return Err(Misplaced::Twice(twice));
            }
        }
        Ok(this)
    }

    /// Whether a netdev gets several queues, of which QEMU up to 11.1 receives on the first only (`net_init_af_xdp`
    /// polls no other).
    pub fn has_wide_netdev(&self, queues: &QueueSet) -> bool {
        self.places()
            .any(|place| place.as_ref().unwrap_or(queues).len() > 1)
    }

    /// Whether this process, which becomes QEMU, may pin what QEMU will register.
    ///
    /// # Errors
    ///
    /// [`MemlockTooLow`].
    pub fn check_memlock(&self, queues: &QueueSet) -> Result<(), MemlockTooLow> {
        let count: usize = self
            .places()
            .map(|place| place.as_ref().unwrap_or(queues).len())
            .sum();
        MemlockTooLow::check(UMEM_BYTES * u64::try_from(count).unwrap_or(u64::MAX / UMEM_BYTES))
    }

    /// The command with its places filled in; `fds` are the numbers of the queues' sockets.
    pub fn fill_in(&self, interface: &InterfaceName, fds: &[(u32, i32)]) -> Vec<OsString> {
        let all: Vec<u32> = fds.iter().map(|(queue, _)| *queue).collect();
        let fill = |piece: &Piece| match piece {
            Piece::Text(text) => text.clone(),
            Piece::Netdev(None) => netdev(interface, &all, fds),
            Piece::Netdev(Some(queues)) => netdev(interface, &queues.iter().collect::<Vec<_>>(), fds),
        };
        self.arguments
            .iter()
            .map(|pieces| OsString::from_vec(pieces.iter().flat_map(fill).collect()))
            .collect()
    }

    fn places(&self) -> impl Iterator<Item = &Option<QueueSet>> {
        self.arguments.iter().flatten().filter_map(|piece| match piece {
            Piece::Netdev(queues) => Some(queues),
            Piece::Text(_) => None,
        })
    }
}

fn pieces(argument: &OsStr) -> Result<Vec<Piece>, Misplaced> {
    const BEGIN: &[u8] = b"{qemu";
    let mut pieces = Vec::new();
    let mut rest = argument.as_bytes();
    while let Some(at) = rest.windows(BEGIN.len()).position(|window| window == BEGIN) {
        let (text, place) = rest.split_at(at);
        let place = place.get(BEGIN.len()..).unwrap_or_default();
        let Some(end) = place.iter().position(|byte| *byte == b'}') else {
            break;
        };
        let (inside, after) = place.split_at(end);
        let queues = match std::str::from_utf8(inside) {
            Ok("") => None,
            Ok(queues) if queues.starts_with(':') => Some(queues.trim_start_matches(':').parse()?),
            _ => return Err(Misplaced::Form(argument.display().to_string())),
        };
        pieces.extend([Piece::Text(text.to_vec()), Piece::Netdev(queues)]);
        rest = after.get(1..).unwrap_or_default();
    }
    pieces.push(Piece::Text(rest.to_vec()));
    Ok(pieces)
}

/// The option's value. In QEMU's syntax a comma within a value is written twice; a device's name may have one.
fn netdev(interface: &InterfaceName, queues: &[u32], fds: &[(u32, i32)]) -> Vec<u8> {
    let name = interface.as_str().replace(',', ",,");
    let numbers: Vec<String> = queues
        .iter()
        .filter_map(|queue| fds.iter().find(|(of, _)| of == queue))
        .map(|(_, fd)| fd.to_string())
        .collect();
    format!(
        "af-xdp,ifname={name},queues={},start-queue={},inhibit=on,sock-fds={}",
        queues.len(),
        queues.first().copied().unwrap_or_default(),
        numbers.join(":")
    )
    .into_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(command: &[&str], queues: &str) -> Result<QemuCommand, Misplaced> {
        let command: Vec<OsString> = command.iter().map(OsString::from).collect();
        QemuCommand::read(&command, &queues.parse().unwrap(), SocketKind::Bare)
    }

    #[test]
    fn places_are_filled_in() {
        let fds = [(2, 3), (3, 4), (4, 5)];
        let filled = |interface: &str, command: &[&str]| {
            let filled = read(command, "2-4")
                .unwrap()
                .fill_in(&interface.parse().unwrap(), &fds);
            filled
                .into_iter()
                .map(|argument| argument.into_string().unwrap())
                .collect::<Vec<_>>()
        };
        assert_eq!(
            filled("eth0", &["qemu", "-netdev", "{qemu},id=n0", "{q}"]),
            [
                "qemu",
                "-netdev",
                "af-xdp,ifname=eth0,queues=3,start-queue=2,inhibit=on,sock-fds=3:4:5,id=n0",
                "{q}"
            ]
        );
        assert_eq!(
            filled("a,b", &["{qemu:4}", "x{qemu:2-3}"]),
            [
                "af-xdp,ifname=a,,b,queues=1,start-queue=4,inhibit=on,sock-fds=5",
                "xaf-xdp,ifname=a,,b,queues=2,start-queue=2,inhibit=on,sock-fds=3:4",
            ]
        );
    }

    #[test]
    fn what_qemu_cannot_take_is_refused() {
        for (command, queues, words) in [
            (&["{qemu}"][..], "2,4", "in a row"),
            (&["{qemu:5}"], "2-4", "queue 5 is not among 2-4"),
            (&["{qemu}", "{qemu:3}"], "2-4", "queue 3 is given to two"),
            (&["{qemu:x}"], "2", "no list of queue ids"),
            (&["{qemus}"], "2", "write {qemu}"),
        ] {
            let error = read(command, queues).unwrap_err().to_string();
            assert!(error.contains(words), "{command:?}: {error}");
        }
        let prepared = QemuCommand::read(&["{qemu}".into()], &"2".parse().unwrap(), SocketKind::Prepared);
        assert!(prepared.unwrap_err().to_string().contains("--kind bare"));
    }

    #[test]
    fn other_commands_are_left_alone() {
        let command = read(&["echo", "{}", "{qemu"], "2").unwrap();
        assert_eq!(command.places().count(), 0);
        assert_eq!(
            command.fill_in(&"eth0".parse().unwrap(), &[]),
            ["echo", "{}", "{qemu"]
        );
        command.check_memlock(&"2".parse().unwrap()).unwrap();
    }
}
