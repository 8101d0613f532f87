//! Builds everything once and starts the server: the only place besides `main.rs` that sees every room.
