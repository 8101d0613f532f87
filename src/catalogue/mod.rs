//! Checkpoints, VAEs, embeddings, networks and their hashes. Uses no other room.
