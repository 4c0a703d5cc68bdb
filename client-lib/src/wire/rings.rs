//! The sizes of a socket's rings.

use serde::{Deserialize, Serialize};

use super::names::NameError;
use super::socket::Direction;

/// Sizes of the four rings, in entries. Each a power of two from 1 to 2^20 (`xsk_init_queue`, net/xdp/xsk.c).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RingSizes {
    /// Fill ring: chunks that the kernel may receive into.
    pub fill: u32,
    /// Completion ring: chunks that the kernel has sent.
    pub completion: u32,
    /// Receive ring.
    pub rx: u32,
    /// Transmit ring.
    pub tx: u32,
}

impl RingSizes {
    /// The same size for all four.
    pub const fn all(entries: u32) -> Self {
        Self {
            fill: entries,
            completion: entries,
            rx: entries,
            tx: entries,
        }
    }

    /// What of these a socket of that direction gets: the kernel wants a fill and a completion ring of every umem, if
    /// only of one entry (`xsk_validate_queues`, net/xdp/xsk.c).
    pub const fn of_direction(self, direction: Direction) -> Self {
        Self {
            fill: if direction.receives() { self.fill } else { 1 },
            completion: if direction.sends() { self.completion } else { 1 },
            ..self
        }
    }

    /// The largest of the four.
    pub fn largest(&self) -> u32 {
        self.fill.max(self.completion).max(self.rx).max(self.tx)
    }

    /// Refuses sizes that the kernel would refuse.
    ///
    /// # Errors
    ///
    /// [`NameError::RingSize`] names the ring.
    pub fn check(&self) -> Result<(), NameError> {
        let rings = [
            ("fill", self.fill),
            ("completion", self.completion),
            ("rx", self.rx),
            ("tx", self.tx),
        ];
        match rings
            .into_iter()
            .find(|(_, entries)| !entries.is_power_of_two() || *entries > 1 << 20)
        {
            Some((ring, entries)) => Err(NameError::RingSize { ring, entries }),
            None => Ok(()),
        }
    }
}

impl Default for RingSizes {
    fn default() -> Self {
        Self::all(2048)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ring_sizes_are_powers_of_two() {
        assert_eq!(RingSizes::default().check(), Ok(()));
        assert_eq!(RingSizes::all(1 << 20).check(), Ok(()));
        for entries in [0, 3, 1 << 21, u32::MAX] {
            let sizes = RingSizes {
                completion: entries,
                ..RingSizes::default()
            };
            assert_eq!(
                sizes.check(),
                Err(NameError::RingSize {
                    ring: "completion",
                    entries
                })
            );
        }
    }
}
