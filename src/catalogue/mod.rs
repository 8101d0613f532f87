//! Which checkpoints, VAEs, embeddings and networks exist, what they are called and what they are.
//! Reads files; runs no graph.

mod tensor_file;

pub use tensor_file::{StoredTensor, StoredType, TensorFile, TensorFileError};
