//! Pictures to latents and back through a checkpoint's VAE.

use image::RgbImage;
use ndarray::{Array3, Array4, Axis, s};

use crate::imaging::tensor_to_picture;
use crate::rng::Generator;
use crate::sampling::Latent;

use super::{GenerateError, Model, Posterior};

/// Decodes every latent of `batch` (in the UNet's scale) by itself, as A1111 does, to 8-bit RGB.
///
/// # Errors
/// When the VAE fails, or answers no number where A1111 looks for one.
pub(super) fn decode(model: &Model, batch: &Latent) -> Result<Vec<RgbImage>, GenerateError> {
    decode_tensors(model, batch)?
        .iter()
        .map(|decoded| Ok(tensor_to_picture(decoded.view())))
        .collect()
}

/// Decodes every latent of `batch` to `[3, height, width]` around -1..1.
pub(super) fn decode_tensors(
    model: &Model,
    batch: &Latent,
) -> Result<Vec<Array3<f32>>, GenerateError> {
    batch
        .axis_iter(Axis(0))
        .map(|latent| {
            let scaled = latent.insert_axis(Axis(0)).mapv(|z| z / model.vae_scale);
            let decoded = model
                .vae
                .decode(&scaled)
                .map_err(|source| GenerateError::Graph {
                    graph: "VAE decoder",
                    source,
                })?;
            if model.checks_nan && decoded.first().is_some_and(|value| value.is_nan()) {
                return Err(GenerateError::NotANumber { part: "VAE" });
            }
            Ok(decoded.index_axis_move(Axis(0), 0))
        })
        .collect()
}

/// Encodes `pixels` (`[n, 3, height, width]` in -1..1), one picture at a time, to latents in the
/// UNet's scale: `(mean + exp(logvar / 2) * noise) * scale`, `noise` drawn from `generator`, as ldm
/// samples its posterior from torch's global generator.
///
/// # Errors
/// When the VAE fails.
pub(super) fn encode(
    model: &Model,
    pixels: &Array4<f32>,
    generator: &mut Generator,
) -> Result<Latent, GenerateError> {
    let mut latents = Vec::with_capacity(pixels.shape()[0]);
    for picture in pixels.axis_iter(Axis(0)) {
        let posterior = posterior(model, &picture.insert_axis(Axis(0)).to_owned())?;
        let noise = Array4::from_shape_vec(
            posterior.mean.raw_dim(),
            generator.normal(posterior.mean.len()),
        )
        .expect("one draw an element");
        let deviation = posterior
            .logvar
            .mapv(|logvar| (0.5 * logvar.clamp(-30.0, 20.0)).exp());
        latents.push((posterior.mean + deviation * noise) * model.vae_scale);
    }
    stack(&latents)
}

/// The latent distribution of one picture.
pub(super) fn posterior(model: &Model, pixels: &Array4<f32>) -> Result<Posterior, GenerateError> {
    model
        .vae
        .encode(pixels)
        .map_err(|source| GenerateError::Graph {
            graph: "VAE encoder",
            source,
        })
}

/// Latents one after the other along the batch.
pub(super) fn stack(latents: &[Latent]) -> Result<Latent, GenerateError> {
    let views: Vec<_> = latents.iter().map(|latent| latent.view()).collect();
    ndarray::concatenate(Axis(0), &views)
        .map_err(|_| GenerateError::InvalidValue("the init images have different sizes".to_owned()))
}

/// `latent` repeated to `count` rows when it has one, as A1111 repeats a single init image.
pub(super) fn repeat(latent: Latent, count: usize) -> Latent {
    if latent.shape()[0] == count {
        return latent;
    }
    let (_, channels, height, width) = latent.dim();
    let mut repeated = Array4::zeros((count, channels, height, width));
    repeated.assign(&latent.slice(s![0..1, .., .., ..]));
    repeated
}
