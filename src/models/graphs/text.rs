//! CLIP text towers: the layout of transformers' `CLIPTextModel` (SD 1.x, SDXL's first) and of
//! open_clip (SD 2.x, SDXL's second). One graph gives every layer's hidden state, raw and after the
//! final layer norm, and takes replacements for token embeddings (textual inversion).

use std::collections::HashMap;

use super::builder::{Attribute, Dim, GraphBuilder, JoinedLinear, Value};
use super::proto::data_type;
use super::{BuildError, BuildOptions, BuiltGraph, Storage, Weights};

/// Whose names the tensors have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TextTower {
    /// `embeddings.…`, `encoder.layers.…`, `final_layer_norm`; quick GELU.
    Transformers,
    /// `token_embedding`, `transformer.resblocks.…`, `ln_final`; exact GELU.
    OpenClip,
}

/// What the tensors do not tell.
#[derive(Debug, Clone, Copy)]
pub struct TextTowerShape {
    pub tower: TextTower,
    pub heads: usize,
    /// `x * sigmoid(1.702 x)` instead of the exact GELU.
    pub quick_gelu: bool,
    /// Layers at the end to leave out, as diffusers leaves out SD 2.x's last one.
    pub drop_layers: usize,
    /// Give `text_embeds`, the projected end token, instead of `pooler_output`.
    pub projection: bool,
}

/// Input `input_ids [b, n]` (n up to the length of the position table), optional
/// `token_embedding_keep [b, n, 1]` and `token_embedding_override [b, n, width]`: the embedding is
/// `keep * table[id] + override`. Outputs, for L layers: `last_hidden_state [b, n, width]` (after
/// the final layer norm), `pooler_output [b, width]` or `text_embeds [b, projection]`,
/// `hidden_states [L + 1, b, n, width]` (raw; 0 is the embedding) and `clip_skip_states
/// [L + 1, b, n, width]`, where index k is the final layer norm of `hidden_states[L + 1 - k]`
/// (A1111's clip skip k; index 0 repeats 1).
///
/// # Errors
/// When the tensors do not form a tower that the builder knows.
pub fn text_encoder(
    weights: &Weights,
    shape: TextTowerShape,
    options: BuildOptions,
) -> Result<BuiltGraph, BuildError> {
    let mut g = GraphBuilder::new("text_encoder", weights, options);
    let names = Names::of(shape.tower);
    let width = weights.dim(names.token_embedding, 1)?;
    let (batch, length) = (Dim::Free("batch_size"), Dim::Free("sequence_length"));
    let ids = g.input("input_ids", data_type::INT64, &[batch, length]);

    let layer_count = (0..256)
        .take_while(|n| weights.has_any(&format!("{}.{n}.", names.layers)))
        .count()
        .saturating_sub(shape.drop_layers);
    let tokens = embed(&mut g, &ids, &names, width, options.storage)?;
    let sequence = g.dims_of(&ids, 1, 2);
    let mask = causal_mask(&mut g, weights.dim(names.position_embedding, 0)?, &sequence);
    let tower = Tower {
        batch: g.dims_of(&ids, 0, 1),
        mask,
        width,
        shape,
    };
    let mut rows = g.reshape_to(&tokens, &[-1, width as i64]);
    let mut states = vec![rows.clone()];
    for n in 0..layer_count {
        rows = tower.layer(&mut g, &rows, &format!("{}.{n}", names.layers))?;
        states.push(rows.clone());
    }
    tower.outputs(&mut g, &ids, &states, &names)?;
    Ok(g.finish())
}

struct Names {
    token_embedding: &'static str,
    position_embedding: &'static str,
    layers: &'static str,
    final_norm: &'static str,
}

impl Names {
    fn of(tower: TextTower) -> Self {
        match tower {
            TextTower::Transformers => Self {
                token_embedding: "embeddings.token_embedding.weight",
                position_embedding: "embeddings.position_embedding.weight",
                layers: "encoder.layers",
                final_norm: "final_layer_norm",
            },
            TextTower::OpenClip => Self {
                token_embedding: "token_embedding.weight",
                position_embedding: "positional_embedding",
                layers: "transformer.resblocks",
                final_norm: "ln_final",
            },
        }
    }
}

/// Token embeddings, replaced where asked for, plus position embeddings: `[b, n, width]`.
fn embed(
    g: &mut GraphBuilder<'_>,
    ids: &Value,
    names: &Names,
    width: usize,
    storage: Storage,
) -> Result<Value, BuildError> {
    let weights = g.weights();
    let vocabulary = weights.dim(names.token_embedding, 0)?;
    // Rows are gathered in the stored type, so that the table is not kept twice.
    let tokens = match storage {
        Storage::External => {
            let table = g.resident_weight(names.token_embedding, &[vocabulary, width])?;
            let tokens = g.node("Gather", &[&table, ids], &[]);
            g.cast_float(&tokens)
        }
        Storage::InlineHalf => gather_compact(g, ids, names.token_embedding, width)?,
    };
    let free = |name| Dim::Free(name);
    let keep = g.optional_input(
        "token_embedding_keep",
        &[free("keep_batch"), free("keep_length"), Dim::Fixed(1)],
        &[1.0],
        &[1, 1, 1],
    );
    let zeros = vec![0.0; width];
    let replaced = g.optional_input(
        "token_embedding_override",
        &[
            free("override_batch"),
            free("override_length"),
            Dim::Fixed(width),
        ],
        &zeros,
        &[1, 1, width],
    );
    let tokens = g.mul(&tokens, &keep);
    let tokens = g.add(&tokens, &replaced);
    let positions = weights.dim(names.position_embedding, 0)?;
    let table = g.weight(names.position_embedding, &[positions, width])?;
    let length = g.dims_of(ids, 1, 2);
    let (start, axis) = (g.ints(&[0]), g.ints(&[0]));
    let table = g.node("Slice", &[&table, &start, &length, &axis], &[]);
    Ok(g.add(&tokens, &table))
}

/// A table in the model itself. Where at least half of the rows repeat others (small models leave
/// most of the vocabulary untrained), distinct rows and an index are written instead.
fn gather_compact(
    g: &mut GraphBuilder<'_>,
    ids: &Value,
    name: &str,
    width: usize,
) -> Result<Value, BuildError> {
    let values = g.weights().read_f32(name)?;
    let mut distinct: Vec<f32> = Vec::new();
    let mut seen: HashMap<Vec<u32>, i32> = HashMap::new();
    let mut index = Vec::with_capacity(values.len() / width.max(1));
    for row in values.chunks(width.max(1)) {
        let bits = row.iter().map(|value| value.to_bits()).collect();
        let next = seen.len() as i32;
        let at = *seen.entry(bits).or_insert_with(|| {
            distinct.extend_from_slice(row);
            next
        });
        index.push(at);
    }
    let tokens = if seen.len() * 2 <= index.len() {
        let remap = g.short_ints("token_rows", &index, &[index.len()]);
        let rows = g.node("Gather", &[&remap, ids], &[]);
        let table = g.halves(name, &distinct, &[seen.len(), width]);
        g.node("Gather", &[&table, &rows], &[])
    } else {
        let table = g.halves(name, &values, &[index.len(), width]);
        g.node("Gather", &[&table, ids], &[])
    };
    Ok(g.cast_float(&tokens))
}

/// `[1, 1, n, n]`: 0 on and below the diagonal, the lowest float above it.
fn causal_mask(g: &mut GraphBuilder<'_>, positions: usize, sequence: &Value) -> Value {
    let mut mask = vec![0.0_f32; positions * positions];
    for row in 0..positions {
        mask[row * positions + row + 1..(row + 1) * positions].fill(f32::MIN);
    }
    let mask = g.floats("causal_mask", &mask, &[1, 1, positions, positions]);
    let ends = g.concat(&[sequence, sequence], 0);
    let (start, axes) = (g.ints(&[0, 0]), g.ints(&[2, 3]));
    g.node("Slice", &[&mask, &start, &ends, &axes], &[])
}

struct Tower {
    batch: Value,
    mask: Value,
    width: usize,
    shape: TextTowerShape,
}

impl Tower {
    /// One pre-norm transformer layer on `[b * n, width]`.
    fn layer(&self, g: &mut GraphBuilder<'_>, x: &Value, layer: &str) -> Result<Value, BuildError> {
        let [norm1, norm2, fc1, fc2, out] = match self.shape.tower {
            TextTower::Transformers => [
                "layer_norm1",
                "layer_norm2",
                "mlp.fc1",
                "mlp.fc2",
                "self_attn.out_proj",
            ],
            TextTower::OpenClip => ["ln_1", "ln_2", "mlp.c_fc", "mlp.c_proj", "attn.out_proj"],
        }
        .map(|name| format!("{layer}.{name}"));
        let h = g.layer_norm(x, &norm1)?;
        let [q, k, v] = self.projections(g, &h, layer)?;
        let [q, k, v] = [q, k, v].map(|rows| g.tokens_of(&rows, &self.batch, self.width));
        let h = g.float_attention(&q, &k, &v, self.shape.heads, Some(&self.mask));
        let rows = g.reshape_to(&h, &[-1, self.width as i64]);
        let h = g.linear(&rows, &out)?;
        let x = g.add(x, &h);
        let h = g.layer_norm(&x, &norm2)?;
        let h = g.linear(&h, &fc1)?;
        let h = if self.shape.quick_gelu {
            g.quick_gelu(&h, 1.702)
        } else {
            g.gelu(&h)
        };
        let h = g.linear(&h, &fc2)?;
        Ok(g.add(&x, &h))
    }

    fn projections(
        &self,
        g: &mut GraphBuilder<'_>,
        x: &Value,
        layer: &str,
    ) -> Result<[Value; 3], BuildError> {
        match self.shape.tower {
            TextTower::Transformers => Ok([
                g.linear(x, &format!("{layer}.self_attn.q_proj"))?,
                g.linear(x, &format!("{layer}.self_attn.k_proj"))?,
                g.linear(x, &format!("{layer}.self_attn.v_proj"))?,
            ]),
            TextTower::OpenClip => {
                let joined = JoinedLinear {
                    weight: &format!("{layer}.attn.in_proj_weight"),
                    bias: &format!("{layer}.attn.in_proj_bias"),
                    layer: &format!("{layer}.attn.in_proj"),
                };
                let width = self.width;
                Ok([
                    g.linear_rows(x, &joined, "q", 0, width)?,
                    g.linear_rows(x, &joined, "k", width, width)?,
                    g.linear_rows(x, &joined, "v", 2 * width, width)?,
                ])
            }
        }
    }

    fn outputs(
        &self,
        g: &mut GraphBuilder<'_>,
        ids: &Value,
        states: &[Value],
        names: &Names,
    ) -> Result<(), BuildError> {
        let width = Dim::Fixed(self.width);
        let (batch, length) = (Dim::Free("batch_size"), Dim::Free("sequence_length"));
        let raw: Vec<Value> = states
            .iter()
            .map(|rows| g.tokens_of(rows, &self.batch, self.width))
            .collect();
        let mut normal = Vec::with_capacity(raw.len());
        for state in raw.iter().skip(1) {
            normal.push(g.layer_norm(state, names.final_norm)?);
        }
        let Some(last) = normal.last().cloned() else {
            return Err(BuildError::Unsupported {
                part: "text encoder",
                reason: "it has no layers".to_owned(),
            });
        };
        g.output(&last, "last_hidden_state", &[batch, length, width]);
        self.pooled(g, ids, &last)?;
        let count = Dim::Fixed(raw.len());
        let stacked = stack(g, raw.iter());
        g.output(&stacked, "hidden_states", &[count, batch, length, width]);
        let skips = stack(g, std::iter::once(&last).chain(normal.iter().rev()));
        g.output(&skips, "clip_skip_states", &[count, batch, length, width]);
        Ok(())
    }

    /// The state at the first end token, which has the highest id of the vocabulary.
    fn pooled(
        &self,
        g: &mut GraphBuilder<'_>,
        ids: &Value,
        last: &Value,
    ) -> Result<(), BuildError> {
        let end = g.node(
            "ArgMax",
            &[ids],
            &[("axis", Attribute::Int(1)), ("keepdims", Attribute::Int(1))],
        );
        let pooled = g.node(
            "GatherND",
            &[last, &end],
            &[("batch_dims", Attribute::Int(1))],
        );
        let batch = Dim::Free("batch_size");
        if !self.shape.projection {
            g.output(&pooled, "pooler_output", &[batch, Dim::Fixed(self.width)]);
            return Ok(());
        }
        let weights = g.weights();
        // open_clip multiplies by the matrix as it stands; transformers has a linear layer.
        let (embeds, out) = if weights.has("text_projection") {
            let out = weights.dim("text_projection", 1)?;
            let matrix = g.weight("text_projection", &[self.width, out])?;
            (g.node("MatMul", &[&pooled, &matrix], &[]), out)
        } else {
            let out = weights.dim("text_projection.weight", 0)?;
            (g.linear(&pooled, "text_projection")?, out)
        };
        g.output(&embeds, "text_embeds", &[batch, Dim::Fixed(out)]);
        Ok(())
    }
}

fn stack<'v>(g: &mut GraphBuilder<'_>, values: impl Iterator<Item = &'v Value>) -> Value {
    let axis = g.ints(&[0]);
    let parts: Vec<Value> = values
        .map(|value| g.node("Unsqueeze", &[value, &axis], &[]))
        .collect();
    let parts: Vec<&Value> = parts.iter().collect();
    g.concat(&parts, 0)
}
