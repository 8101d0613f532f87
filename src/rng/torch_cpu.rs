//! torch's CPU generator: mt19937 (Matsumoto and Nishimura, 1998) and the layout in which
//! `torch.randn` turns its words into normal numbers.
//!
//! torch's AVX2 build computes the logarithm, sine and cosine of tensors of 16 elements and more
//! with the single precision polynomials of S. Moshier's Cephes library; so does this, fused
//! multiply-adds included, and its numbers equal torch's to the bit.

const STATE_LEN: usize = 624;
const STATE_MIDDLE: usize = 397;
/// torch transforms uniform numbers in blocks of this many elements.
const BLOCK_LEN: usize = 16;
const HALF_BLOCK_LEN: usize = BLOCK_LEN / 2;

/// An mt19937 stream with torch's cache of one spare normal number.
#[derive(Debug, Clone)]
pub struct TorchCpu {
    state: [u32; STATE_LEN],
    next_word: usize,
    /// The sine half of the last pair of the path for fewer than 16 elements.
    spare: Option<f64>,
}

impl TorchCpu {
    /// A freshly seeded stream. Only the low 32 bits of `seed` count.
    #[must_use]
    pub fn new(seed: i64) -> Self {
        let mut state = [0_u32; STATE_LEN];
        state[0] = seed as u32;
        for index in 1..STATE_LEN {
            let before = state[index - 1];
            state[index] = 1_812_433_253_u32
                .wrapping_mul(before ^ (before >> 30))
                .wrapping_add(index as u32);
        }
        Self {
            state,
            next_word: STATE_LEN,
            spare: None,
        }
    }

    /// `len` standard normal numbers in the layout of `torch.randn`.
    pub fn normal(&mut self, len: usize) -> Vec<f32> {
        if len < BLOCK_LEN {
            return (0..len).map(|_| self.normal_single() as f32).collect();
        }
        let mut values: Vec<f32> = (0..len).map(|_| self.uniform_f32()).collect();
        for block in values.chunks_exact_mut(BLOCK_LEN) {
            normal_block(block);
        }
        if !len.is_multiple_of(BLOCK_LEN) {
            // The tail is drawn anew and overwrites part of the block before it.
            let tail = &mut values[len - BLOCK_LEN..];
            for value in tail.iter_mut() {
                *value = self.uniform_f32();
            }
            normal_block(tail);
        }
        values
    }

    /// One normal number of the path for small tensors, computed in f64.
    fn normal_single(&mut self) -> f64 {
        if let Some(spare) = self.spare.take() {
            return spare;
        }
        let u1 = self.uniform_f64();
        let u2 = self.uniform_f64();
        let radius = (-2.0 * (-u2).ln_1p()).sqrt();
        let angle = 2.0 * std::f64::consts::PI * u1;
        self.spare = Some(radius * angle.sin());
        radius * angle.cos()
    }

    /// 24 random bits in [0, 1).
    fn uniform_f32(&mut self) -> f32 {
        (self.word() & 0x00ff_ffff) as f32 * (1.0 / 16_777_216.0)
    }

    /// 53 random bits in [0, 1).
    fn uniform_f64(&mut self) -> f64 {
        let high = u64::from(self.word());
        let low = u64::from(self.word());
        (((high << 32) | low) & ((1 << 53) - 1)) as f64 * (1.0 / 9_007_199_254_740_992.0)
    }

    /// The next tempered word.
    fn word(&mut self) -> u32 {
        if self.next_word == STATE_LEN {
            self.refill();
        }
        let mut y = self.state[self.next_word];
        self.next_word += 1;
        y ^= y >> 11;
        y ^= (y << 7) & 0x9d2c_5680;
        y ^= (y << 15) & 0xefc6_0000;
        y ^ (y >> 18)
    }

    fn refill(&mut self) {
        for index in 0..STATE_LEN {
            let next = self.state[(index + 1) % STATE_LEN];
            let joined = (self.state[index] & 0x8000_0000) | (next & 0x7fff_ffff);
            let twist = (joined >> 1) ^ if next & 1 == 1 { 0x9908_b0df } else { 0 };
            self.state[index] = self.state[(index + STATE_MIDDLE) % STATE_LEN] ^ twist;
        }
        self.next_word = 0;
    }
}

/// Box-Muller on one block: the first half holds `u1`, the second `u2`; cosines go to the first
/// half, sines to the second.
fn normal_block(block: &mut [f32]) {
    let (first, second) = block.split_at_mut(HALF_BLOCK_LEN);
    for (a, b) in first.iter_mut().zip(second) {
        let radius = (-2.0 * log_cephes(1.0 - *a)).sqrt();
        let (sin, cos) = sin_cos_cephes(std::f32::consts::TAU * *b);
        *a = radius * cos;
        *b = radius * sin;
    }
}

/// Cephes `logf` for positive normal numbers.
fn log_cephes(x: f32) -> f32 {
    const COEFFICIENTS: [f32; 9] = [
        7.037_683_6e-2,
        -1.151_461e-1,
        1.167_699_84e-1,
        -1.242_014_1e-1,
        1.424_932_3e-1,
        -1.666_805_8e-1,
        2.000_071_4e-1,
        -2.499_999_4e-1,
        3.333_333_1e-1,
    ];
    let bits = x.max(f32::MIN_POSITIVE).to_bits();
    let mut exponent = ((bits >> 23) as i32 - 0x7f) as f32 + 1.0;
    let mantissa = f32::from_bits((bits & !0x7f80_0000) | 0.5_f32.to_bits());
    let mut x = mantissa - 1.0;
    if mantissa < std::f32::consts::FRAC_1_SQRT_2 {
        exponent -= 1.0;
        x += mantissa;
    }
    let z = x * x;
    let mut y = COEFFICIENTS[0];
    for coefficient in &COEFFICIENTS[1..] {
        y = y.mul_add(x, *coefficient);
    }
    y *= x;
    // y*z + e*q1, then - z/2, then x + y + e*q2.
    y = y.mul_add(z, exponent * -2.121_944_4e-4);
    y = (-0.5_f32).mul_add(z, y);
    exponent.mul_add(0.693_359_375, x + y)
}

/// Cephes `sinf` and `cosf` for 0 ≤ x < 8192.
fn sin_cos_cephes(x: f32) -> (f32, f32) {
    let octant = ((x * 1.273_239_5) as i32 + 1) & !1;
    let y = octant as f32;
    let x = y.mul_add(-0.785_156_25, x);
    let x = y.mul_add(-2.418_756_5e-4, x);
    let x = y.mul_add(-3.774_895e-8, x);
    let z = x * x;

    let mut cos = 2.443_315_7e-5_f32;
    cos = cos.mul_add(z, -1.388_731_6e-3);
    cos = cos.mul_add(z, 4.166_664_6e-2);
    cos *= z;
    cos = cos.mul_add(z, -(z * 0.5));
    cos += 1.0;

    let mut sin = -1.951_529_6e-4_f32;
    sin = sin.mul_add(z, 8.332_161e-3);
    sin = sin.mul_add(z, -1.666_665_5e-1);
    sin *= z;
    sin = sin.mul_add(x, x);

    let swapped = octant & 2 != 0;
    let (sin, cos) = if swapped { (cos, sin) } else { (sin, cos) };
    let sin = if octant & 4 == 0 { sin } else { -sin };
    let cos = if (octant - 2) & 4 == 0 { -cos } else { cos };
    (sin, cos)
}
