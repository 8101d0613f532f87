//! From prompts to the tensors that guide a denoiser.

use std::collections::HashMap;
use std::sync::Arc;

use ndarray::{Array1, Array2, Array3, ArrayView2, Axis, concatenate, s};

use crate::prompt::{EmphasisError, PassSteps, expand_schedule, split_composition};

use super::cache::ConditioningCache;
use super::chunks::{Chunk, Chunks, split_chunks};
use super::embeddings::{Embedding, EmbeddingIndex, EmbeddingSource};
use super::emphasis_modes::{ChunkBatch, Emphasis};
use super::size_embedding::push_sinusoidal;
use super::tokenizer::Tokenizer;
use super::{Cause, EmbeddingOverride, HiddenState, TextEncoder, TokenBatch};

/// The checkpoint families that differ in conditioning.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Family {
    Sd1,
    Sd2,
    Sdxl,
    SdxlRefiner,
}

impl Family {
    /// The tokenizer of every text tower, in the checkpoint's order.
    #[must_use]
    pub fn tokenizers(self) -> &'static [Tokenizer] {
        match self {
            Self::Sd1 => &[Tokenizer::ClipL],
            Self::Sd2 | Self::SdxlRefiner => &[Tokenizer::OpenClip],
            Self::Sdxl => &[Tokenizer::ClipL, Tokenizer::OpenClip],
        }
    }
}

/// The options that change conditioning.
#[derive(Debug, Clone, PartialEq)]
pub struct ConditioningSettings {
    pub emphasis: Emphasis,
    /// `comma_padding_backtrack`
    pub comma_backtrack: usize,
    /// `CLIP_stop_at_last_layers`, from 1; SD 1.x only, and SDXL's first tower with `sdxl_clip_l_skip`.
    pub clip_skip: usize,
    pub sdxl_clip_l_skip: bool,
    /// `(sdxl_crop_top, sdxl_crop_left)` in pixels.
    pub crop_px: (i64, i64),
    /// `sdxl_refiner_high_aesthetic_score`, for positive prompts.
    pub high_aesthetic_score: f64,
    /// `sdxl_refiner_low_aesthetic_score`, for negative prompts.
    pub low_aesthetic_score: f64,
    /// Values of SDXL's embedding of one number: 256 in every published checkpoint.
    pub size_embedding_width: usize,
}

impl Default for ConditioningSettings {
    fn default() -> Self {
        Self {
            emphasis: Emphasis::Original,
            comma_backtrack: 20,
            clip_skip: 1,
            sdxl_clip_l_skip: false,
            crop_px: (0, 0),
            high_aesthetic_score: 6.0,
            low_aesthetic_score: 2.5,
            size_embedding_width: 256,
        }
    }
}

/// The picture's size that SDXL is told, in pixels: the request's, in the hires pass its target.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct PictureSize {
    pub width_px: usize,
    pub height_px: usize,
}

/// What one text becomes.
#[derive(Debug, Clone, PartialEq)]
pub struct Conditioning {
    /// `[77 · chunks, width]`: cross-attention context.
    pub context: Array2<f32>,
    /// SDXL's pooled text and size embedding.
    pub vector: Option<Array1<f32>>,
}

/// A text's conditioning, and how long it is in force.
#[derive(Debug, Clone, PartialEq)]
pub struct ScheduledConditioning {
    /// The last denoiser call, counted from 0, at which it is.
    pub end_at_step: usize,
    pub conditioning: Arc<Conditioning>,
}

/// One side of an `AND`.
#[derive(Debug, Clone, PartialEq)]
pub struct AndPart {
    pub weight: f64,
    /// In rising order of `end_at_step`; at least one.
    pub schedule: Vec<ScheduledConditioning>,
}

/// Why prompts cannot be encoded.
#[derive(Debug, thiserror::Error)]
pub enum ConditioningError {
    #[error(transparent)]
    Emphasis(#[from] EmphasisError),
    #[error("a {family:?} checkpoint needs {wanted} text encoders and has {found}")]
    TowerCount {
        family: Family,
        wanted: usize,
        found: usize,
    },
    #[error("the embedding {name} does not fit text encoder {tower}, whose width is {width}")]
    EmbeddingWidth {
        name: String,
        tower: usize,
        width: usize,
    },
    #[error("text encoder {tower} gives no pooled text, which SDXL needs")]
    NoPooledText { tower: usize },
    #[error("text encoder {tower} failed: {source}")]
    Encoder {
        tower: usize,
        #[source]
        source: Cause,
    },
}

/// Encodes the prompts of one job with one checkpoint.
pub struct Conditioner<'a> {
    family: Family,
    towers: Vec<Tower>,
    settings: ConditioningSettings,
    cache: Option<(&'a ConditioningCache, String)>,
    used_embeddings: parking_lot::Mutex<Vec<Arc<Embedding>>>,
}

struct Tower {
    tokenizer: Tokenizer,
    encoder: Arc<dyn TextEncoder>,
    embeddings: EmbeddingIndex,
}

/// What makes two encodings equal.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct EncodingKey {
    scope: String,
    texts: Vec<String>,
    settings: ConditioningSettings,
    size: Option<PictureSize>,
    side: Side,
}

impl EncodingKey {
    pub(super) fn size_bytes(&self) -> usize {
        let texts = self.texts.iter().map(String::len).sum::<usize>();
        size_of::<Self>() + self.scope.len() + texts
    }
}

/// The texts of one schedule, encoded as one batch.
#[derive(Debug)]
pub(super) struct Encoded {
    texts: Vec<Arc<Conditioning>>,
    used_embeddings: Vec<Arc<Embedding>>,
}

impl Encoded {
    pub(super) fn size_bytes(&self) -> usize {
        self.texts
            .iter()
            .map(|text| {
                let values = text.context.len() + text.vector.as_ref().map_or(0, Array1::len);
                values * size_of::<f32>()
            })
            .sum()
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Side {
    Positive,
    Negative,
}

impl<'a> Conditioner<'a> {
    /// A conditioner for a checkpoint with these text towers. `embeddings` are the checkpoint's
    /// textual inversions.
    ///
    /// # Errors
    /// When `encoders` are not as many as the family has towers.
    #[expect(
        clippy::needless_pass_by_value,
        reason = "every tower keeps the source; a caller gives its own away"
    )]
    pub fn new(
        family: Family,
        encoders: &[Arc<dyn TextEncoder>],
        settings: ConditioningSettings,
        embeddings: Option<Arc<dyn EmbeddingSource>>,
    ) -> Result<Self, ConditioningError> {
        let tokenizers = family.tokenizers();
        if tokenizers.len() != encoders.len() {
            return Err(ConditioningError::TowerCount {
                family,
                wanted: tokenizers.len(),
                found: encoders.len(),
            });
        }
        let towers = tokenizers
            .iter()
            .zip(encoders)
            .map(|(&tokenizer, encoder)| Tower {
                tokenizer,
                encoder: Arc::clone(encoder),
                embeddings: embeddings
                    .as_ref()
                    .map_or_else(EmbeddingIndex::default, |source| {
                        EmbeddingIndex::new(Arc::clone(source), tokenizer)
                    }),
            })
            .collect();
        Ok(Self {
            family,
            towers,
            settings,
            cache: None,
            used_embeddings: parking_lot::Mutex::default(),
        })
    }

    /// Looks encodings up in `cache` first. `scope` names all that changes a tower's output besides
    /// the text and the settings: checkpoint, networks with their multipliers, embeddings.
    #[must_use]
    pub fn with_cache(mut self, cache: &'a ConditioningCache, scope: String) -> Self {
        self.cache = Some((cache, scope));
        self
    }

    /// The conditioning of positive prompts, one entry a picture: split at `AND`, each part with its
    /// schedule.
    ///
    /// # Errors
    /// When a prompt's emphasis cannot be read or a tower fails.
    pub fn positive(
        &self,
        prompts: &[String],
        steps: PassSteps,
        size: PictureSize,
    ) -> Result<Vec<Vec<AndPart>>, ConditioningError> {
        let mut known: HashMap<String, Vec<ScheduledConditioning>> = HashMap::new();
        let mut pictures = Vec::with_capacity(prompts.len());
        for prompt in prompts {
            let mut parts = Vec::new();
            for part in split_composition(prompt) {
                let schedule = if let Some(schedule) = known.get(&part.text) {
                    schedule.clone()
                } else {
                    let schedule = self.schedule(&part.text, steps, size, Side::Positive)?;
                    known.insert(part.text, schedule.clone());
                    schedule
                };
                parts.push(AndPart {
                    weight: part.weight,
                    schedule,
                });
            }
            pictures.push(parts);
        }
        Ok(pictures)
    }

    /// The conditioning of negative prompts, one schedule a picture. They are never split at `AND`.
    ///
    /// # Errors
    /// When a prompt's emphasis cannot be read or a tower fails.
    pub fn negative(
        &self,
        prompts: &[String],
        steps: PassSteps,
        size: PictureSize,
    ) -> Result<Vec<Vec<ScheduledConditioning>>, ConditioningError> {
        let mut known: HashMap<&String, Vec<ScheduledConditioning>> = HashMap::new();
        let mut pictures = Vec::with_capacity(prompts.len());
        for prompt in prompts {
            let schedule = if let Some(schedule) = known.get(prompt) {
                schedule.clone()
            } else {
                let schedule = self.schedule(prompt, steps, size, Side::Negative)?;
                known.insert(prompt, schedule.clone());
                schedule
            };
            pictures.push(schedule);
        }
        Ok(pictures)
    }

    /// The empty prompt's context, with which `pad_cond_uncond` lengthens the shorter side.
    ///
    /// # Errors
    /// When a tower fails.
    pub fn empty_context(&self, size: PictureSize) -> Result<Array2<f32>, ConditioningError> {
        let encoded = self.encode(&[String::new()], size, Side::Positive)?;
        Ok(encoded.texts[0].context.clone())
    }

    /// The textual inversions that the prompts encoded so far used, each once, in order of use.
    #[must_use]
    pub fn used_embeddings(&self) -> Vec<Arc<Embedding>> {
        self.used_embeddings.lock().clone()
    }

    /// `text` in chunks, as the first tower sees it.
    ///
    /// # Errors
    /// When the text's emphasis cannot be read.
    pub fn chunks(&self, text: &str) -> Result<Chunks, ConditioningError> {
        self.tower_chunks(&self.towers[0], text)
    }

    fn tower_chunks(&self, tower: &Tower, text: &str) -> Result<Chunks, ConditioningError> {
        Ok(split_chunks(
            text,
            tower.tokenizer,
            self.settings.emphasis,
            self.settings.comma_backtrack,
            &tower.embeddings,
        )?)
    }

    fn schedule(
        &self,
        prompt: &str,
        steps: PassSteps,
        size: PictureSize,
        side: Side,
    ) -> Result<Vec<ScheduledConditioning>, ConditioningError> {
        let (ends, texts): (Vec<usize>, Vec<String>) = expand_schedule(prompt, steps)
            .into_iter()
            .map(|entry| (entry.end_at_step, entry.text))
            .unzip();
        let encoded = self.encode(&texts, size, side)?;
        Ok(ends
            .into_iter()
            .zip(&encoded.texts)
            .map(|(end_at_step, conditioning)| ScheduledConditioning {
                end_at_step,
                conditioning: Arc::clone(conditioning),
            })
            .collect())
    }

    fn encode(
        &self,
        texts: &[String],
        size: PictureSize,
        side: Side,
    ) -> Result<Arc<Encoded>, ConditioningError> {
        let encoded = if let Some((cache, scope)) = &self.cache {
            let key = EncodingKey {
                scope: scope.clone(),
                texts: texts.to_vec(),
                settings: self.settings.clone(),
                size: matches!(self.family, Family::Sdxl | Family::SdxlRefiner).then_some(size),
                side,
            };
            if let Some(encoded) = cache.get(&key) {
                encoded
            } else {
                let encoded = Arc::new(self.encode_batch(texts, size, side)?);
                cache.insert(key, Arc::clone(&encoded));
                encoded
            }
        } else {
            Arc::new(self.encode_batch(texts, size, side)?)
        };
        let mut used = self.used_embeddings.lock();
        for embedding in &encoded.used_embeddings {
            if !used.iter().any(|known| known.name == embedding.name) {
                used.push(Arc::clone(embedding));
            }
        }
        Ok(encoded)
    }

    fn encode_batch(
        &self,
        texts: &[String],
        size: PictureSize,
        side: Side,
    ) -> Result<Encoded, ConditioningError> {
        let batch = Batch::new(texts);
        let mut used_embeddings = Vec::new();
        let mut split = Vec::with_capacity(self.towers.len());
        for tower in &self.towers {
            let mut of_tower = Vec::with_capacity(batch.texts.len());
            for text in &batch.texts {
                of_tower.push(self.tower_chunks(tower, text)?.chunks);
            }
            split.push(of_tower);
        }
        // Entities that only one of two tokenizers unescapes can make the towers disagree in length.
        let chunk_count = split.iter().flatten().map(Vec::len).max().unwrap_or(1);
        let mut contexts: Vec<Vec<Array2<f32>>> = Vec::new();
        let mut pooled = None;
        for (index, chunks) in split.iter_mut().enumerate() {
            for text in chunks.iter_mut() {
                used_embeddings.extend(
                    text.iter()
                        .flat_map(|chunk| &chunk.fixes)
                        .map(|fix| Arc::clone(&fix.embedding)),
                );
                text.resize_with(chunk_count, Chunk::empty);
            }
            let states = self.encode_tower(index, chunks, &batch.index_of)?;
            contexts.push(states.contexts);
            pooled = states.pooled;
        }
        let zeroed = side == Side::Negative
            && matches!(self.family, Family::Sdxl | Family::SdxlRefiner)
            && texts.iter().all(String::is_empty);
        let mut conditionings = Vec::with_capacity(batch.texts.len());
        for text in 0..batch.texts.len() {
            let views: Vec<ArrayView2<'_, f32>> =
                contexts.iter().map(|tower| tower[text].view()).collect();
            let mut context =
                concatenate(Axis(1), &views).expect("the towers' contexts are equally long");
            let mut text_vector = self.pooled_row(pooled.as_ref(), text)?;
            if zeroed {
                context.fill(0.0);
                if let Some(vector) = &mut text_vector {
                    vector.fill(0.0);
                }
            }
            conditionings.push(Arc::new(Conditioning {
                context,
                vector: text_vector.map(|pooled| self.vector(pooled, size, side)),
            }));
        }
        Ok(Encoded {
            texts: batch
                .index_of
                .iter()
                .map(|&index| Arc::clone(&conditionings[index]))
                .collect(),
            used_embeddings,
        })
    }

    /// Which hidden state of a tower is the conditioning.
    fn hidden_state(&self, tower: usize) -> HiddenState {
        let clip_skip = self.settings.clip_skip.max(1);
        match (self.family, tower) {
            (Family::Sd1, _) => HiddenState::Normalised {
                from_end: clip_skip,
            },
            (Family::Sd2, _) => HiddenState::Normalised { from_end: 2 },
            (Family::Sdxl, 0) if self.settings.sdxl_clip_l_skip => HiddenState::Raw {
                from_end: clip_skip,
            },
            (Family::Sdxl | Family::SdxlRefiner, _) => HiddenState::Raw { from_end: 2 },
        }
    }

    fn encode_tower(
        &self,
        index: usize,
        texts: &[Vec<Chunk>],
        order: &[usize],
    ) -> Result<TowerStates, ConditioningError> {
        let tower = &self.towers[index];
        let rows = Rows::new(index, tower, texts)?;
        let encoded = tower
            .encoder
            .encode(&rows.batch, self.hidden_state(index))
            .map_err(|source| ConditioningError::Encoder {
                tower: index,
                source,
            })?;
        let mut states: Vec<Array3<f32>> = rows
            .of_text
            .iter()
            .map(|rows| encoded.hidden.select(Axis(0), rows))
            .collect();
        for chunk in 0..texts[0].len() {
            ChunkBatch {
                states: states
                    .iter_mut()
                    .map(|states| states.slice_mut(s![chunk, .., ..]))
                    .collect(),
                multipliers: texts
                    .iter()
                    .map(|chunks| chunks[chunk].multipliers.as_slice())
                    .collect(),
                order,
            }
            .apply(self.settings.emphasis);
        }
        let contexts = states
            .into_iter()
            .map(|states| {
                let (chunks, tokens, width) = states.dim();
                states
                    .into_shape_with_order((chunks * tokens, width))
                    .expect("chunks are joined along the tokens")
            })
            .collect();
        let first_rows: Vec<usize> = rows.of_text.iter().map(|rows| rows[0]).collect();
        Ok(TowerStates {
            contexts,
            pooled: encoded
                .pooled
                .map(|pooled| pooled.select(Axis(0), &first_rows)),
        })
    }

    /// The pooled text of the last tower, where the family takes one.
    fn pooled_row(
        &self,
        pooled: Option<&Array2<f32>>,
        text: usize,
    ) -> Result<Option<Vec<f32>>, ConditioningError> {
        match (self.family, pooled) {
            (Family::Sd1 | Family::Sd2, _) => Ok(None),
            (Family::Sdxl | Family::SdxlRefiner, Some(pooled)) => {
                Ok(Some(pooled.row(text).to_vec()))
            }
            (Family::Sdxl | Family::SdxlRefiner, None) => Err(ConditioningError::NoPooledText {
                tower: self.towers.len() - 1,
            }),
        }
    }

    /// Appends the embeddings of sizes (and the refiner's aesthetic score) to the pooled text.
    fn vector(&self, mut pooled: Vec<f32>, size: PictureSize, side: Side) -> Array1<f32> {
        let (height, width) = (size.height_px as f32, size.width_px as f32);
        let (top, left) = (
            self.settings.crop_px.0 as f32,
            self.settings.crop_px.1 as f32,
        );
        let mut numbers = vec![height, width, top, left];
        if self.family == Family::SdxlRefiner {
            numbers.push(match side {
                Side::Positive => self.settings.high_aesthetic_score as f32,
                Side::Negative => self.settings.low_aesthetic_score as f32,
            });
        } else {
            numbers.extend([height, width]);
        }
        for number in numbers {
            push_sinusoidal(number, self.settings.size_embedding_width, &mut pooled);
        }
        Array1::from_vec(pooled)
    }
}

/// The different texts of a schedule; alternation repeats the same few over all steps.
struct Batch {
    texts: Vec<String>,
    /// The index in `texts` of every entry of the schedule.
    index_of: Vec<usize>,
}

impl Batch {
    fn new(entries: &[String]) -> Self {
        let mut batch = Self {
            texts: Vec::new(),
            index_of: Vec::with_capacity(entries.len()),
        };
        let mut index_of_text: HashMap<&str, usize> = HashMap::new();
        for entry in entries {
            let index = *index_of_text.entry(entry).or_insert_with(|| {
                batch.texts.push(entry.clone());
                batch.texts.len() - 1
            });
            batch.index_of.push(index);
        }
        batch
    }
}

struct TowerStates {
    /// `[77 · chunks, width]` a text.
    contexts: Vec<Array2<f32>>,
    /// `[texts, projection]`, of every text's first chunk.
    pooled: Option<Array2<f32>>,
}

/// A chunk's tokens, and where which embeddings take their place.
type ChunkKey = (Vec<u32>, Vec<(usize, String)>);

/// The chunks of all texts as rows of one encoder call; equal chunks share a row.
struct Rows {
    batch: TokenBatch,
    /// For every text the rows of its chunks.
    of_text: Vec<Vec<usize>>,
}

impl Rows {
    fn new(
        tower_index: usize,
        tower: &Tower,
        texts: &[Vec<Chunk>],
    ) -> Result<Self, ConditioningError> {
        let mut ids: Vec<i64> = Vec::new();
        let mut overrides = Vec::new();
        let mut known: HashMap<ChunkKey, usize> = HashMap::new();
        let mut of_text = Vec::with_capacity(texts.len());
        for chunks in texts {
            let mut rows = Vec::with_capacity(chunks.len());
            for chunk in chunks {
                let fixes = chunk
                    .fixes
                    .iter()
                    .map(|fix| (fix.offset, fix.embedding.name.clone()))
                    .collect();
                let key = (chunk.tokens.clone(), fixes);
                let row = if let Some(&row) = known.get(&key) {
                    row
                } else {
                    let row = known.len();
                    known.insert(key, row);
                    let mut tokens = chunk.tokens.clone();
                    tower.tokenizer.pad(&mut tokens);
                    ids.extend(tokens.into_iter().map(i64::from));
                    push_overrides(&mut overrides, row, chunk, tower_index, tower)?;
                    row
                };
                rows.push(row);
            }
            of_text.push(rows);
        }
        let ids = Array2::from_shape_vec((known.len(), ids.len() / known.len()), ids)
            .expect("every chunk has equally many tokens");
        Ok(Self {
            batch: TokenBatch { ids, overrides },
            of_text,
        })
    }
}

fn push_overrides(
    overrides: &mut Vec<EmbeddingOverride>,
    row: usize,
    chunk: &Chunk,
    tower_index: usize,
    tower: &Tower,
) -> Result<(), ConditioningError> {
    let width = tower.encoder.width();
    for fix in &chunk.fixes {
        let vectors = fix
            .embedding
            .vectors
            .get(tower_index)
            .filter(|vectors| vectors.ncols() == width)
            .ok_or_else(|| ConditioningError::EmbeddingWidth {
                name: fix.embedding.name.clone(),
                tower: tower_index,
                width,
            })?;
        let first = fix.offset + 1;
        for (position, vector) in (first..chunk.tokens.len()).zip(vectors.rows()) {
            overrides.push(EmbeddingOverride {
                row,
                position,
                vector: vector.to_owned(),
            });
        }
    }
    Ok(())
}
