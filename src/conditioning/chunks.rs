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

#[cfg(test)]
mod tests {
    use ndarray::Array2;
    use serde::Deserialize;
    use serde_json::Value;

    use super::*;
    use crate::conditioning::EmbeddingSource;
    use crate::prompt::vectors;

    /// Embeddings of these names and vector counts.
    struct Named(Vec<(String, usize)>);

    impl EmbeddingSource for Named {
        fn names(&self) -> Vec<String> {
            self.0.iter().map(|(name, _)| name.clone()).collect()
        }

        fn load(&self, name: &str) -> Option<Arc<Embedding>> {
            let (name, count) = self.0.iter().find(|(known, _)| known == name)?;
            Some(Arc::new(Embedding {
                name: name.clone(),
                short_hash: String::new(),
                vectors: vec![Array2::zeros((*count, 4))],
            }))
        }
    }

    fn index(names: &[(&str, usize)], tokenizer: Tokenizer) -> EmbeddingIndex {
        let named = names
            .iter()
            .map(|&(name, count)| (name.to_owned(), count))
            .collect();
        EmbeddingIndex::new(Arc::new(Named(named)), tokenizer)
    }

    #[derive(Deserialize)]
    struct WantChunk {
        fixes: Vec<(usize, String)>,
        tokens_trimmed: Vec<u32>,
        mult_trimmed: Vec<f64>,
    }

    #[derive(Deserialize)]
    struct Want {
        count: usize,
        target: usize,
        chunks: Vec<WantChunk>,
    }

    fn assert_chunks(text: &str, emphasis: Emphasis, embeddings: &EmbeddingIndex, want: &Want) {
        let have = split_chunks(text, Tokenizer::OpenClip, emphasis, 20, embeddings).expect(text);
        assert_eq!(have.token_count, want.count, "{text}");
        assert_eq!(have.target_length(), want.target, "{text}");
        assert_eq!(have.chunks.len(), want.chunks.len(), "{text}");
        for (have, want) in have.chunks.iter().zip(&want.chunks) {
            let (tokens, padding) = have.tokens.split_at(want.tokens_trimmed.len());
            assert_eq!(tokens, want.tokens_trimmed, "{text}");
            assert!(padding.iter().all(|&id| id == END_TOKEN), "{text}");
            assert_eq!(have.tokens.len(), CHUNK_LENGTH + 2, "{text}");
            let (weights, rest) = have.multipliers.split_at(want.mult_trimmed.len());
            assert_eq!(weights, want.mult_trimmed, "{text}");
            assert!(
                rest.iter()
                    .all(|weight| weight.to_bits() == 1_f64.to_bits()),
                "{text}"
            );
            let fixes: Vec<(usize, String)> = have
                .fixes
                .iter()
                .map(|fix| (fix.offset, fix.embedding.name.clone()))
                .collect();
            assert_eq!(fixes, want.fixes, "{text}");
        }
    }

    #[test]
    fn prompts_split_into_a1111s_chunks() {
        let none = EmbeddingIndex::default();
        for (text, want) in vectors::read::<Vec<(String, Want)>>("chunks") {
            assert_chunks(&text, Emphasis::Original, &none, &want);
        }
        for (text, want) in vectors::read::<Vec<(String, Want)>>("chunks_emphasis_None") {
            assert_chunks(&text, Emphasis::None, &none, &want);
        }
    }

    #[test]
    fn embeddings_take_their_vectors_room() {
        let embeddings = index(&[("bad-hands", 6), ("bad", 2)], Tokenizer::OpenClip);
        let cases: Value = vectors::read("chunks_with_TI");
        let cases: Vec<(String, Want)> =
            serde_json::from_value(cases["cases"].clone()).expect("cases");
        for (text, want) in cases {
            assert_chunks(&text, Emphasis::Original, &embeddings, &want);
        }
    }

    #[test]
    fn recorded_prompts_split_into_the_recorded_chunks() {
        for (model, tokenizer) in [
            ("tiny-sd1", Tokenizer::ClipL),
            ("tiny-sd2-v", Tokenizer::OpenClip),
        ] {
            let embeddings = index(&[("bad-tiny", 3), ("tinyti", 2)], tokenizer);
            for (name, case) in vectors::recorded_prompts(model) {
                let text = case["prompt"].as_str().expect("a text");
                let have = split_chunks(text, tokenizer, Emphasis::Original, 20, &embeddings)
                    .expect("a legal prompt");
                assert_eq!(case["token_count"], have.token_count, "{model}, {name}");
                assert_eq!(
                    case["target_length"],
                    have.target_length(),
                    "{model}, {name}"
                );
                let chunks = case["chunks"].as_array().expect("chunks");
                assert_eq!(chunks.len(), have.chunks.len(), "{model}, {name}");
                for (want, have) in chunks.iter().zip(&have.chunks) {
                    let tokens: Vec<u32> =
                        serde_json::from_value(want["tokens"].clone()).expect("tokens");
                    let weights: Vec<f64> =
                        serde_json::from_value(want["multipliers"].clone()).expect("weights");
                    assert_eq!(have.tokens, tokens, "{model}, {name}");
                    assert_eq!(have.multipliers, weights, "{model}, {name}");
                    let fixes: Vec<Value> = have
                        .fixes
                        .iter()
                        .map(|fix| {
                            let embedding = &fix.embedding;
                            serde_json::json!([
                                fix.offset,
                                embedding.name,
                                embedding.vector_count()
                            ])
                        })
                        .collect();
                    assert_eq!(want["fixes"], Value::from(fixes), "{model}, {name}");
                }
            }
        }
    }

    #[test]
    fn an_embedding_longer_than_a_chunk_is_cut() {
        let embeddings = index(&[("long", 90)], Tokenizer::ClipL);
        let chunks = split_chunks(
            "cat long cat",
            Tokenizer::ClipL,
            Emphasis::Original,
            20,
            &embeddings,
        )
        .expect("a legal prompt");
        assert!(
            chunks
                .chunks
                .iter()
                .all(|chunk| chunk.tokens.len() == CHUNK_LENGTH + 2)
        );
        assert_eq!(chunks.chunks.len(), 3);
    }
}
