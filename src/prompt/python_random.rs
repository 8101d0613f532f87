//! Python's `random.Random` on integer seeds: MT19937 and the draws that prompts make of it.

const LENGTH: usize = 624;
const MIDDLE: usize = 397;

/// Python's generator.
#[derive(Clone)]
pub(super) struct PythonRandom {
    state: [u32; LENGTH],
    index: usize,
}

impl PythonRandom {
    /// `random.seed(seed)`: the sign does not count.
    pub(super) fn new(seed: i64) -> Self {
        let magnitude = seed.unsigned_abs();
        let (low, high) = (magnitude as u32, (magnitude >> 32) as u32);
        let key = if high == 0 {
            vec![low]
        } else {
            vec![low, high]
        };
        Self {
            state: init_by_array(&key),
            index: LENGTH,
        }
    }

    fn next_u32(&mut self) -> u32 {
        if self.index == LENGTH {
            self.twist();
            self.index = 0;
        }
        let mut value = self.state[self.index];
        self.index += 1;
        value ^= value >> 11;
        value ^= (value << 7) & 0x9d2c_5680;
        value ^= (value << 15) & 0xefc6_0000;
        value ^ (value >> 18)
    }

    fn twist(&mut self) {
        for index in 0..LENGTH {
            let bits = (self.state[index] & 0x8000_0000)
                | (self.state[(index + 1) % LENGTH] & 0x7fff_ffff);
            let mut value = self.state[(index + MIDDLE) % LENGTH] ^ (bits >> 1);
            if bits & 1 == 1 {
                value ^= 0x9908_b0df;
            }
            self.state[index] = value;
        }
    }

    /// `random.random()`: 53 bits, at least 0 and below 1.
    pub(super) fn random(&mut self) -> f64 {
        let high = f64::from(self.next_u32() >> 5);
        let low = f64::from(self.next_u32() >> 6);
        (high * 67_108_864.0 + low) / 9_007_199_254_740_992.0
    }

    /// An index below `count`, as `random.choice` draws it. Draws even where there is no choice.
    pub(super) fn below(&mut self, count: usize) -> usize {
        let bits = usize::BITS - count.leading_zeros();
        if bits == 0 || bits > 32 {
            return 0;
        }
        loop {
            let value = (self.next_u32() >> (32 - bits)) as usize;
            if value < count {
                return value;
            }
        }
    }

    /// `random.randint(low, high)`.
    pub(super) fn between(&mut self, low: usize, high: usize) -> usize {
        low + self.below(high - low + 1)
    }

    /// An index drawn as `random.choices(…, cum_weights=…)` does; `None` if nothing weighs anything.
    pub(super) fn weighted(&mut self, cumulative: &[f64]) -> Option<usize> {
        let total = cumulative.last().copied().filter(|&total| total > 0.0)?;
        let point = self.random() * total;
        let index = cumulative.partition_point(|&weight| weight <= point);
        Some(index.min(cumulative.len() - 1))
    }
}

fn init_genrand(seed: u32) -> [u32; LENGTH] {
    let mut state = [0; LENGTH];
    state[0] = seed;
    for index in 1..LENGTH {
        let previous = state[index - 1];
        state[index] = 1_812_433_253_u32
            .wrapping_mul(previous ^ (previous >> 30))
            .wrapping_add(index as u32);
    }
    state
}

fn init_by_array(key: &[u32]) -> [u32; LENGTH] {
    let mut state = init_genrand(19_650_218);
    let mut index = 1;
    let mix = |state: &mut [u32; LENGTH], index: &mut usize, factor: u32, addend: u32| {
        let previous = state[*index - 1];
        let mixed = state[*index] ^ (previous ^ (previous >> 30)).wrapping_mul(factor);
        state[*index] = mixed.wrapping_add(addend);
        *index += 1;
        if *index == LENGTH {
            state[0] = state[LENGTH - 1];
            *index = 1;
        }
    };
    for step in 0..LENGTH.max(key.len()) {
        let word = step % key.len();
        let addend = key[word].wrapping_add(word as u32);
        mix(&mut state, &mut index, 1_664_525, addend);
    }
    for _ in 1..LENGTH {
        let addend = 0_u32.wrapping_sub(index as u32);
        mix(&mut state, &mut index, 1_566_083_941, addend);
    }
    state[0] = 0x8000_0000;
    state
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;
    use serde_json::Value;

    use super::*;
    use crate::prompt::vectors;

    #[derive(Deserialize)]
    struct Case {
        seed: i64,
        getrandbits32: Vec<u32>,
        first5_choice_of_7: Vec<usize>,
        random3: Vec<f64>,
    }

    #[test]
    fn draws_are_pythons() {
        let vectors: Value = vectors::read_api("python_random");
        let cases: Vec<Case> = serde_json::from_value(vectors["cases"].clone()).expect("cases");
        for case in cases {
            let seeded = || PythonRandom::new(case.seed);
            assert_eq!(seeded().next_u32(), case.getrandbits32[0]);
            let mut generator = seeded();
            let choices: Vec<usize> = (0..5).map(|_| generator.below(7)).collect();
            assert_eq!(choices, case.first5_choice_of_7, "seed {}", case.seed);
            let mut generator = seeded();
            let numbers: Vec<f64> = (0..3).map(|_| generator.random()).collect();
            assert_eq!(numbers, case.random3, "seed {}", case.seed);
        }
    }
}
