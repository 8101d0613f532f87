//! A prompt's tokens in chunks of 75, each wrapped in a start and an end token.

use std::sync::Arc;

use crate::prompt::{EmphasisError, Segment, parse_emphasis};

use super::Emphasis;
use super::embeddings::{Embedding, EmbeddingIndex};
use super::tokenizer::{COMMA_TOKEN, END_TOKEN, START_TOKEN, Tokenizer};

/// Tokens of a chunk without its start and end.
pub const CHUNK_LENGTH: usize = 75;

/// A textual inversion within a chunk.
#[derive(Debug, Clone)]
pub struct Fix {
    /// Position of the first vector, not counting the start token.
    pub offset: usize,
    pub embedding: Arc<Embedding>,
}

/// 77 tokens and what they weigh.
#[derive(Debug, Clone)]
pub struct Chunk {
    /// Start token, 75 tokens, end token; padded with the end token, before any tower rewrites it.
    pub tokens: Vec<u32>,
    pub multipliers: Vec<f64>,
    pub fixes: Vec<Fix>,
}

impl Chunk {
    /// A chunk without text.
    #[must_use]
    pub fn empty() -> Self {
        Draft::default().close()
    }
}

/// A prompt in chunks.
#[derive(Debug, Clone)]
pub struct Chunks {
    /// At least one.
    pub chunks: Vec<Chunk>,
    /// A1111's token count: padding counts in every chunk but the last.
    pub token_count: usize,
}

impl Chunks {
    /// What A1111 shows as the limit beside the token count.
    #[must_use]
    pub fn target_length(&self) -> usize {
        self.token_count.max(1).div_ceil(CHUNK_LENGTH) * CHUNK_LENGTH
    }
}

/// Splits `text` as one tower sees it. `comma_backtrack` (`comma_padding_backtrack`) is how far back
/// a comma may be for the words after it to move to the next chunk together; 0 turns that off.
///
/// # Errors
/// When the text's emphasis cannot be read.
pub fn split_chunks(
    text: &str,
    tokenizer: Tokenizer,
    emphasis: Emphasis,
    comma_backtrack: usize,
    embeddings: &EmbeddingIndex,
) -> Result<Chunks, EmphasisError> {
    let segments = if emphasis == Emphasis::None {
        vec![Segment {
            text: text.to_owned(),
            weight: 1.0,
        }]
    } else {
        parse_emphasis(text)?
    };
    let mut splitter = Splitter {
        comma_backtrack,
        draft: Draft::default(),
        chunks: Vec::new(),
        token_count: 0,
    };
    for segment in &segments {
        if segment.is_break() {
            splitter.close(false);
        } else {
            splitter.take_segment(&tokenizer.tokens(&segment.text), segment.weight, embeddings);
        }
    }
    if !splitter.draft.tokens.is_empty() || splitter.chunks.is_empty() {
        splitter.close(true);
    }
    Ok(Chunks {
        chunks: splitter.chunks,
        token_count: splitter.token_count,
    })
}

#[derive(Default)]
struct Draft {
    tokens: Vec<u32>,
    multipliers: Vec<f64>,
    fixes: Vec<Fix>,
    last_comma: Option<usize>,
}

impl Draft {
    fn close(mut self) -> Chunk {
        self.tokens.resize(CHUNK_LENGTH, END_TOKEN);
        self.multipliers.resize(CHUNK_LENGTH, 1.0);
        self.tokens.insert(0, START_TOKEN);
        self.tokens.push(END_TOKEN);
        self.multipliers.insert(0, 1.0);
        self.multipliers.push(1.0);
        Chunk {
            tokens: self.tokens,
            multipliers: self.multipliers,
            fixes: self.fixes,
        }
    }
}

struct Splitter {
    comma_backtrack: usize,
    draft: Draft,
    chunks: Vec<Chunk>,
    token_count: usize,
}

impl Splitter {
    fn take_segment(&mut self, tokens: &[u32], weight: f64, embeddings: &EmbeddingIndex) {
        let mut position = 0;
        while let Some(&token) = tokens.get(position) {
            if token == COMMA_TOKEN {
                self.draft.last_comma = Some(self.draft.tokens.len());
            } else {
                self.backtrack_to_comma();
            }
            if self.draft.tokens.len() == CHUNK_LENGTH {
                self.close(false);
            }
            if let Some((embedding, name_length)) = embeddings.find(&tokens[position..]) {
                self.take_embedding(embedding, weight);
                position += name_length;
            } else {
                self.draft.tokens.push(token);
                self.draft.multipliers.push(weight);
                position += 1;
            }
        }
    }

    /// In a full chunk, moves what follows a near comma to the next chunk. Embeddings recorded there
    /// stay behind, as in the original.
    fn backtrack_to_comma(&mut self) {
        let length = self.draft.tokens.len();
        let Some(comma) = self.draft.last_comma else {
            return;
        };
        if length != CHUNK_LENGTH || length - comma > self.comma_backtrack {
            return;
        }
        let tokens = self.draft.tokens.split_off(comma + 1);
        let multipliers = self.draft.multipliers.split_off(comma + 1);
        self.close(false);
        self.draft.tokens = tokens;
        self.draft.multipliers = multipliers;
    }

    fn take_embedding(&mut self, embedding: Arc<Embedding>, weight: f64) {
        let vector_count = embedding.vector_count().min(CHUNK_LENGTH);
        if self.draft.tokens.len() + vector_count > CHUNK_LENGTH {
            self.close(false);
        }
        self.draft.fixes.push(Fix {
            offset: self.draft.tokens.len(),
            embedding,
        });
        let length = self.draft.tokens.len() + vector_count;
        self.draft.tokens.resize(length, 0);
        self.draft.multipliers.resize(length, weight);
    }

    fn close(&mut self, last: bool) {
        let draft = std::mem::take(&mut self.draft);
        self.token_count += if last {
            draft.tokens.len()
        } else {
            CHUNK_LENGTH
        };
        self.chunks.push(draft.close());
    }
}
