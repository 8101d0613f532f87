//! The UNet of ldm and sgm (`openaimodel.UNetModel` with spatial transformers): SD 1.x, SD 2.x,
//! SDXL, refiner, inpainting and instruct-pix2pix variants. Blocks, channels and transformer depths
//! are read off the tensor names; only the number of attention heads is not in them.
//!
//! Unlike the diffusers port, the up path doubles first, convolves, and then cuts the result to the
//! skip connection's size, as the original's nearest resize does, whose source is at most one row
//! or column larger. Blocks without spatial transformers (`qkv` attention, scale-shift norm,
//! resblock up and down sampling) are refused.

use super::builder::{Dim, GraphBuilder, Value};
use super::hypernetwork::Hypernetworks;
use super::proto::data_type;
use super::token_merging::MergeInputs;
use super::{BuildError, BuildOptions, BuiltGraph, Weights};

/// How many attention heads a transformer of some width has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Heads {
    /// The same number at every level (SD 1.x: 8).
    Count(usize),
    /// A fixed width a head (SD 2.x, SDXL: 64).
    Width(usize),
}

impl Heads {
    fn of(self, channels: usize) -> usize {
        match self {
            Self::Count(count) => count.max(1),
            Self::Width(width) => (channels / width.max(1)).max(1),
        }
    }
}

/// How the graph takes SDXL's vector conditioning.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum VectorInput {
    /// One input `y`, `[rows, width]`, as sgm has it.
    Whole,
    /// `text_embeds` and `time_ids`, as diffusers has it; the sizes are embedded in the graph.
    Parts {
        text_width: usize,
        size_count: usize,
    },
}

/// What the tensors do not tell.
#[derive(Debug, Clone, Copy)]
pub struct UnetShape {
    pub heads: Heads,
    pub vector: VectorInput,
}

/// Inputs `sample [b, in, h, w]`, `timestep [b]`, `encoder_hidden_states [b, n, width]`, for SDXL
/// also `y` or its parts, with token merging also the inputs of [`super::TokenMerge`]; output
/// `out_sample [b, out, h, w]`.
///
/// # Errors
/// When the tensors do not form a UNet that the builder knows.
pub fn unet(
    weights: &Weights,
    shape: UnetShape,
    options: BuildOptions,
) -> Result<BuiltGraph, BuildError> {
    let mut g = GraphBuilder::new("unet", weights, options);
    let channels_in = weights.dim("input_blocks.0.0.weight", 1)?;
    let channels_out = weights.dim("out.2.weight", 0)?;
    let context_width = context_width(weights).ok_or(BuildError::Unsupported {
        part: "UNet",
        reason: "it has no cross attention".to_owned(),
    })?;
    let free = |name| Dim::Free(name);
    let sample = g.input(
        "sample",
        data_type::FLOAT,
        &[
            free("batch_size"),
            Dim::Fixed(channels_in),
            free("height"),
            free("width"),
        ],
    );
    let timestep = g.input("timestep", data_type::FLOAT, &[free("batch_size")]);
    let context = g.input(
        "encoder_hidden_states",
        data_type::FLOAT,
        &[
            free("batch_size"),
            free("sequence_length"),
            Dim::Fixed(context_width),
        ],
    );

    let emb = embedding(&mut g, &timestep, shape.vector)?;
    let batch = g.dims_of(&sample, 0, 1);
    let context_rows = g.reshape_to(&context, &[-1, context_width as i64]);
    let hypernetworks = Hypernetworks::new(&mut g, weights);
    // Every block has the same text before it, so that it goes through the hypernetworks once.
    let context_sides = match &hypernetworks {
        Some(hypernetworks) => hypernetworks.apply(&mut g, &context_rows, context_width),
        None => [context_rows.clone(), context_rows],
    };
    let merging = options
        .token_merging
        .then(|| MergeInputs::new(&mut g, &batch));
    let net = Net {
        emb,
        batch,
        context_sides,
        hypernetworks,
        heads: shape.heads,
        merging,
    };
    let h = net.walk(&mut g, &sample)?;
    let h = g.group_norm(&h, "out.0", 1e-5)?;
    let h = g.silu(&h);
    let out = g.conv(&h, "out.2", 1, 1)?;
    g.output(
        &out,
        "out_sample",
        &[
            free("batch_size"),
            Dim::Fixed(channels_out),
            free("height"),
            free("width"),
        ],
    );
    Ok(g.finish())
}

/// The width of the text conditioning: the input of any cross-attention key projection.
pub(crate) fn context_width(weights: &Weights) -> Option<usize> {
    let blocks = (0..64).flat_map(|k| [format!("input_blocks.{k}"), format!("output_blocks.{k}")]);
    blocks.chain(["middle_block".to_owned()]).find_map(|block| {
        let name = format!("{block}.1.transformer_blocks.0.attn2.to_k.weight");
        weights.dim(&name, 1).ok()
    })
}

/// SiLU of the time embedding (plus SDXL's label embedding), which is what every resnet uses.
fn embedding(
    g: &mut GraphBuilder<'_>,
    timestep: &Value,
    vector: VectorInput,
) -> Result<Value, BuildError> {
    let width = g.weights().dim("time_embed.0.weight", 1)?;
    let sinusoid = sinusoidal(g, timestep, width);
    let h = g.linear(&sinusoid, "time_embed.0")?;
    let h = g.silu(&h);
    let mut emb = g.linear(&h, "time_embed.2")?;
    if g.weights().has("label_emb.0.0.weight") {
        let y = vector_input(g, vector)?;
        let h = g.linear(&y, "label_emb.0.0")?;
        let h = g.silu(&h);
        let label = g.linear(&h, "label_emb.0.2")?;
        emb = g.add(&emb, &label);
    }
    Ok(g.silu(&emb))
}

fn vector_input(g: &mut GraphBuilder<'_>, vector: VectorInput) -> Result<Value, BuildError> {
    let total = g.weights().dim("label_emb.0.0.weight", 1)?;
    let batch = Dim::Free("batch_size");
    match vector {
        VectorInput::Whole => Ok(g.input("y", data_type::FLOAT, &[batch, Dim::Fixed(total)])),
        VectorInput::Parts {
            text_width,
            size_count,
        } => {
            let per_size = total
                .checked_sub(text_width)
                .filter(|rest| size_count > 0 && rest % size_count == 0)
                .ok_or_else(|| BuildError::Unsupported {
                    part: "UNet",
                    reason: format!(
                        "its vector of {total} is not {text_width} of text and {size_count} sizes"
                    ),
                })?
                / size_count;
            let float = data_type::FLOAT;
            let text = g.input("text_embeds", float, &[batch, Dim::Fixed(text_width)]);
            let sizes = g.input("time_ids", float, &[batch, Dim::Fixed(size_count)]);
            let flat = g.reshape_to(&sizes, &[-1]);
            let embedded = sinusoidal(g, &flat, per_size);
            let embedded = g.reshape_to(&embedded, &[-1, (per_size * size_count) as i64]);
            Ok(g.concat(&[&text, &embedded], 1))
        }
    }
}

/// ldm's `timestep_embedding`: `cat(cos(t f), sin(t f))`, `f_i = exp(-ln(10000) i / half)`, all in
/// float32; `[n]` → `[n, width]`.
fn sinusoidal(g: &mut GraphBuilder<'_>, values: &Value, width: usize) -> Value {
    let half = width / 2;
    let frequencies: Vec<f32> = (0..half)
        .map(|i| {
            let exponent = -(10000_f64.ln() as f32) * i as f32 / half as f32;
            // The float32 nearest to the exponential, which torch's own is within one step of.
            f64::from(exponent).exp() as f32
        })
        .collect();
    let frequencies = g.floats(&format!("frequencies_{half}"), &frequencies, &[1, half]);
    let column = g.reshape_to(values, &[-1, 1]);
    let angles = g.mul(&column, &frequencies);
    let cos = g.node("Cos", &[&angles], &[]);
    let sin = g.node("Sin", &[&angles], &[]);
    g.concat(&[&cos, &sin], 1)
}

/// What every block sees.
struct Net {
    emb: Value,
    batch: Value,
    /// What cross-attention makes keys and values of, `[batch * tokens, width]`.
    context_sides: [Value; 2],
    hypernetworks: Option<Hypernetworks>,
    heads: Heads,
    /// Token merging, where the graph has it.
    merging: Option<MergeInputs>,
}

impl Net {
    fn walk(&self, g: &mut GraphBuilder<'_>, sample: &Value) -> Result<Value, BuildError> {
        let weights = g.weights();
        let mut h = g.conv(sample, "input_blocks.0.0", 1, 1)?;
        let mut skips = vec![h.clone()];
        // How many times the picture has been halved.
        let mut level = 0_usize;
        for k in 1.. {
            let block = format!("input_blocks.{k}");
            if !weights.has_any(&format!("{block}.")) {
                break;
            }
            h = if weights.has(&format!("{block}.0.op.weight")) {
                level += 1;
                g.conv(&h, &format!("{block}.0.op"), 2, 1)?
            } else {
                self.resnet_and_transformer(g, &h, &block, level)?
            };
            skips.push(h.clone());
        }
        h = self.middle(g, &h, level)?;
        let mut doubled = false;
        for k in 0.. {
            let block = format!("output_blocks.{k}");
            if !weights.has_any(&format!("{block}.")) {
                break;
            }
            let skip = skips
                .pop()
                .ok_or_else(|| unsupported("more up blocks than skips"))?;
            if doubled {
                h = cut_to(g, &h, &skip);
            }
            h = g.concat(&[&h, &skip], 1);
            h = self.resnet_and_transformer(g, &h, &block, level)?;
            doubled = false;
            for part in 1..=2 {
                let conv = format!("{block}.{part}.conv");
                if weights.has(&format!("{conv}.weight")) {
                    let enlarged = g.upsample(&h);
                    h = g.conv(&enlarged, &conv, 1, 1)?;
                    doubled = true;
                    level = level.saturating_sub(1);
                }
            }
        }
        if skips.is_empty() {
            Ok(h)
        } else {
            Err(unsupported("fewer up blocks than skips"))
        }
    }

    /// Resnet, transformer, resnet; a distilled SDXL (SSD-1B) has the first only.
    fn middle(
        &self,
        g: &mut GraphBuilder<'_>,
        x: &Value,
        level: usize,
    ) -> Result<Value, BuildError> {
        let weights = g.weights();
        let mut h = x.clone();
        for part in 0.. {
            let layer = format!("middle_block.{part}");
            if weights.has(&format!("{layer}.in_layers.0.weight")) {
                h = self.resnet(g, &h, &layer)?;
            } else if weights.has(&format!("{layer}.norm.weight")) {
                h = self.transformer(g, &h, &layer, level)?;
            } else {
                break;
            }
        }
        Ok(h)
    }

    fn resnet_and_transformer(
        &self,
        g: &mut GraphBuilder<'_>,
        x: &Value,
        block: &str,
        level: usize,
    ) -> Result<Value, BuildError> {
        let h = self.resnet(g, x, &format!("{block}.0"))?;
        let transformer = format!("{block}.1");
        if g.weights().has(&format!("{transformer}.norm.weight")) {
            self.transformer(g, &h, &transformer, level)
        } else {
            Ok(h)
        }
    }

    fn resnet(
        &self,
        g: &mut GraphBuilder<'_>,
        x: &Value,
        layer: &str,
    ) -> Result<Value, BuildError> {
        let weights = g.weights();
        let width = weights.dim(&format!("{layer}.in_layers.2.weight"), 0)?;
        if weights.dim(&format!("{layer}.emb_layers.1.weight"), 0)? != width {
            return Err(unsupported("it uses scale-shift normalisation"));
        }
        let h = g.group_norm(x, &format!("{layer}.in_layers.0"), 1e-5)?;
        let h = g.silu(&h);
        let h = g.conv(&h, &format!("{layer}.in_layers.2"), 1, 1)?;
        let emb = g.linear(&self.emb, &format!("{layer}.emb_layers.1"))?;
        let emb = g.reshape_to(&emb, &[0, 0, 1, 1]);
        let h = g.add(&h, &emb);
        let h = g.group_norm(&h, &format!("{layer}.out_layers.0"), 1e-5)?;
        let h = g.silu(&h);
        let h = g.conv(&h, &format!("{layer}.out_layers.3"), 1, 1)?;
        let skip = format!("{layer}.skip_connection");
        let x = if weights.has(&format!("{skip}.weight")) {
            let padding = weights.dim(&format!("{skip}.weight"), 2)? as i64 / 2;
            g.conv(x, &skip, 1, padding)?
        } else {
            x.clone()
        };
        Ok(g.add(&x, &h))
    }

    fn transformer(
        &self,
        g: &mut GraphBuilder<'_>,
        x: &Value,
        layer: &str,
        level: usize,
    ) -> Result<Value, BuildError> {
        let weights = g.weights();
        let proj_in = format!("{layer}.proj_in");
        let channels = weights.dim(&format!("{layer}.norm.weight"), 0)?;
        let inner = weights.dim(&format!("{proj_in}.weight"), 0)?;
        let h = g.group_norm(x, &format!("{layer}.norm"), 1e-6)?;
        let merging = self.merging.as_ref().filter(|_| level == 0);
        // A 1x1 convolution before the reshape and a linear layer after it are the same sums.
        let rows = g.rows_of(&h, channels);
        let mut rows = g.linear(&rows, &proj_in)?;
        for n in 0.. {
            let block = format!("{layer}.transformer_blocks.{n}");
            if !weights.has(&format!("{block}.norm1.weight")) {
                break;
            }
            rows = self.transformer_block(g, &rows, &block, inner, merging)?;
        }
        let rows = g.linear(&rows, &format!("{layer}.proj_out"))?;
        let h = g.picture_of(&rows, &self.batch, channels, x);
        Ok(g.add(&h, x))
    }

    fn transformer_block(
        &self,
        g: &mut GraphBuilder<'_>,
        x: &Value,
        block: &str,
        width: usize,
        merging: Option<&MergeInputs>,
    ) -> Result<Value, BuildError> {
        let h = g.layer_norm(x, &format!("{block}.norm1"))?;
        let attention = format!("{block}.attn1");
        let h = match merging {
            None => {
                let sides = self.own_sides(g, &h, width);
                self.attention(g, &h, &sides, &attention, width)?
            }
            Some(merging) => {
                let tokens = g.tokens_of(x, &self.batch, width);
                let chosen = merging.matching(g, &tokens);
                let h = g.tokens_of(&h, &self.batch, width);
                let h = merging.merge(g, &h, &chosen);
                let h = g.reshape_to(&h, &[-1, width as i64]);
                let sides = self.own_sides(g, &h, width);
                let h = self.attention(g, &h, &sides, &attention, width)?;
                let h = g.tokens_of(&h, &self.batch, width);
                let h = merging.unmerge(g, &h, &tokens, &chosen);
                g.reshape_to(&h, &[-1, width as i64])
            }
        };
        let x = g.add(&h, x);
        let h = g.layer_norm(&x, &format!("{block}.norm2"))?;
        let attention = format!("{block}.attn2");
        let h = self.attention(g, &h, &self.context_sides, &attention, width)?;
        let x = g.add(&h, &x);
        let h = g.layer_norm(&x, &format!("{block}.norm3"))?;
        let h = feed_forward(g, &h, &format!("{block}.ff.net"))?;
        Ok(g.add(&h, &x))
    }

    /// What self-attention makes keys and values of.
    fn own_sides(&self, g: &mut GraphBuilder<'_>, rows: &Value, width: usize) -> [Value; 2] {
        match &self.hypernetworks {
            Some(hypernetworks) => hypernetworks.apply(g, rows, width),
            None => [rows.clone(), rows.clone()],
        }
    }

    fn attention(
        &self,
        g: &mut GraphBuilder<'_>,
        x: &Value,
        [for_keys, for_values]: &[Value; 2],
        layer: &str,
        width: usize,
    ) -> Result<Value, BuildError> {
        let q = g.linear(x, &format!("{layer}.to_q"))?;
        let k = g.linear(for_keys, &format!("{layer}.to_k"))?;
        let v = g.linear(for_values, &format!("{layer}.to_v"))?;
        let [q, k, v] = [q, k, v].map(|rows| g.tokens_of(&rows, &self.batch, width));
        let heads = self.heads.of(width);
        let h = if g.wants_float_attention() {
            g.float_attention(&q, &k, &v, heads, None)
        } else {
            g.attention(&q, &k, &v, heads, None)
        };
        let rows = g.reshape_to(&h, &[-1, width as i64]);
        g.linear(&rows, &format!("{layer}.to_out.0"))
    }
}

/// GEGLU: the first half of the projection times GELU of the second.
fn feed_forward(g: &mut GraphBuilder<'_>, x: &Value, layer: &str) -> Result<Value, BuildError> {
    let projected = g.linear(x, &format!("{layer}.0.proj"))?;
    let half = g.weights().dim(&format!("{layer}.0.proj.weight"), 0)? as i64 / 2;
    let value = columns(g, &projected, 0, half);
    let gate = columns(g, &projected, half, 2 * half);
    let gate = g.gelu(&gate);
    let h = g.mul(&value, &gate);
    g.linear(&h, &format!("{layer}.2"))
}

fn columns(g: &mut GraphBuilder<'_>, x: &Value, from: i64, to: i64) -> Value {
    let (from, to, axis) = (g.ints(&[from]), g.ints(&[to]), g.ints(&[1]));
    g.node("Slice", &[x, &from, &to, &axis], &[])
}

/// The first rows and columns of `x`, as many as `like` has.
fn cut_to(g: &mut GraphBuilder<'_>, x: &Value, like: &Value) -> Value {
    let size = g.dims_of(like, 2, 4);
    let (start, axes) = (g.ints(&[0, 0]), g.ints(&[2, 3]));
    g.node("Slice", &[x, &start, &size, &axes], &[])
}

fn unsupported(reason: &str) -> BuildError {
    BuildError::Unsupported {
        part: "UNet",
        reason: reason.to_owned(),
    }
}
