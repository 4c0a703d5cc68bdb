//! A socket without a kernel, whose rings an adversary writes to: for a property test, and for `client-lib/fuzz`.
//!
//! Another process may have the socket too, and with it the rings. Whatever it writes there, safe code has to stay sound.
//! Both sides are played by one string of bytes, and what has to hold is looked at after each step: for frames in
//! `hostile/frames.rs`, for the raw layer in `hostile/raw.rs`.

#![expect(clippy::expect_used, reason = "this is a test, for two that run it")]

mod frames;
mod raw;
pub(crate) mod rings;

/// Plays a string of bytes: which layer, and then what both sides do. Panics where something is wrong.
pub fn play(script: &[u8]) {
    let mut script = Script(script);
    match script.byte() % 3 {
        0 => raw::play(&mut script),
        _ => frames::play(&mut script),
    }
}

/// A string of bytes, taken apart; 0 where there are no more.
struct Script<'a>(&'a [u8]);

impl Script<'_> {
    fn is_over(&self) -> bool {
        self.0.is_empty()
    }

    fn byte(&mut self) -> u8 {
        let [value] = self.bytes();
        value
    }

    fn bytes<const COUNT: usize>(&mut self) -> [u8; COUNT] {
        let mut value = [0; COUNT];
        let (taken, rest) = self.0.split_at(self.0.len().min(COUNT));
        value[..taken.len()].copy_from_slice(taken);
        self.0 = rest;
        value
    }

    fn below(&mut self, end: u32) -> u32 {
        u32::from(self.byte()) % end.max(1)
    }

    fn any_u32(&mut self) -> u32 {
        u32::from_ne_bytes(self.bytes())
    }

    fn any_u64(&mut self) -> u64 {
        u64::from_ne_bytes(self.bytes())
    }
}

/// How many cases a property test tries, of which Miri, a thousand times as slow, has a few.
#[cfg(test)]
pub(crate) fn cases(count: u32) -> proptest::prelude::ProptestConfig {
    proptest::prelude::ProptestConfig {
        cases: if cfg!(miri) {
            count.div_ceil(64).min(6)
        } else {
            count
        },
        ..Default::default()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    proptest! {
        #![proptest_config(super::cases(2000))]

        #[test]
        fn safe_code_stays_sound_whatever_the_rings_hold(script in prop::collection::vec(any::<u8>(), 0..600)) {
            super::play(&script);
        }
    }
}
