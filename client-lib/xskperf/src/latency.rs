//! Round-trip times, kept in buckets that are 1/32 of their value wide: any number of them in a few KiB.

use std::time::Duration;

use serde::Serialize;

/// Buckets for each power of two.
const STEPS: u64 = 32;
const STEPS_BITS: u32 = STEPS.trailing_zeros();
/// Of all values of 64 bits.
const BUCKETS: usize = 32 * 64;

#[derive(Debug, Clone)]
pub(crate) struct Latencies {
    buckets: Vec<u64>,
    count: u64,
    least: u64,
    most: u64,
}

/// In microseconds; exact at both ends, else within 3 %.
#[derive(Debug, Clone, Copy, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Percentiles {
    pub(crate) least_us: f64,
    pub(crate) median_us: f64,
    pub(crate) p99_us: f64,
    pub(crate) p999_us: f64,
    pub(crate) most_us: f64,
}

impl Default for Latencies {
    fn default() -> Self {
        Self {
            buckets: vec![0; BUCKETS],
            count: 0,
            least: u64::MAX,
            most: 0,
        }
    }
}

impl Latencies {
    pub(crate) fn add(&mut self, time: Duration) {
        let nanoseconds = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        if let Some(bucket) = self.buckets.get_mut(bucket_of(nanoseconds)) {
            *bucket += 1;
        }
        self.count += 1;
        self.least = self.least.min(nanoseconds);
        self.most = self.most.max(nanoseconds);
    }

    /// `None` where there is none.
    pub(crate) fn percentiles(&self) -> Option<Percentiles> {
        if self.count == 0 {
            return None;
        }
        let at = |per_mille: u64| {
            let wanted = (self.count * per_mille).div_ceil(1000).max(1);
            let mut seen = 0;
            let found = self.buckets.iter().position(|count| {
                seen += count;
                seen >= wanted
            });
            let middle = found.map_or(self.most, middle_of);
            us(middle.clamp(self.least, self.most))
        };
        Some(Percentiles {
            least_us: us(self.least),
            median_us: at(500),
            p99_us: at(990),
            p999_us: at(999),
            most_us: us(self.most),
        })
    }
}

#[expect(clippy::cast_precision_loss, reason = "a figure for people")]
fn us(nanoseconds: u64) -> f64 {
    nanoseconds as f64 / 1000.0
}

fn bucket_of(value: u64) -> usize {
    let shift = (u64::BITS - value.leading_zeros()).saturating_sub(STEPS_BITS + 1);
    let bucket = u64::from(shift) * STEPS + (value >> shift);
    usize::try_from(bucket).unwrap_or(usize::MAX)
}

/// The middle of what is in a bucket.
fn middle_of(bucket: usize) -> u64 {
    let bucket = bucket as u64;
    let shift = (bucket / STEPS).saturating_sub(1);
    let value = bucket - shift * STEPS;
    (value << shift) + ((1 << shift) >> 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bucket_holds_what_is_near_its_middle() {
        let mut last = 0;
        for exponent in 0..50 {
            for offset in 0..97 {
                let value = (1_u64 << exponent) + offset * ((1 << exponent) / 100);
                let bucket = bucket_of(value);
                assert!(bucket >= last || offset == 0, "{value}");
                last = bucket;
                let middle = middle_of(bucket);
                assert!(middle.abs_diff(value) <= value / 32 + 1, "{value}: {middle}");
            }
        }
        assert!(bucket_of(u64::MAX) < Latencies::default().buckets.len());
    }

    #[test]
    fn percentiles_of_a_known_lot() {
        let mut latencies = Latencies::default();
        assert!(latencies.percentiles().is_none());
        for microseconds in 1..=1000 {
            latencies.add(Duration::from_micros(microseconds));
        }
        let found = latencies.percentiles().unwrap();
        assert!((found.least_us - 1.0).abs() < 1e-9 && (found.most_us - 1000.0).abs() < 1e-9);
        for (value, expected) in [
            (found.median_us, 500.0),
            (found.p99_us, 990.0),
            (found.p999_us, 999.0),
        ] {
            assert!(
                (value - expected).abs() < expected * 0.04,
                "{value} for {expected}"
            );
        }
    }
}
