//! What goes over the wire: frames that carry a number, and are filled from it to the last byte.

/// The type of local experiments (IEEE 802, `ETH_P_802_EX1`).
const ETHERTYPE: [u8; 2] = [0x88, 0xb5];
const HEADER_BYTES: usize = 14;
/// Header, what is asked, number.
pub(crate) const LEAST_BYTES: usize = HEADER_BYTES + 8 + 8 + 32;

/// What a frame asks of the holder. In any case it comes back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ask {
    /// Nothing more.
    Echo,
    /// Then look at nothing for so many milliseconds.
    Pause(u32),
    /// With what the holder has counted, in the last bytes.
    Count,
    /// Then exit.
    End,
}

/// What the holder has counted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Counted {
    /// Frames received.
    pub(crate) received: u64,
    /// `rx_dropped`: no chunk was there to receive into.
    pub(crate) dropped: u64,
    /// `rx_ring_full`
    pub(crate) ring_full: u64,
    /// Descriptors that the kernel or the library refused.
    pub(crate) refused: u64,
}

/// A frame of that number.
pub(crate) fn frame(number: u64, ask: Ask, bytes: usize) -> Vec<u8> {
    let mut frame = vec![0; bytes.max(LEAST_BYTES)];
    frame[..6].copy_from_slice(&[2, 0, 0, 0, 0, 1]);
    frame[6..12].copy_from_slice(&[2, 0, 0, 0, 0, 2]);
    frame[12..14].copy_from_slice(&ETHERTYPE);
    let (kind, argument) = match ask {
        Ask::Echo => (0, 0),
        Ask::Pause(milliseconds) => (1, milliseconds),
        Ask::Count => (2, 0),
        Ask::End => (3, 0),
    };
    frame[14..18].copy_from_slice(&u32::to_be_bytes(kind));
    frame[18..22].copy_from_slice(&argument.to_be_bytes());
    frame[22..30].copy_from_slice(&number.to_be_bytes());
    let start = if ask == Ask::Count { LEAST_BYTES } else { 30 };
    for (position, byte) in frame.iter_mut().enumerate().skip(start) {
        *byte = filling(number, position);
    }
    frame
}

/// The number and what is asked; `None` for a frame of somebody else, an error for one of ours that was damaged.
pub(crate) fn read(frame: &[u8]) -> Option<Result<(u64, Ask), String>> {
    if frame.get(12..14)? != ETHERTYPE {
        return None;
    }
    Some(checked(frame).ok_or_else(|| format!("damaged: {:02x?}", frame.get(..64).unwrap_or(frame))))
}

fn checked(frame: &[u8]) -> Option<(u64, Ask)> {
    let argument = u32::from_be_bytes(*frame.get(18..)?.first_chunk()?);
    let ask = match u32::from_be_bytes(*frame.get(14..)?.first_chunk()?) {
        0 => Ask::Echo,
        1 => Ask::Pause(argument),
        2 => Ask::Count,
        3 => Ask::End,
        _ => return None,
    };
    let number = u64::from_be_bytes(*frame.get(22..)?.first_chunk()?);
    let start = if ask == Ask::Count { LEAST_BYTES } else { 30 };
    let mut filled = frame.get(start..)?.iter().zip(start..);
    filled
        .all(|(byte, position)| *byte == filling(number, position))
        .then_some((number, ask))
}

/// The counts go where a frame that asks for them has room.
pub(crate) fn write_counted(frame: &mut [u8], counted: Counted) {
    let numbers = [
        counted.received,
        counted.dropped,
        counted.ring_full,
        counted.refused,
    ];
    for (place, number) in frame[30..LEAST_BYTES].chunks_exact_mut(8).zip(numbers) {
        place.copy_from_slice(&number.to_be_bytes());
    }
}

pub(crate) fn read_counted(frame: &[u8]) -> Option<Counted> {
    let number = |index: usize| {
        let bytes = frame.get(30 + index * 8..)?.first_chunk()?;
        Some(u64::from_be_bytes(*bytes))
    };
    Some(Counted {
        received: number(0)?,
        dropped: number(1)?,
        ring_full: number(2)?,
        refused: number(3)?,
    })
}

fn filling(number: u64, position: usize) -> u8 {
    let [byte, ..] = (number.wrapping_mul(31).wrapping_add(position as u64)).to_le_bytes();
    byte
}

/// Random numbers that a seed repeats (SplitMix64).
#[derive(Debug)]
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// Below `bound`, which is not 0.
    pub(crate) fn below(&mut self, bound: u32) -> u32 {
        u32::try_from(self.next() % u64::from(bound)).unwrap_or(0)
    }

    pub(crate) fn one_in(&mut self, times: u32) -> bool {
        self.below(times) == 0
    }

    pub(crate) fn among<T: Copy>(&mut self, choices: &[T]) -> Option<T> {
        let count = u32::try_from(choices.len()).ok()?;
        choices.get(self.below(count.max(1)) as usize).copied()
    }
}
