//! Where the pictures of requests come from: base64 text, or an address where the server allows it.

use super::ApiError;
use crate::config::Options;
use crate::imaging::{Decoded, decode_base64_within, decode_within};
use crate::pipeline::Picture;

/// Fetches pictures from addresses.
pub trait PictureFetcher: Send + Sync {
    /// The bytes at `url`, which begins with `http://` or `https://`.
    ///
    /// # Errors
    /// A1111's answer to an address that may not be asked or has no picture.
    fn fetch(&self, url: &str, options: &Options) -> Result<Vec<u8>, ApiError>;
}

/// How pictures of requests are reached, and how large they may be.
#[derive(Clone, Copy)]
pub struct PictureAccess<'a> {
    pub fetcher: &'a dyn PictureFetcher,
    /// Width times height; larger pictures are refused before they are unpacked.
    pub max_pixels: u64,
}

impl PictureAccess<'_> {
    /// A picture with what its file says about it.
    ///
    /// # Errors
    /// A1111's `Invalid encoded image`, or its refusals of addresses.
    pub fn file(&self, text: &str, options: &Options) -> Result<Decoded, ApiError> {
        let decoded = if text.starts_with("http://") || text.starts_with("https://") {
            let bytes = self.fetcher.fetch(text, options)?;
            decode_within(&bytes, self.max_pixels)
        } else {
            decode_base64_within(text, self.max_pixels)
        };
        decoded.map_err(|_| ApiError::invalid_image())
    }

    /// A picture.
    ///
    /// # Errors
    /// See [`PictureAccess::file`].
    pub fn picture(&self, text: &str, options: &Options) -> Result<Picture, ApiError> {
        self.file(text, options).map(|decoded| decoded.picture)
    }
}
