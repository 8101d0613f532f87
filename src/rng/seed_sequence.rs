//! numpy's `SeedSequence` (O'Neill's seed_seq), with the pool of 24 words that torchsde asks for or with
//! numpy's own 4.

/// The pool of torchsde.
const POOL_LEN: usize = 24;

/// The first `word_count` state words of `SeedSequence(entropy, spawn_key=…, pool_size=24)`.
#[must_use]
pub fn seed_sequence(entropy: u64, spawn_key: &[u64], word_count: usize) -> Vec<u32> {
    seed_sequence_of_pool::<POOL_LEN>(entropy, spawn_key, word_count)
}

/// The first `word_count` state words of `SeedSequence(entropy, spawn_key=…, pool_size=N)`.
pub(super) fn seed_sequence_of_pool<const N: usize>(
    entropy: u64,
    spawn_key: &[u64],
    word_count: usize,
) -> Vec<u32> {
    let words = assembled_entropy(entropy, spawn_key, N);
    let mut hasher = HashMix {
        constant: 0x43b0_d7e5,
    };
    let mut pool = [0_u32; N];
    for (index, slot) in pool.iter_mut().enumerate() {
        *slot = hasher.hash(words.get(index).copied().unwrap_or(0));
    }
    for source in 0..N {
        for target in 0..N {
            if source != target {
                pool[target] = mix(pool[target], hasher.hash(pool[source]));
            }
        }
    }
    for word in words.iter().skip(N) {
        for slot in &mut pool {
            *slot = mix(*slot, hasher.hash(*word));
        }
    }
    output_words(&pool, word_count)
}

/// Little-endian words of the entropy, then of every spawn key after padding to the pool's size.
fn assembled_entropy(entropy: u64, spawn_key: &[u64], pool_len: usize) -> Vec<u32> {
    let mut words = Vec::with_capacity(pool_len + 2 * spawn_key.len());
    push_words(&mut words, entropy);
    if !spawn_key.is_empty() {
        words.resize(pool_len, 0);
        for key in spawn_key {
            push_words(&mut words, *key);
        }
    }
    words
}

fn push_words(words: &mut Vec<u32>, value: u64) {
    words.push(value as u32);
    if value > u64::from(u32::MAX) {
        words.push((value >> 32) as u32);
    }
}

struct HashMix {
    constant: u32,
}

impl HashMix {
    fn hash(&mut self, value: u32) -> u32 {
        let mut value = value ^ self.constant;
        self.constant = self.constant.wrapping_mul(0x931e_8875);
        value = value.wrapping_mul(self.constant);
        value ^ (value >> 16)
    }
}

fn mix(x: u32, y: u32) -> u32 {
    let result = 0xca01_f9dd_u32
        .wrapping_mul(x)
        .wrapping_sub(0x4973_f715_u32.wrapping_mul(y));
    result ^ (result >> 16)
}

fn output_words(pool: &[u32], word_count: usize) -> Vec<u32> {
    let mut constant = 0x8b51_f9dd_u32;
    (0..word_count)
        .map(|index| {
            let mut value = pool[index % pool.len()] ^ constant;
            constant = constant.wrapping_mul(0x58f3_8ded);
            value = value.wrapping_mul(constant);
            value ^ (value >> 16)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::seed_sequence;

    #[test]
    fn state_words_equal_numpy() {
        assert_eq!(
            seed_sequence(0, &[], 3),
            [4_025_752_534, 2_687_548_107, 2_326_983_537]
        );
        assert_eq!(seed_sequence(0, &[0, 0], 1), [245_430_115]);
        assert_eq!(
            seed_sequence(31340, &[], 3),
            [3_725_009_030, 86_759_695, 917_179_330]
        );
        assert_eq!(seed_sequence(31340, &[0, 0], 1), [1_290_873_050]);
    }
}
