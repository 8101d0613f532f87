//! Which checkpoint is selected, and how the options show it.
//!
//! Follows A1111: the option `sd_model_checkpoint` holds the title of the checkpoint in use, hash
//! included once it is known; clients compare it with the titles of `sd-models`.

use serde_json::{Map, Value, json};

use super::Server;
use crate::catalogue::Checkpoint;
use crate::pipeline::{GenerateError, ModelRequest, ShortHash};

/// Looks at and changes the selected checkpoint.
pub struct CurrentModel<'a>(pub &'a Server);

const CHECKPOINT: &str = "sd_model_checkpoint";

impl CurrentModel<'_> {
    /// The selected checkpoint: what the option names, else the first of the list.
    #[must_use]
    pub fn checkpoint(&self) -> Option<Checkpoint> {
        let catalogue = &self.0.catalogue;
        let wanted = self.0.settings.get(CHECKPOINT);
        wanted
            .as_str()
            .and_then(|name| catalogue.find_exact(name))
            .or_else(|| catalogue.checkpoints().into_iter().next())
    }

    /// Loads the selected checkpoint; to be called on the queue's thread.
    ///
    /// # Errors
    /// When there is none or it cannot be loaded.
    pub fn load(&self) -> Result<ShortHash, GenerateError> {
        let name = self
            .checkpoint()
            .map(|checkpoint| checkpoint.name)
            .unwrap_or_default();
        let vae = self.0.settings.get("sd_vae");
        let overrides = self
            .0
            .settings
            .get("sd_vae_overrides_per_model_preferences");
        let request = ModelRequest {
            checkpoint: name,
            vae: vae.as_str().unwrap_or("Automatic").to_owned(),
            prefers_checkpoints_vae: overrides == false,
            ..ModelRequest::default()
        };
        self.0.engine.load(&request)
    }

    /// Puts title and hash of the selected checkpoint where the options show them.
    pub fn show(&self, options: &mut Map<String, Value>) {
        if let Some(checkpoint) = self.checkpoint() {
            options.insert(CHECKPOINT.to_owned(), json!(checkpoint.title()));
            let hash = checkpoint.sha256.unwrap_or_default();
            options.insert("sd_checkpoint_hash".to_owned(), json!(hash));
        }
    }
}
