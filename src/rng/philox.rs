//! The NVIDIA generator: Philox-4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2,
//! 3", 2011) with a Box-Muller transform, laid out as A1111's software emulation lays it out.
//!
//! Every call of [`Philox::normal`] uses one counter per element and moves the offset by one per
//! call. A real card starts to reuse counters once a tensor has more elements than threads; the
//! emulation does not, and neither does this.

/// A Philox stream: the seed is the key, the offset counts calls.
#[derive(Debug, Clone)]
pub struct Philox {
    key: [u32; 2],
    offset: u32,
}

impl Philox {
    /// A stream at offset 0. All 64 bits of `seed` count.
    #[must_use]
    pub fn new(seed: i64) -> Self {
        let bits = seed as u64;
        Self {
            key: [bits as u32, (bits >> 32) as u32],
            offset: 0,
        }
    }

    /// `len` standard normal numbers; moves the offset by one.
    pub fn normal(&mut self, len: usize) -> Vec<f32> {
        let offset = self.offset;
        self.offset = self.offset.wrapping_add(1);
        (0..len)
            .map(|index| {
                let words = philox4x32_10([offset, 0, index as u32, 0], self.key);
                box_muller(words[0], words[1])
            })
            .collect()
    }
}

/// Ten rounds of Philox-4x32.
fn philox4x32_10(mut counter: [u32; 4], mut key: [u32; 2]) -> [u32; 4] {
    const MULTIPLIER: [u64; 2] = [0xD251_1F53, 0xCD9E_8D57];
    const WEYL: [u32; 2] = [0x9E37_79B9, 0xBB67_AE85];
    for round in 0..10 {
        if round > 0 {
            key = [key[0].wrapping_add(WEYL[0]), key[1].wrapping_add(WEYL[1])];
        }
        let p = u64::from(counter[0]) * MULTIPLIER[0];
        let q = u64::from(counter[2]) * MULTIPLIER[1];
        counter = [
            (q >> 32) as u32 ^ counter[1] ^ key[0],
            q as u32,
            (p >> 32) as u32 ^ counter[3] ^ key[1],
            p as u32,
        ];
    }
    counter
}

/// The sine half of Box-Muller. The constants are f32, the arithmetic f64, as numpy promotes it.
fn box_muller(x: u32, y: u32) -> f32 {
    let unit = f64::from(2.328_306_4e-10_f32);
    let angle = f64::from((2.328_306_4e-10_f64 * 6.283_185_5_f64) as f32);
    let u = f64::from(x) * unit + unit / 2.0;
    let v = f64::from(y) * angle + angle / 2.0;
    ((-2.0 * u.ln()).sqrt() * v.sin()) as f32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn raw_words_equal_the_reference() {
        let key = [31340, 0];
        assert_eq!(
            philox4x32_10([0, 0, 0, 0], key),
            [3_686_666_238, 4_086_369_696, 185_213_628, 3_732_608_485]
        );
        assert_eq!(
            philox4x32_10([0, 0, 1, 0], key),
            [3_014_445_510, 3_770_306_049, 402_956_666, 3_327_903_924]
        );
    }
}
