//! A1111's `ImageRNG`: the start noise of a batch and the noise of the steps after it, one
//! generator a picture, with variation seeds (subseeds), seed resizing and ENSD.

use ndarray::{Array2, Array3, Array4, Axis, s};

use super::generator::{Generator, NoiseGenerator};

/// The picture size that a seed was made with, in pixels. In use when both are above 0.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct SeedResize {
    /// `seed_resize_from_h`.
    pub height_px: i64,
    /// `seed_resize_from_w`.
    pub width_px: i64,
}

/// What an [`ImageRng`] is made from.
#[derive(Debug, Clone, PartialEq)]
pub struct ImageRngParams {
    /// Which generator draws.
    pub generator: NoiseGenerator,
    /// `(channels, height / 8, width / 8)` of one latent.
    pub shape: (usize, usize, usize),
    /// One seed a picture; their count is the batch size.
    pub seeds: Vec<i64>,
    /// One subseed a picture; missing ones are 0.
    pub subseeds: Vec<i64>,
    /// Weight of the subseed's noise, 0 for none.
    pub subseed_strength: f64,
    /// The size whose noise is pasted into the middle.
    pub seed_resize: SeedResize,
    /// ENSD, added to the seeds for all noise after the first; 0 for none.
    pub eta_noise_seed_delta: i64,
}

/// The noise of one batch. The first draw is the start noise, every later one a step's noise.
#[derive(Debug, Clone)]
pub struct ImageRng {
    params: ImageRngParams,
    generators: Vec<Generator>,
    is_first: bool,
}

impl ImageRng {
    /// Generators seeded, nothing drawn.
    #[must_use]
    pub fn new(params: ImageRngParams) -> Self {
        let generators = params
            .seeds
            .iter()
            .map(|&seed| Generator::new(params.generator, seed))
            .collect();
        Self {
            params,
            generators,
            is_first: true,
        }
    }

    /// The start noise, `[batch, channels, h, w]`.
    pub fn first(&mut self) -> Array4<f32> {
        self.is_first = false;
        let (channels, height, width) = self.params.shape;
        let mut batch = Array4::zeros((self.params.seeds.len(), channels, height, width));
        for index in 0..self.params.seeds.len() {
            let noise = self.first_of(index);
            batch.index_axis_mut(Axis(0), index).assign(&noise);
        }
        if self.params.eta_noise_seed_delta != 0 {
            for (generator, seed) in self.generators.iter_mut().zip(&self.params.seeds) {
                let seed = seed.wrapping_add(self.params.eta_noise_seed_delta);
                *generator = Generator::new(self.params.generator, seed);
            }
        }
        batch
    }

    /// The next noise, `[batch, channels, h, w]`: the start noise if nothing was drawn yet.
    #[expect(clippy::should_implement_trait, reason = "the stream never ends")]
    pub fn next(&mut self) -> Array4<f32> {
        if self.is_first {
            return self.first();
        }
        let (channels, height, width) = self.params.shape;
        let mut batch = Array4::zeros((self.generators.len(), channels, height, width));
        for (generator, mut target) in self.generators.iter_mut().zip(batch.outer_iter_mut()) {
            target.assign(&draw(generator, self.params.shape));
        }
        batch
    }

    /// The seed that `torch.manual_seed` was last called with when [`Self::first`] has run: with
    /// torch's own generators the global one then starts from the last picture's seed, which
    /// decides the VAE encoder's sample in the hires pass. `None` for the NVIDIA generator, which
    /// leaves the global one alone.
    #[must_use]
    pub fn global_seed(&self) -> Option<i64> {
        match self.params.generator {
            NoiseGenerator::Cpu => self.params.seeds.last().copied(),
            NoiseGenerator::Nv => None,
        }
    }

    fn first_of(&mut self, index: usize) -> Array3<f32> {
        let params = &self.params;
        let kind = params.generator;
        let seed = params.seeds[index];
        let noise_shape = resized_shape(params.shape, params.seed_resize);
        let subnoise = (params.subseed_strength != 0.0).then(|| {
            let subseed = params.subseeds.get(index).copied().unwrap_or(0);
            draw(&mut Generator::new(kind, subseed), noise_shape)
        });
        let mut noise = if noise_shape == params.shape {
            draw(&mut self.generators[index], noise_shape)
        } else {
            draw(&mut Generator::new(kind, seed), noise_shape)
        };
        if let Some(subnoise) = subnoise {
            noise = slerp(params.subseed_strength, &noise, &subnoise);
        }
        if noise_shape == params.shape {
            return noise;
        }
        let mut field = draw(&mut self.generators[index], params.shape);
        paste_centred(&mut field, &noise);
        field
    }
}

fn resized_shape(shape: (usize, usize, usize), resize: SeedResize) -> (usize, usize, usize) {
    if resize.height_px > 0 && resize.width_px > 0 {
        let height = (resize.height_px / 8) as usize;
        let width = (resize.width_px / 8) as usize;
        (shape.0, height, width)
    } else {
        shape
    }
}

fn draw(generator: &mut Generator, shape: (usize, usize, usize)) -> Array3<f32> {
    let values = generator.normal(shape.0 * shape.1 * shape.2);
    Array3::from_shape_vec(shape, values).expect("as many values as the shape holds")
}

/// Puts `noise` into the middle of `field`, cut where it is larger. Offsets are floor divisions of
/// possibly negative numbers, as in Python.
fn paste_centred(field: &mut Array3<f32>, noise: &Array3<f32>) {
    let (_, field_height, field_width) = field.dim();
    let (_, noise_height, noise_width) = noise.dim();
    let (target_x, source_x, width) = overlap(field_width, noise_width);
    let (target_y, source_y, height) = overlap(field_height, noise_height);
    field
        .slice_mut(s![
            ..,
            target_y..target_y + height,
            target_x..target_x + width
        ])
        .assign(&noise.slice(s![
            ..,
            source_y..source_y + height,
            source_x..source_x + width
        ]));
}

/// `(offset in the target, offset in the source, length)` along one axis.
fn overlap(target_len: usize, source_len: usize) -> (usize, usize, usize) {
    let delta = (target_len as i64 - source_len as i64).div_euclid(2);
    if delta >= 0 {
        (delta as usize, 0, source_len)
    } else {
        // An odd excess makes this one shorter than the target, as in A1111.
        let len = (source_len as i64 + 2 * delta).max(0) as usize;
        (0, (-delta) as usize, len)
    }
}

/// Spherical interpolation from `low` to `high` as A1111 applies it to latents `[channels, h, w]`:
/// norms and dot products run over the height.
#[must_use]
pub fn slerp(strength: f64, low: &Array3<f32>, high: &Array3<f32>) -> Array3<f32> {
    let low_norm = column_norms(low);
    let high_norm = column_norms(high);
    let (channels, height, width) = low.dim();
    let mut dot = Array2::<f32>::zeros((channels, width));
    for row in 0..height {
        let low_row = &low.slice(s![.., row, ..]) / &low_norm;
        let high_row = &high.slice(s![.., row, ..]) / &high_norm;
        dot += &(low_row * high_row);
    }
    let value = strength as f32;
    let complement = (1.0 - strength) as f32;
    let mean = dot.iter().map(|&d| f64::from(d)).sum::<f64>() / dot.len() as f64;
    if mean > 0.9995 {
        // The weights are the other way round than one would think; A1111 has them so.
        return low * value + high * complement;
    }
    let omega = dot.mapv(|d| f64::from(d).acos() as f32);
    let sin_omega = omega.mapv(sin);
    let low_weight = omega.mapv(|o| sin(complement * o)) / &sin_omega;
    let high_weight = omega.mapv(|o| sin(value * o)) / &sin_omega;
    let mut result = Array3::zeros(low.dim());
    for row in 0..height {
        let mixed =
            &low.slice(s![.., row, ..]) * &low_weight + &high.slice(s![.., row, ..]) * &high_weight;
        result.slice_mut(s![.., row, ..]).assign(&mixed);
    }
    result
}

/// Euclidean norm over the height, `[channels, width]`.
fn column_norms(noise: &Array3<f32>) -> Array2<f32> {
    noise.map_axis(Axis(1), |column| {
        column.iter().fold(0.0_f32, |sum, v| sum + v * v).sqrt()
    })
}

/// A correctly rounded f32 sine.
fn sin(x: f32) -> f32 {
    f64::from(x).sin() as f32
}
