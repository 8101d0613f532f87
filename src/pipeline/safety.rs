//! Blacks out pictures that a safety checker flags, where one is asked for.
//!
//! A1111 v1.10.1 has none of its own; this does what Stable Diffusion's published checker is made for.

use image::RgbImage;
use serde_json::json;

use super::generate::Job;
use super::{Cause, GenerateError};

/// Looks at finished pictures.
pub trait SafetyChecker: Send + Sync {
    /// Whether a picture should not be shown.
    ///
    /// # Errors
    /// When the checker cannot be loaded or fails.
    fn is_flagged(&self, picture: &RgbImage) -> Result<bool, Cause>;
}

impl Job<'_> {
    /// Puts black in the place of flagged pictures and notes it in the infotext.
    pub(super) fn blacked_out(
        &mut self,
        mut pictures: Vec<RgbImage>,
    ) -> Result<Vec<RgbImage>, GenerateError> {
        let Some(checker) = self.models.safety_checker() else {
            return Ok(pictures);
        };
        let mut flagged = 0;
        for picture in &mut pictures {
            let is_flagged = checker.is_flagged(picture).map_err(GenerateError::Load)?;
            if is_flagged {
                *picture = RgbImage::new(picture.width(), picture.height());
                flagged += 1;
            }
        }
        if flagged > 0 {
            self.extra.set("Safety checker", json!("blacked out"));
            self.comments
                .push(format!("The safety checker blacked out {flagged} pictures"));
        }
        Ok(pictures)
    }
}
