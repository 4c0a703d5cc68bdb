//! How sockets are wanted: direction, mode, umem and busy polling.
//!
//! The words are those of the policy and of the command line, too. Whether a rule allows what is wanted is the broker's
//! to say; what no kernel takes is refused here.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::acquire::Acquire;
use super::names::{NameError, SocketKind, words};

/// Which way frames go. The kernel holds a socket of kind `bound` to it: a ring that it was not given stays missing.
///
/// On the wire the last is `rx_tx`, since a Varlink name has no plus sign; everywhere else `rx+tx`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Direction {
    /// It receives, and cannot send.
    #[serde(rename = "rx")]
    Rx,
    /// It sends, and nothing is redirected to it.
    #[serde(rename = "tx")]
    Tx,
    /// Both.
    #[default]
    #[serde(rename = "rx_tx")]
    RxTx,
}

impl Direction {
    /// Every value, in the order of the specification.
    pub const ALL: &'static [Self] = &[Self::Rx, Self::Tx, Self::RxTx];

    /// The word for it in messages, in the policy, in tables and on the command line.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Rx => "rx",
            Self::Tx => "tx",
            Self::RxTx => "rx+tx",
        }
    }

    /// Whether such a socket receives.
    pub const fn receives(self) -> bool {
        matches!(self, Self::Rx | Self::RxTx)
    }

    /// Whether such a socket sends.
    pub const fn sends(self) -> bool {
        matches!(self, Self::Tx | Self::RxTx)
    }

    /// Whether whoever may have this may have `less`, too.
    pub const fn covers(self, less: Self) -> bool {
        (self.receives() || !less.receives()) && (self.sends() || !less.sends())
    }
}

impl fmt::Display for Direction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// A text that is no [`Direction`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no direction: rx, tx or rx+tx")]
pub struct NoDirection(String);

impl std::str::FromStr for Direction {
    type Err = NoDirection;

    fn from_str(text: &str) -> Result<Self, NoDirection> {
        Self::ALL
            .iter()
            .copied()
            .find(|direction| direction.as_str() == text)
            .ok_or_else(|| NoDirection(text.to_owned()))
    }
}

words! {
    /// In which mode the broker is to bind a socket. Never left to the kernel, which would choose zero-copy by itself.
    ModeWish {
        /// The kernel copies each frame. Works on every device.
        Copy = "copy",
        /// The device reads and writes the umem itself, or there is no socket.
        ZeroCopy = "zerocopy",
        /// Zero-copy where it can be had, else copy.
        ZeroCopyElseCopy = "zerocopy_else_copy",
    }
}

/// A umem as the broker is to make it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct UmemShape {
    /// The size of a chunk: 2048 or 4096 bytes.
    pub chunk_bytes: u32,
    /// How many.
    pub chunks: u32,
    /// Bytes that are left free at the start of each received frame, beside the kernel's own 256.
    #[serde(default)]
    pub headroom_bytes: u32,
    /// On huge pages of the machine's default size.
    #[serde(default)]
    pub hugepages: bool,
}

impl UmemShape {
    /// 2048 chunks of 2048 bytes.
    pub const DEFAULT: Self = Self {
        chunk_bytes: 2048,
        chunks: 2048,
        headroom_bytes: 0,
        hugepages: false,
    };

    /// What the kernel keeps of each chunk for itself (`XDP_PACKET_HEADROOM`, include/uapi/linux/bpf.h).
    pub const KERNEL_HEADROOM_BYTES: u32 = 256;

    /// Its length in bytes.
    pub const fn bytes(&self) -> u64 {
        self.chunk_bytes as u64 * self.chunks as u64
    }

    /// Refuses what no kernel takes (`xdp_umem_reg`, net/xdp/xdp_umem.c).
    ///
    /// # Errors
    ///
    /// [`NoUmem`] says what is wrong.
    pub fn check(&self) -> Result<(), NoUmem> {
        // 2^20 chunks of 4096 bytes keep every address and index within 32 bits.
        let chunks_are_fine = matches!(self.chunk_bytes, 2048 | 4096)
            && (2..=1 << 20).contains(&self.chunks)
            && self.bytes().is_multiple_of(4096);
        if !chunks_are_fine {
            return Err(NoUmem::Chunks {
                chunk_bytes: self.chunk_bytes,
                chunks: self.chunks,
            });
        }
        self.check_headroom()
    }

    /// The same, for chunks that begin anywhere.
    ///
    /// # Errors
    ///
    /// As [`Self::check`].
    pub fn check_unaligned(&self) -> Result<(), NoUmem> {
        let fits = (2048..=4096).contains(&self.chunk_bytes) && (2..=1 << 20).contains(&self.chunks);
        match fits && !self.hugepages {
            true => self.check_headroom(),
            false => Err(NoUmem::UnalignedChunks {
                chunk_bytes: self.chunk_bytes,
                chunks: self.chunks,
            }),
        }
    }

    /// A chunk must have room for a byte at least.
    fn check_headroom(&self) -> Result<(), NoUmem> {
        let most = self.chunk_bytes - Self::KERNEL_HEADROOM_BYTES - 1;
        if self.headroom_bytes > most {
            return Err(NoUmem::Headroom {
                headroom_bytes: self.headroom_bytes,
                most,
            });
        }
        Ok(())
    }
}

impl Default for UmemShape {
    fn default() -> Self {
        Self::DEFAULT
    }
}

/// A umem that no kernel takes.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NoUmem {
    /// Size or number of its chunks.
    #[error(
        "umem of {chunks} chunks of {chunk_bytes} bytes: chunks are of 2048 or 4096 bytes, 2 to 1048576 of them, \
         together a multiple of 4096 bytes"
    )]
    Chunks {
        /// The size of a chunk.
        chunk_bytes: u32,
        /// How many.
        chunks: u32,
    },
    /// Size or number of its chunks, where these begin anywhere.
    #[error(
        "umem of {chunks} unaligned chunks of {chunk_bytes} bytes: such chunks are of 2048 to 4096 bytes, 2 to 1048576 of \
         them, and not on huge pages"
    )]
    UnalignedChunks {
        /// The size of a chunk.
        chunk_bytes: u32,
        /// How many.
        chunks: u32,
    },
    /// No room is left in a chunk.
    #[error("umem with a headroom of {headroom_bytes} bytes: {most} is the most for such chunks")]
    Headroom {
        /// What was asked for.
        headroom_bytes: u32,
        /// What a chunk has.
        most: u32,
    },
}

/// Busy polling as a socket is to have it from the start (`SO_PREFER_BUSY_POLL`, `SO_BUSY_POLL`,
/// `SO_BUSY_POLL_BUDGET`; Linux 5.11). The first, and a larger budget than the kernel's 8, take CAP_NET_ADMIN.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BusyPoll {
    /// The most packets of one poll; at most 65535 (`SO_BUSY_POLL_BUDGET`). Its holder may lower it, not raise it.
    pub budget: u16,
    /// For how many microseconds a system call polls the device; the holder may change it (`SO_BUSY_POLL`).
    pub usecs: u32,
}

impl Acquire {
    /// Refuses what no kernel takes, and promises that sockets of such a kind cannot keep.
    ///
    /// # Errors
    ///
    /// [`NoWish`] says which member is wrong, and why.
    pub fn check(&self) -> Result<(), NoWish> {
        let kind = self.sockets;
        self.rings.unwrap_or_default().check()?;
        self.umem.unwrap_or_default().check()?;
        let direction = self.direction.unwrap_or_default();
        if kind == SocketKind::Bound {
            return match (direction, self.mode) {
                (Direction::Tx, Some(ModeWish::ZeroCopy)) => Err(NoWish::ZeroCopyTx),
                _ => Ok(()),
            };
        }
        match (direction, self.mode, self.umem) {
            (Direction::Rx | Direction::Tx, _, _) => Err(NoWish::Direction { kind, direction }),
            (_, Some(_), _) => Err(NoWish::Mode { kind }),
            (_, _, Some(_)) => Err(NoWish::Umem { kind }),
            (Direction::RxTx, None, None) => Ok(()),
        }
    }
}

/// Why sockets cannot be had as they are wanted, whatever the policy says.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NoWish {
    /// The kernel takes no such ring.
    #[error("rings: {0}")]
    Rings(#[from] NameError),
    /// The kernel takes no such umem.
    #[error("umem: {0}")]
    Shape(#[from] NoUmem),
    /// The holder of such a socket has, or makes, all four rings.
    #[error(
        "direction: {direction} cannot be promised for sockets of kind {kind}, whose holder has the rings of both \
         directions; ask for kind bound, which gets the rings of its direction only"
    )]
    Direction {
        /// What was asked for.
        kind: SocketKind,
        /// What was asked for.
        direction: Direction,
    },
    /// The broker does not bind such a socket.
    #[error(
        "mode: whoever has a socket of kind {kind} binds it, and says the mode there; only bound has it here"
    )]
    Mode {
        /// What was asked for.
        kind: SocketKind,
    },
    /// The broker does not register memory for such a socket.
    #[error("umem: whoever has a socket of kind {kind} registers memory of its own; only bound has it here")]
    Umem {
        /// What was asked for.
        kind: SocketKind,
    },
    /// The memory of a zero-copy socket sees what arrives at its queue, whether it has an RX ring or not.
    #[error(
        "mode: a socket that only sends is bound in copy mode: in zero-copy mode the device would write what arrives \
         into its memory"
    )]
    ZeroCopyTx,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn promises_that_a_kind_cannot_keep() {
        let wish = |kind| Acquire::new("eth0:1".parse().unwrap(), kind);
        let (prepared, bound) = (wish(SocketKind::Prepared), wish(SocketKind::Bound));
        assert_eq!((prepared.check(), bound.check()), (Ok(()), Ok(())));
        for direction in Direction::ALL {
            let with = |wish: &Acquire| Acquire {
                direction: Some(*direction),
                ..wish.clone()
            };
            assert_eq!(with(&bound).check(), Ok(()));
            assert_eq!(with(&prepared).check().is_ok(), *direction == Direction::RxTx);
            let zero_copy = Acquire {
                mode: Some(ModeWish::ZeroCopy),
                ..with(&bound)
            };
            assert_eq!(zero_copy.check().is_ok(), direction.receives());
        }
        let mode = Some(ModeWish::Copy);
        assert!(matches!(
            Acquire {
                mode,
                ..prepared.clone()
            }
            .check(),
            Err(NoWish::Mode { .. })
        ));
        let umem = Some(UmemShape::default());
        assert!(matches!(
            Acquire { umem, ..prepared }.check(),
            Err(NoWish::Umem { .. })
        ));
    }

    #[test]
    fn a_direction_covers_less() {
        use Direction::{Rx, RxTx, Tx};
        for (has, wants, covered) in [
            (RxTx, RxTx, true),
            (RxTx, Rx, true),
            (RxTx, Tx, true),
            (Rx, Rx, true),
            (Rx, Tx, false),
            (Rx, RxTx, false),
            (Tx, Tx, true),
            (Tx, Rx, false),
            (Tx, RxTx, false),
        ] {
            assert_eq!(has.covers(wants), covered, "{has} {wants}");
        }
        for direction in Direction::ALL {
            assert_eq!(direction.as_str().parse(), Ok(*direction));
        }
        assert!("rx_tx".parse::<Direction>().is_err());
    }

    #[test]
    fn umems_that_no_kernel_takes() {
        let shape = |chunk_bytes, chunks, headroom_bytes| UmemShape {
            chunk_bytes,
            chunks,
            headroom_bytes,
            hugepages: false,
        };
        for good in [
            UmemShape::default(),
            shape(2048, 2, 1791),
            shape(4096, 1 << 20, 3839),
        ] {
            assert_eq!(good.check(), Ok(()));
        }
        for (chunk_bytes, chunks) in [(2048, 0), (2048, 3), (1024, 64), (8192, 64), (4096, 1 << 21)] {
            assert_eq!(
                shape(chunk_bytes, chunks, 0).check(),
                Err(NoUmem::Chunks { chunk_bytes, chunks })
            );
        }
        assert!(matches!(
            shape(2048, 2, 1792).check(),
            Err(NoUmem::Headroom { most: 1791, .. })
        ));
    }
}
