//! numpy's `default_rng`: O'Neill's PCG XSL RR 128/64, seeded by a `SeedSequence`.

use super::seed_sequence::seed_sequence_of_pool;

const MULTIPLIER: u128 = 0x2360_ed05_1fc6_5da4_4385_df64_9fcc_f645;

/// `numpy.random.default_rng(seed)`.
#[derive(Debug, Clone)]
pub struct Pcg64 {
    state: u128,
    increment: u128,
}

impl Pcg64 {
    #[must_use]
    pub fn new(seed: u64) -> Self {
        let words = seed_sequence_of_pool::<4>(seed, &[], 8);
        let pair = |index: usize| {
            let word =
                |at: usize| u128::from(words[at * 2]) | (u128::from(words[at * 2 + 1]) << 32);
            (word(index) << 64) | word(index + 1)
        };
        let mut generator = Self {
            state: 0,
            increment: (pair(2) << 1) | 1,
        };
        generator.step();
        generator.state = generator.state.wrapping_add(pair(0));
        generator.step();
        generator
    }

    fn step(&mut self) {
        self.state = self
            .state
            .wrapping_mul(MULTIPLIER)
            .wrapping_add(self.increment);
    }

    /// 64 random bits.
    pub fn next_u64(&mut self) -> u64 {
        self.step();
        let folded = (self.state >> 64) as u64 ^ self.state as u64;
        folded.rotate_right((self.state >> 122) as u32)
    }

    /// `random()`: 53 bits, at least 0 and below 1.
    pub fn next_f64(&mut self) -> f64 {
        (self.next_u64() >> 11) as f64 / 9_007_199_254_740_992.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Recorded from numpy 1.26.4.
    #[test]
    fn draws_are_numpys() {
        let mut generator = Pcg64::new(0);
        let drawn = [(); 3].map(|()| generator.next_f64());
        assert_eq!(
            drawn,
            [
                0.636_961_687_321_454_3,
                0.269_786_713_763_870_3,
                0.040_973_523_936_194_69
            ]
        );
    }
}
