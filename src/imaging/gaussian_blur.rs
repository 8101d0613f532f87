//! Pillow 9.5.0's `GaussianBlur` filter, to the byte: three box blurs along the rows, then three along
//! the columns, each with fractional edges in 24-bit fixed point and rounding to 8 bit.

/// Blurs interleaved samples of `C` channels in place. Radius 0 changes nothing.
pub(super) fn gaussian_blur<const C: usize>(samples: &mut [u8], width: usize, radius: f32) {
    if radius <= 0.0 || samples.is_empty() {
        return;
    }
    let kernel = BoxKernel::of_gaussian(radius);
    let height = samples.len() / (width * C);
    let mut other = vec![0; samples.len()];
    let mut line = Vec::new();
    blur_rows::<C>(samples, width, &kernel, &mut line);
    transpose::<C>(samples, &mut other, width, height);
    blur_rows::<C>(&mut other, height, &kernel, &mut line);
    transpose::<C>(&other, samples, height, width);
}

/// One box of fractional radius: `2 * reach + 1` full taps and one part tap on each side.
struct BoxKernel {
    reach: usize,
    full: u32,
    part: u32,
}

impl BoxKernel {
    /// The box whose three-fold application has the variance of the Gaussian; f32 as in Pillow.
    fn of_gaussian(radius: f32) -> Self {
        let variance = radius * radius / 3.0;
        let length = (12.0 * f64::from(variance) + 1.0).sqrt() as f32;
        let l = ((f64::from(length) - 1.0) / 2.0).floor() as f32;
        let mut a = (2.0 * l + 1.0) * (l * (l + 1.0) - 3.0 * variance);
        a /= 6.0 * (variance - (l + 1.0) * (l + 1.0));
        let box_radius = l + a;
        let reach = box_radius as u32;
        let full = ((1_u32 << 24) as f32 / (box_radius * 2.0 + 1.0)) as u32;
        let part = ((1 << 24) - (reach * 2 + 1) * full) / 2;
        Self {
            reach: reach as usize,
            full,
            part,
        }
    }
}

fn blur_rows<const C: usize>(
    samples: &mut [u8],
    width: usize,
    kernel: &BoxKernel,
    line: &mut Vec<u8>,
) {
    for row in samples.chunks_exact_mut(width * C) {
        for _pass in 0..3 {
            blur_row::<C>(row, width, kernel, line);
        }
    }
}

/// `line` is scratch: the row with its edges repeated.
fn blur_row<const C: usize>(row: &mut [u8], width: usize, kernel: &BoxKernel, line: &mut Vec<u8>) {
    let margin = kernel.reach + 1;
    line.clear();
    for _ in 0..margin {
        line.extend_from_slice(&row[..C]);
    }
    line.extend_from_slice(row);
    for _ in 0..margin {
        line.extend_from_slice(&row[(width - 1) * C..]);
    }
    let at = |position: usize, channel: usize| u32::from(line[position * C + channel]);
    let mut sums = [0_u32; C];
    for (channel, sum) in sums.iter_mut().enumerate() {
        *sum = (1..2 * kernel.reach + 2).map(|tap| at(tap, channel)).sum();
    }
    for (x, pixel) in row.chunks_exact_mut(C).enumerate() {
        let (before, after) = (x, x + 2 * kernel.reach + 2);
        for (channel, sample) in pixel.iter_mut().enumerate() {
            let edges = at(before, channel) + at(after, channel);
            let bulk = sums[channel] * kernel.full + edges * kernel.part;
            *sample = ((bulk + (1 << 23)) >> 24) as u8;
            sums[channel] = sums[channel] + at(after, channel) - at(before + 1, channel);
        }
    }
}

fn transpose<const C: usize>(from: &[u8], to: &mut [u8], width: usize, height: usize) {
    for (y, row) in from.chunks_exact(width * C).enumerate() {
        for (x, pixel) in row.chunks_exact(C).enumerate() {
            to[(x * height + y) * C..][..C].copy_from_slice(pixel);
        }
    }
}
