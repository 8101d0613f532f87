//! What a job writes to disk, and when: the pictures of a batch as soon as they are done, the grid at
//! the end. How files are named and written is the business of whoever fulfils [`PictureSaver`].
//!
//! Follows A1111 v1.10.1: the request's `save_images` and the options `samples_save`, `grid_save`,
//! `save_incomplete_images`, `save_images_before_…`, `save_mask…`, `save_init_img`.

use std::sync::Arc;

use super::generate::Job;
use super::job_text::JobText;
use super::{
    Cause, GenerateError, GeneratedImage, GenerationParams, GenerationResult, Img2ImgParams,
    Picture,
};

/// Writes pictures where their user keeps them.
pub trait PictureSaver: std::fmt::Debug + Send + Sync {
    /// Writes one picture; it is complete on disk when this returns.
    ///
    /// # Errors
    /// When the format is unknown, the folder is not one for pictures, or the disk refuses.
    fn save(&self, picture: &SavedPicture<'_>) -> Result<(), Cause>;
}

/// Writes nothing.
#[derive(Debug, Clone, Copy, Default)]
pub struct NoSaver;

impl PictureSaver for NoSaver {
    fn save(&self, _picture: &SavedPicture<'_>) -> Result<(), Cause> {
        Ok(())
    }
}

/// Where a job's pictures go: the folder options as they are outside of the request, since A1111
/// reads them before it applies `override_settings`.
#[derive(Debug, Clone)]
pub struct Saving {
    pub saver: Arc<dyn PictureSaver>,
    /// `outdir_txt2img_samples` or `outdir_img2img_samples`.
    pub samples_folder: String,
    /// `outdir_txt2img_grids` or `outdir_img2img_grids`.
    pub grids_folder: String,
    /// `outdir_init_images`
    pub init_images_folder: String,
}

impl Default for Saving {
    fn default() -> Self {
        Self {
            saver: Arc::new(NoSaver),
            samples_folder: String::new(),
            grids_folder: String::new(),
            init_images_folder: String::new(),
        }
    }
}

/// How a file's name is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SavedAs<'a> {
    /// A result: number and pattern, `00000-1234.png`.
    Sample {
        /// Put behind the pattern, for example `-mask`.
        suffix: &'a str,
    },
    /// A grid: `grid-0000.png`.
    Grid {
        /// `grid`, `xyz_grid` …
        basename: &'a str,
        /// Without the pattern.
        short: bool,
    },
    /// An init image, named by its content.
    Named { name: &'a str },
}

/// What the tokens of name patterns stand for.
#[derive(Debug, Clone, Copy)]
pub struct NameFacts<'a> {
    pub params: &'a GenerationParams,
    pub model_name: &'a str,
    /// First 10 hex digits; empty where it is not known.
    pub model_hash: &'a str,
    /// File name of a separate VAE.
    pub vae_file: Option<&'a str>,
    /// This picture's seed and prompt.
    pub seed: i64,
    pub prompt: &'a str,
    pub all_seeds: &'a [i64],
    pub batch_size: usize,
    /// Place of the picture in its batch and in the job, from 0.
    pub index_in_batch: usize,
    pub index_in_job: usize,
    /// `YYYYMMDDHHMMSS`
    pub job_timestamp: &'a str,
}

/// One picture on its way to disk.
#[derive(Debug, Clone, Copy)]
pub struct SavedPicture<'a> {
    pub picture: &'a Picture,
    /// The `parameters` text.
    pub infotext: Option<&'a str>,
    /// A folder option's value.
    pub folder: &'a str,
    pub saved_as: SavedAs<'a>,
    pub facts: NameFacts<'a>,
}

/// Writes a grid that a script made, if the option `grid_save` is on: `basename` is for example
/// `xyz_grid`. Names follow the result's first picture.
///
/// # Errors
/// See [`PictureSaver::save`].
pub fn save_script_grid(
    params: &GenerationParams,
    result: &GenerationResult,
    basename: &str,
    grid: &Picture,
    infotext: &str,
) -> Result<(), GenerateError> {
    if !params.options.bool("grid_save") {
        return Ok(());
    }
    save(
        params,
        SavedPicture {
            picture: grid,
            infotext: Some(infotext),
            folder: &params.saving.grids_folder,
            saved_as: SavedAs::Grid {
                basename,
                short: !params.options.bool("grid_extended_filename"),
            },
            facts: NameFacts::of_result(params, result),
        },
    )
}

/// Writes a picture that a script put together from several results (SD upscale, outpainting), if the
/// option `samples_save` is on: these scripts save whether or not the request asks for it.
///
/// # Errors
/// See [`PictureSaver::save`].
pub fn save_script_sample(
    params: &GenerationParams,
    result: &GenerationResult,
    picture: &Picture,
    infotext: &str,
) -> Result<(), GenerateError> {
    if !params.options.bool("samples_save") {
        return Ok(());
    }
    save(
        params,
        SavedPicture {
            picture,
            infotext: Some(infotext),
            folder: &params.saving.samples_folder,
            saved_as: SavedAs::Sample { suffix: "" },
            facts: NameFacts::of_result(params, result),
        },
    )
}

impl<'a> NameFacts<'a> {
    /// The facts of a result's first picture.
    #[must_use]
    pub fn of_result(params: &'a GenerationParams, result: &'a GenerationResult) -> Self {
        Self {
            params,
            model_name: &result.model_name,
            model_hash: &result.model_short_hash,
            vae_file: result.vae_file.as_ref().map(|(name, _)| name.as_str()),
            seed: result.all_seeds.first().copied().unwrap_or_default(),
            prompt: result.all_prompts.first().map_or("", String::as_str),
            all_seeds: &result.all_seeds,
            batch_size: result.batch_size,
            index_in_batch: 0,
            index_in_job: 0,
            job_timestamp: &result.job_timestamp,
        }
    }
}

fn save(params: &GenerationParams, picture: SavedPicture<'_>) -> Result<(), GenerateError> {
    params
        .saving
        .saver
        .save(&picture)
        .map_err(GenerateError::Save)
}

/// The option `save_init_img`: writes the init images under names made of their pixels and answers
/// the last one's.
///
/// # Errors
/// See [`PictureSaver::save`].
pub(super) fn save_init_images(
    params: &GenerationParams,
    img2img: &Img2ImgParams,
) -> Result<Option<String>, GenerateError> {
    use md5::Digest as _;
    if !params.options.bool("save_init_img") {
        return Ok(None);
    }
    let mut last = None;
    for picture in &img2img.init_images {
        let name = format!("{:x}", md5::Md5::digest(picture.as_bytes()));
        let facts = NameFacts {
            params,
            model_name: "",
            model_hash: "",
            vae_file: None,
            seed: 0,
            prompt: &params.prompt,
            all_seeds: &[],
            batch_size: params.batch_size,
            index_in_batch: 0,
            index_in_job: 0,
            job_timestamp: "",
        };
        save(
            params,
            SavedPicture {
                picture,
                infotext: None,
                folder: &params.saving.init_images_folder,
                saved_as: SavedAs::Named { name: &name },
                facts,
            },
        )?;
        last = Some(name);
    }
    Ok(last)
}

impl Job<'_> {
    /// Whether results are written now.
    pub(super) fn saves_samples(&self) -> bool {
        let options = &self.params.options;
        let complete = !self.control.interrupted() && !self.control.skipped();
        self.params.save_images
            && options.bool("samples_save")
            && (complete || options.bool("save_incomplete_images"))
    }

    /// Writes picture `index` of the job, if results are written at all.
    ///
    /// # Errors
    /// See [`PictureSaver::save`].
    pub(super) fn save_sample(
        &self,
        text: &JobText<'_>,
        index: usize,
        picture: &Picture,
        infotext: &str,
        suffix: &str,
    ) -> Result<(), GenerateError> {
        if !self.saves_samples() {
            return Ok(());
        }
        self.save_as(
            text,
            index,
            (picture, infotext),
            &self.params.saving.samples_folder,
            SavedAs::Sample { suffix },
        )
    }

    /// Writes the grid of all pictures.
    ///
    /// # Errors
    /// See [`PictureSaver::save`].
    pub(super) fn save_grid(
        &self,
        text: &JobText<'_>,
        grid: &GeneratedImage,
    ) -> Result<(), GenerateError> {
        let infotext = grid.infotext.as_deref().unwrap_or("");
        let saved_as = SavedAs::Grid {
            basename: "grid",
            short: !self.params.options.bool("grid_extended_filename"),
        };
        let folder = &self.params.saving.grids_folder;
        self.save_as(text, 0, (&*grid.image, infotext), folder, saved_as)
    }

    fn save_as(
        &self,
        text: &JobText<'_>,
        index: usize,
        (picture, infotext): (&Picture, &str),
        folder: &str,
        saved_as: SavedAs<'_>,
    ) -> Result<(), GenerateError> {
        let timestamp = self.control.timestamp();
        let seeds = &self.seeds.seeds;
        save(
            self.params,
            SavedPicture {
                picture,
                infotext: Some(infotext),
                folder,
                saved_as,
                facts: NameFacts {
                    params: self.params,
                    model_name: &text.model.name,
                    model_hash: text.model.short_hash.wait(),
                    vae_file: text.model.vae_file.as_ref().map(|(name, _)| name.as_str()),
                    seed: seeds.get(index).copied().unwrap_or_default(),
                    prompt: self.prompts.positive.get(index).map_or("", String::as_str),
                    all_seeds: seeds,
                    batch_size: self.batch_size,
                    index_in_batch: index % self.batch_size.max(1),
                    index_in_job: index,
                    job_timestamp: &timestamp,
                },
            },
        )
    }
}
