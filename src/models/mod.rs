//! The CLIP, UNet, VAE and upscaler graphs behind the traits of the rooms that need them; nobody but `app.rs` calls it. May use pipeline, conditioning, sampling and runtime.
