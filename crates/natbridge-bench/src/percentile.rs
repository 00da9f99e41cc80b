//! Percentiles of durations.

use std::time::Duration;

/// The duration in microseconds below which `share` (0 to 1) of the sorted samples lie.
pub fn percentile(sorted: &[Duration], share: f64) -> f64 {
    let last = sorted.len().saturating_sub(1);
    let at = (share * last as f64).round() as usize;
    sorted.get(at).map_or(f64::NAN, |sample| sample.as_secs_f64() * 1e6)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn takes_the_nearest_sample() {
        let samples: Vec<Duration> = (0..=100).map(Duration::from_micros).collect();
        assert!((percentile(&samples, 0.5) - 50.0).abs() < 1e-6);
        assert!((percentile(&samples, 0.99) - 99.0).abs() < 1e-6);
        assert!(percentile(&[], 0.5).is_nan());
    }
}
