//! Which checkpoints, VAEs, embeddings and networks exist, what they are called and what they are.
//! Reads files; runs no graph.

mod averaged;
mod checkpoints;
mod embeddings;
mod faces;
mod family;
mod hashes;
mod hypernetworks;
mod ldm_config;
mod networks;
mod pickle;
mod tensor_file;
mod upscalers;
mod wildcards;

pub use checkpoints::{Catalogue, CatalogueConfig, Checkpoint, CheckpointFormat, VaeFile};
pub use embeddings::{EmbeddingFile, EmbeddingList, embedding_vectors, read_embedding};
pub use faces::{FaceFile, FaceFiles};
pub use family::{CheckpointFamily, CheckpointLayout, UNET_PREFIX, VAE_PREFIX, detect};
pub use hashes::{HashCache, old_hash, sha256_of};
pub use hypernetworks::{HypernetworkFile, HypernetworkList};
pub use ldm_config::{HeadRule, LdmConfig, TextTowerConfig, TowerFacts, find_tower_facts};
pub use networks::{NetworkFile, NetworkList};
pub use pickle::{Item, PickleError, TorchFile};
pub use tensor_file::{FileState, StoredTensor, StoredType, TensorFile, TensorFileError};
pub use upscalers::{REALESRGAN_MODELS, RealEsrganModel, UpscalerFile, UpscalerList};
pub use wildcards::{WildcardFile, WildcardFolders, WildcardKind};
