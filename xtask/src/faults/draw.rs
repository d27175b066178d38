//! Numbers for planting: drawn continuously, from a seed.

/// Numbers that a seed gives, the same on every machine.
#[derive(Clone)]
pub struct Draw(u64);

impl Draw {
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15).wrapping_add(0x1234_5678))
    }
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut x = self.0;
        x = (x ^ (x >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        x ^ (x >> 31)
    }
    /// From `low` up to `high`.
    pub fn between(&mut self, low: f64, high: f64) -> f64 {
        low + (high - low) * (self.next() >> 11) as f64 / (1u64 << 53) as f64
    }
    /// A factor that is at least `least` away from 1, up or down, and at most `most`.
    pub fn factor(&mut self, least: f64, most: f64) -> f64 {
        let size = self.between(least.ln(), most.ln()).exp();
        if self.next().is_multiple_of(2) { size } else { 1.0 / size }
    }
    /// One of so many.
    pub fn of(&mut self, count: usize) -> usize {
        (self.next() % count.max(1) as u64) as usize
    }
}
