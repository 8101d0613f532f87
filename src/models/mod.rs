//! The CLIP, UNet and VAE graphs behind the traits of the rooms below. Nobody but `app.rs` calls it.

pub mod graphs;
