//! Writing one picture: its folder, its name, its bytes, and what goes beside it.

use std::path::{Path, PathBuf};

use parking_lot::Mutex;

use super::numbering::next_number;
use super::sanitize::relative_path;
use super::tokens::Names;
use crate::config::{Options, OutputFolders};
use crate::imaging::{
    EncodeError, Filter, ImageFormat, encode_jpeg, encode_png, encode_webp, resize_rgb, to_rgb,
};
use crate::pipeline::{Cause, Picture, PictureSaver, SavedAs, SavedPicture};

pub use super::sanitize::NameRules;

/// Why a picture was not written.
#[derive(Debug, thiserror::Error)]
pub enum SaveError {
    #[error("{folder} is no folder that pictures may be written to")]
    Folder { folder: String },
    #[error("unknown file extension: .{0}")]
    Format(String),
    #[error("every number in {0} is taken")]
    NoNumber(PathBuf),
    #[error(transparent)]
    Encode(#[from] EncodeError),
    #[error("the picture could not be made smaller: {0}")]
    Resize(Cause),
    #[error(transparent)]
    Write(#[from] std::io::Error),
}

/// Writes pictures below the output folders.
#[derive(Debug, Clone)]
pub struct FileSaver {
    pub folders: OutputFolders,
    pub rules: NameRules,
}

impl PictureSaver for FileSaver {
    fn save(&self, picture: &SavedPicture<'_>) -> Result<(), Cause> {
        let file = self.write(picture)?;
        tracing::debug!(file = %file.display(), "saved");
        Ok(())
    }
}

/// Bytes of a file name that every file system takes.
const NAME_LIMIT_BYTES: usize = 255;
/// Held from the look for a free name until the file is there: jobs that run at once share the folders.
static NAMING: Mutex<()> = Mutex::new(());
/// How many names are tried when the next number is taken.
const TRIES: u64 = 500;

impl FileSaver {
    /// Writes the picture and answers where.
    fn write(&self, saved: &SavedPicture<'_>) -> Result<PathBuf, SaveError> {
        let options = &saved.facts.params.options;
        let root = self
            .folders
            .resolve(saved.folder)
            .ok_or_else(|| SaveError::Folder {
                folder: saved.folder.to_owned(),
            })?;
        let basename = match saved.saved_as {
            SavedAs::Grid { basename, .. } => basename,
            SavedAs::Sample { .. } | SavedAs::Named { .. } => "",
        };
        let names = Names {
            facts: saved.facts,
            picture: saved.picture,
            basename,
            rules: self.rules,
        };
        let folder = root.join(sub_folder(&saved.saved_as, options, &names));
        let (format, extension) = format_of(saved, options)?;
        let infotext = saved.infotext.filter(|_| options.bool("enable_pnginfo"));
        let bytes = encode(saved.picture, format, infotext, options)?;
        let one_at_a_time = NAMING.lock();
        let file = match saved.saved_as {
            SavedAs::Named { name } => folder.join(format!("{name}.{extension}")),
            SavedAs::Sample { .. } | SavedAs::Grid { .. } => {
                let decoration = decoration(&saved.saved_as, options, &names);
                free_name(&folder, basename, &decoration, &extension, options)?
            }
        };
        if let Some(parent) = file.parent() {
            fs_err::create_dir_all(parent)?;
        }
        write_in_one_step(&file, &bytes)?;
        drop(one_at_a_time);
        if options.bool("export_for_4chan") {
            write_small_copy(saved.picture, &file, bytes.len(), infotext, options)?;
        }
        if let Some(text) = saved.infotext.filter(|_| options.bool("save_txt")) {
            let text = format!("{text}\n");
            write_in_one_step(&file.with_extension("txt"), text.as_bytes())?;
        }
        Ok(file)
    }
}

/// The folder inside of the output folder that the options ask for.
fn sub_folder(saved_as: &SavedAs<'_>, options: &Options, names: &Names<'_>) -> PathBuf {
    let wanted = match saved_as {
        SavedAs::Sample { .. } => options.bool("save_to_dirs"),
        SavedAs::Grid { .. } => options.bool("grid_save_to_dirs"),
        SavedAs::Named { .. } => false,
    };
    if !wanted {
        return PathBuf::new();
    }
    let pattern = match options.text("directories_filename_pattern") {
        "" => "[prompt_words]",
        pattern => pattern,
    };
    relative_path(names.expand(pattern).trim_start_matches(' '))
}

/// What stands behind the number.
fn decoration(saved_as: &SavedAs<'_>, options: &Options, names: &Names<'_>) -> String {
    let suffix = match saved_as {
        SavedAs::Sample { suffix } => suffix,
        SavedAs::Grid { short: false, .. } => "",
        SavedAs::Grid { short: true, .. } | SavedAs::Named { .. } => return String::new(),
    };
    let pattern = match options.text("samples_filename_pattern") {
        "" if options.bool("save_to_dirs") => "[seed]",
        "" => "[seed]-[prompt_spaces]",
        pattern => pattern,
    };
    format!("{}{suffix}", names.expand(pattern))
}

/// The format that the options name, or PNG where the picture is too large for it; with it the file's
/// extension.
fn format_of(
    saved: &SavedPicture<'_>,
    options: &Options,
) -> Result<(ImageFormat, String), SaveError> {
    let extension = match saved.saved_as {
        SavedAs::Sample { .. } => options.text("samples_format"),
        SavedAs::Grid { .. } => options.text("grid_format"),
        SavedAs::Named { .. } => "png",
    };
    let png = || (ImageFormat::Png, "png".to_owned());
    let Some(format) = ImageFormat::from_option(extension) else {
        if ["gif", "avif"].contains(&extension.to_lowercase().as_str()) {
            tracing::warn!(
                format = extension,
                "pictures of this format are written as PNG"
            );
            return Ok(png());
        }
        return Err(SaveError::Format(extension.to_owned()));
    };
    let side = saved.picture.width().max(saved.picture.height());
    let limit = match format {
        ImageFormat::Png => u32::MAX,
        ImageFormat::Jpeg => 65_535,
        ImageFormat::Webp => 16_383,
    };
    if side > limit {
        return Ok(png());
    }
    Ok((format, extension.to_owned()))
}

/// A name that is not taken, or the one that the options say to replace.
fn free_name(
    folder: &Path,
    basename: &str,
    decoration: &str,
    extension: &str,
    options: &Options,
) -> Result<PathBuf, SaveError> {
    let named = |stem: &str| folder.join(fitting(&relative_path(stem), extension));
    if decoration.is_empty() || options.bool("save_images_add_number") {
        let first = next_number(folder, basename);
        let decoration = match decoration {
            "" => String::new(),
            text => format!("-{text}"),
        };
        return (first..first.saturating_add(TRIES))
            .map(|number| match basename {
                "" => named(&format!("{number:05}{decoration}")),
                basename => named(&format!("{basename}-{number:04}{decoration}")),
            })
            .find(|file| !file.exists())
            .ok_or_else(|| SaveError::NoNumber(folder.to_owned()));
    }
    let file = named(decoration);
    if options.text("save_images_replace_action") != "Add number suffix" || !file.exists() {
        return Ok(file);
    }
    (1..u64::MAX)
        .map(|number| named(&format!("{decoration}-{number}")))
        .find(|file| !file.exists())
        .ok_or_else(|| SaveError::NoNumber(folder.to_owned()))
}

/// The path with its extension, the name cut so that the file system takes it; a pattern that leaves
/// nothing is called `image`.
fn fitting(path: &Path, extension: &str) -> PathBuf {
    let name = path.file_name().map_or_else(
        || "image".to_owned(),
        |name| name.to_string_lossy().into_owned(),
    );
    // The text file beside a picture needs room for its own extension.
    let mut limit = NAME_LIMIT_BYTES - (extension.len() + 1).max(".txt".len());
    limit = limit.min(name.len());
    while !name.is_char_boundary(limit) {
        limit -= 1;
    }
    path.with_file_name(format!("{}.{extension}", &name[..limit]))
}

fn encode(
    picture: &Picture,
    format: ImageFormat,
    infotext: Option<&str>,
    options: &Options,
) -> Result<Vec<u8>, EncodeError> {
    let comment = infotext.unwrap_or("");
    let quality = options.i64("jpeg_quality").clamp(1, 100) as u8;
    match format {
        ImageFormat::Png => {
            let texts: Vec<_> = infotext
                .map(|text| ("parameters", text))
                .into_iter()
                .collect();
            encode_png(picture, &texts)
        }
        ImageFormat::Jpeg => encode_jpeg(picture, quality, comment),
        ImageFormat::Webp => encode_webp(picture, quality, options.bool("webp_lossless"), comment),
    }
}

/// A JPEG beside a file that is large in bytes or pixels (`export_for_4chan`). A JPEG itself is left
/// alone; A1111 would replace it.
fn write_small_copy(
    picture: &Picture,
    file: &Path,
    size_bytes: usize,
    infotext: Option<&str>,
    options: &Options,
) -> Result<(), SaveError> {
    const BYTES_PER_MIB: f64 = 1024.0 * 1024.0;
    let (width, height) = (picture.width(), picture.height());
    let side = options.f64("target_side_length");
    let too_long = f64::from(width) > side || f64::from(height) > side;
    let too_large = size_bytes as f64 > options.f64("img_downscale_threshold") * BYTES_PER_MIB;
    let copy = file.with_extension("jpg");
    if !(too_long || too_large) || copy == file || side < 1.0 {
        return Ok(());
    }
    let mut small = to_rgb(picture);
    if too_long {
        let ratio = f64::from(width) / f64::from(height);
        let (width, height) = if ratio > 1.0 {
            (side, (side / ratio).round_ties_even())
        } else {
            ((side * ratio).round_ties_even(), side)
        };
        small = resize_rgb(
            &small,
            width.max(1.0) as u32,
            height.max(1.0) as u32,
            Filter::Lanczos,
        );
    }
    let bytes = encode(&small.into(), ImageFormat::Jpeg, infotext, options)?;
    write_in_one_step(&copy, &bytes)?;
    Ok(())
}

/// Nobody sees half a file: the bytes go into `NAME.tmp`, which is renamed.
fn write_in_one_step(file: &Path, bytes: &[u8]) -> std::io::Result<()> {
    let temporary = file.with_extension("tmp");
    fs_err::write(&temporary, bytes)
        .and_then(|()| fs_err::rename(&temporary, file))
        .inspect_err(|_| {
            let _ = fs_err::remove_file(&temporary);
        })
}
