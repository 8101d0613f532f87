//! Seeds of a job: which seed and subseed every picture gets (A1111's `process_images` rules).

/// A seed as a request names it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SeedChoice {
    /// −1, an empty text or nothing: drawn at random.
    Random,
    /// This number, for the first picture.
    Fixed(i64),
    /// One number a picture, used as they are.
    List(Vec<i64>),
}

/// What decides the seeds of a job.
#[derive(Debug, Clone, PartialEq)]
pub struct SeedOptions {
    /// The request's `seed`.
    pub seed: SeedChoice,
    /// The request's `subseed`.
    pub subseed: SeedChoice,
    /// Strength of the variation, 0 to 1.
    pub subseed_strength: f64,
    /// `batch_size * n_iter`.
    pub picture_count: usize,
}

/// One seed and one subseed a picture.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JobSeeds {
    /// `all_seeds`.
    pub seeds: Vec<i64>,
    /// `all_subseeds`.
    pub subseeds: Vec<i64>,
}

/// Largest random seed.
pub const MAX_RANDOM_SEED: i64 = 4_294_967_293;

/// Seeds and subseeds of every picture. `random` answers a number in `0..=MAX_RANDOM_SEED` and is
/// asked for the seed first, then for the subseed, each only when it is random.
pub fn job_seeds(options: &SeedOptions, mut random: impl FnMut() -> i64) -> JobSeeds {
    let varies_by_subseed = options.subseed_strength != 0.0;
    let mut expand = |choice: &SeedChoice, counts_up: bool| match choice {
        SeedChoice::List(list) => list.clone(),
        SeedChoice::Fixed(first) => count_from(*first, counts_up, options.picture_count),
        SeedChoice::Random => count_from(random(), counts_up, options.picture_count),
    };
    JobSeeds {
        seeds: expand(&options.seed, !varies_by_subseed),
        subseeds: expand(&options.subseed, true),
    }
}

fn count_from(first: i64, counts_up: bool, picture_count: usize) -> Vec<i64> {
    (0..picture_count)
        .map(|index| {
            let offset = if counts_up { index as i64 } else { 0 };
            first.wrapping_add(offset)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(seed: SeedChoice, subseed_strength: f64) -> SeedOptions {
        SeedOptions {
            seed,
            subseed: SeedChoice::Fixed(70),
            subseed_strength,
            picture_count: 3,
        }
    }

    #[test]
    fn seeds_count_up_unless_a_subseed_varies_the_pictures() {
        let plain = job_seeds(&options(SeedChoice::Fixed(5), 0.0), || 0);
        assert_eq!(plain.seeds, [5, 6, 7]);
        assert_eq!(plain.subseeds, [70, 71, 72]);
        let varied = job_seeds(&options(SeedChoice::Fixed(5), 0.1), || 0);
        assert_eq!(varied.seeds, [5, 5, 5]);
        assert_eq!(varied.subseeds, [70, 71, 72]);
    }

    #[test]
    fn lists_are_used_as_they_are_and_random_seeds_count_up() {
        let listed = job_seeds(&options(SeedChoice::List(vec![9, 1]), 0.0), || 0);
        assert_eq!(listed.seeds, [9, 1]);
        let random = job_seeds(&options(SeedChoice::Random, 0.0), || 1000);
        assert_eq!(random.seeds, [1000, 1001, 1002]);
    }
}
