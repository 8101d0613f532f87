//! Textual inversion files: `.safetensors`, torch pickles and pictures that carry their vectors.

use std::path::{Path, PathBuf};

use base64::Engine as _;
use ndarray::Array2;
use parking_lot::RwLock;
use serde_json::Value as Json;

use super::checkpoints::{has_extension, walk};
use super::{TensorFile, TensorFileError, TorchFile, sha256_of};

/// One textual inversion.
#[derive(Debug, Clone, PartialEq)]
pub struct EmbeddingFile {
    /// What prompts call it: the file's stem, or the name inside a picture.
    pub name: String,
    pub path: PathBuf,
    /// First 12 hex digits of the file's SHA-256.
    pub short_hash: String,
    /// `[vectors, width]` a text tower, in the order of the towers.
    pub vectors: Vec<Array2<f32>>,
    pub step: Option<i64>,
    pub checkpoint_hash: Option<String>,
    pub checkpoint_name: Option<String>,
}

impl EmbeddingFile {
    /// Tokens that it takes in a prompt.
    #[must_use]
    pub fn vector_count(&self) -> usize {
        self.vectors.first().map_or(0, Array2::nrows)
    }

    /// The width that A1111 shows and compares: of SDXL's both towers together.
    #[must_use]
    pub fn width(&self) -> usize {
        self.vectors.iter().map(Array2::ncols).sum()
    }

    /// Whether it fits text towers of these widths.
    #[must_use]
    pub fn fits(&self, tower_widths: &[usize]) -> bool {
        self.vectors
            .iter()
            .map(Array2::ncols)
            .eq(tower_widths.iter().copied())
    }
}

/// The textual inversions of a folder, as of the last scan.
#[derive(Debug, Default)]
pub struct EmbeddingList {
    folder: Option<PathBuf>,
    files: RwLock<Vec<EmbeddingFile>>,
}

impl EmbeddingList {
    /// Reads all files below `folder`. Files that cannot be read are logged and left out.
    #[must_use]
    pub fn new(folder: Option<PathBuf>) -> Self {
        let list = Self {
            folder,
            files: RwLock::default(),
        };
        list.refresh();
        list
    }

    /// Reads the folder anew.
    pub fn refresh(&self) {
        let Some(folder) = &self.folder else { return };
        let mut files: Vec<EmbeddingFile> = Vec::new();
        for path in walk(folder, &|path| !path.is_dir() && is_embedding(path)) {
            match read_embedding(&path) {
                Ok(file) if files.iter().all(|known| known.name != file.name) => files.push(file),
                Ok(file) => {
                    tracing::warn!(name = %file.name, path = %path.display(), "another embedding has this name; the file is ignored");
                }
                Err(reason) => {
                    tracing::warn!(path = %path.display(), %reason, "this embedding cannot be read");
                }
            }
        }
        *self.files.write() = files;
    }

    /// All that could be read, in the order of registration.
    #[must_use]
    pub fn files(&self) -> Vec<EmbeddingFile> {
        self.files.read().clone()
    }

    /// Those that fit text towers of these widths, and the others (A1111's loaded and skipped).
    #[must_use]
    pub fn split(&self, tower_widths: &[usize]) -> (Vec<EmbeddingFile>, Vec<EmbeddingFile>) {
        self.files()
            .into_iter()
            .partition(|file| file.fits(tower_widths))
    }
}

fn is_embedding(path: &Path) -> bool {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let is_picture = has_extension(path, PICTURES);
    let known = is_picture || has_extension(path, &["pt", "bin", "safetensors"]);
    let is_preview = is_picture && name.to_lowercase().contains(".preview.");
    let is_empty = fs_err::metadata(path).is_ok_and(|metadata| metadata.len() == 0);
    known && !is_preview && !is_empty
}

/// What a picture's data may unpack to; 75 vectors of SDXL have under 10 MB of JSON.
const MAX_UNPACKED_BYTES: usize = 64 << 20;

const PICTURES: &[&str] = &["png", "webp", "jxl", "avif"];

/// Reads one textual inversion.
///
/// # Errors
/// One sentence when the file cannot be read or holds no embedding.
pub fn read_embedding(path: &Path) -> Result<EmbeddingFile, String> {
    let words = |error: TensorFileError| error.to_string();
    let stem = path.file_stem().unwrap_or_default().to_string_lossy();
    let mut short_hash = sha256_of(path).map_err(|error| error.to_string())?;
    short_hash.truncate(12);
    let mut file = EmbeddingFile {
        name: stem.into_owned(),
        path: path.to_owned(),
        short_hash,
        vectors: Vec::new(),
        step: None,
        checkpoint_hash: None,
        checkpoint_name: None,
    };
    if has_extension(path, PICTURES) {
        let json = picture_json(path)?;
        file.name = json["name"].as_str().unwrap_or(&file.name).to_owned();
        file.step = json["step"].as_i64();
        file.checkpoint_hash = json["sd_checkpoint"].as_str().map(str::to_owned);
        file.checkpoint_name = json["sd_checkpoint_name"].as_str().map(str::to_owned);
        file.vectors = vec![json_vectors(&json)?];
    } else if has_extension(path, &["safetensors"]) {
        let tensors = TensorFile::open_safetensors(path).map_err(words)?;
        file.vectors = plain_vectors(&tensors)?;
    } else {
        read_pickled(path, &mut file)?;
    }
    if file.vectors.iter().any(Array2::is_empty) {
        return Err("it holds no vectors".to_owned());
    }
    Ok(file)
}

/// The vectors in some tensors of a file, given as (name inside the embedding, name in the file):
/// `clip_l` and `clip_g` (SDXL), or the only one; `[vectors, width]` a text tower.
///
/// # Errors
/// One sentence when the tensors form no embedding.
pub fn embedding_vectors(
    file: &TensorFile,
    names: &[(&str, &str)],
) -> Result<Vec<Array2<f32>>, String> {
    let named = |wanted: &str| names.iter().find(|(inner, _)| *inner == wanted);
    if let (Some((_, first)), Some((_, second))) = (named("clip_l"), named("clip_g")) {
        return Ok(vec![matrix(file, first)?, matrix(file, second)?]);
    }
    match names {
        [(_, only)] => Ok(vec![matrix(file, only)?]),
        _ => Err(format!("it has {} tensors, one is expected", names.len())),
    }
}

fn plain_vectors(file: &TensorFile) -> Result<Vec<Array2<f32>>, String> {
    let names: Vec<(&str, &str)> = file.names().map(|name| (name, name)).collect();
    embedding_vectors(file, &names)
}

fn matrix(file: &TensorFile, name: &str) -> Result<Array2<f32>, String> {
    let values = file.read_f32(name).map_err(|error| error.to_string())?;
    let shape = file
        .get(name)
        .map(|tensor| tensor.shape.as_slice())
        .unwrap_or_default();
    let (rows, width) = match shape {
        [width] => (1, *width),
        [rows, width] => (*rows, *width),
        other => return Err(format!("its vectors have the shape {other:?}")),
    };
    Array2::from_shape_vec((rows, width), values).map_err(|error| error.to_string())
}

/// A1111's own dict with `string_to_param`, or a dict of tensors as diffusers writes.
fn read_pickled(path: &Path, file: &mut EmbeddingFile) -> Result<(), String> {
    let words = |error: TensorFileError| error.to_string();
    let saved = TorchFile::open(path).map_err(words)?;
    let top = saved.root();
    let text = |key: &str| top.get(key)?.as_text().map(str::to_owned);
    let tensors = top.get("string_to_param").unwrap_or(top);
    let tensors = tensors.tensor_table().map_err(words)?;
    file.vectors = plain_vectors(&tensors)?;
    file.step = top.get("step").and_then(|step| step.as_int());
    file.checkpoint_hash = text("sd_checkpoint");
    file.checkpoint_name = text("sd_checkpoint_name");
    Ok(())
}

/// `{"string_to_param": {"*": {"TORCHTENSOR": [[…], …]}}}`, the nested lists anywhere below.
fn json_vectors(json: &Json) -> Result<Array2<f32>, String> {
    let parameters = json["string_to_param"]
        .as_object()
        .filter(|map| map.len() == 1)
        .and_then(|map| map.values().next())
        .ok_or("its data has no string_to_param")?;
    let rows = parameters["TORCHTENSOR"]
        .as_array()
        .ok_or("its data has no TORCHTENSOR")?;
    let width = rows.first().and_then(Json::as_array).map_or(0, Vec::len);
    let values: Option<Vec<f32>> = rows
        .iter()
        .flat_map(|row| row.as_array().into_iter().flatten())
        .map(|value| value.as_f64().map(|value| value as f32))
        .collect();
    Array2::from_shape_vec(
        (rows.len(), width),
        values.ok_or("a vector holds no numbers")?,
    )
    .map_err(|error| error.to_string())
}

/// The JSON in the text chunk `sd-ti-embedding`, else the one hidden in the pixels.
fn picture_json(path: &Path) -> Result<Json, String> {
    let file = fs_err::File::open(path).map_err(|error| error.to_string())?;
    let png = png::Decoder::new(std::io::BufReader::new(file)).read_info();
    if has_extension(path, &["png"])
        && let Some(text) = png
            .as_ref()
            .ok()
            .and_then(|png| embedding_chunk(png.info()))
    {
        let bytes = base64::engine::general_purpose::STANDARD
            .decode(text.trim())
            .map_err(|error| error.to_string())?;
        return serde_json::from_slice(&bytes).map_err(|error| error.to_string());
    }
    if png.is_ok_and(|png| has_broken_palette(png.info())) {
        return Err("its palette ends within a colour".to_owned());
    }
    let mut reader = image::ImageReader::open(path)
        .and_then(image::ImageReader::with_guessed_format)
        .map_err(|error| error.to_string())?;
    let mut limits = image::Limits::default();
    limits.max_image_width = Some(8192);
    limits.max_image_height = Some(8192);
    limits.max_alloc = Some(MAX_UNPACKED_BYTES as u64 * 4);
    reader.limits(limits);
    let picture = reader
        .decode()
        .map_err(|error| error.to_string())?
        .to_rgb8();
    hidden_json(&picture)
}

/// Whether a PNG has a palette of no whole number of colours, which the png crate takes for granted.
fn has_broken_palette(info: &png::Info<'_>) -> bool {
    let palette = info.palette.as_ref();
    palette.is_some_and(|palette| palette.len() % 3 != 0)
}

fn embedding_chunk(info: &png::Info<'_>) -> Option<String> {
    let plain = info
        .uncompressed_latin1_text
        .iter()
        .find(|chunk| chunk.keyword == "sd-ti-embedding")
        .map(|chunk| chunk.text.clone());
    plain.or_else(|| {
        let chunks = info.compressed_latin1_text.iter();
        let mut chunk = chunks
            .clone()
            .find(|chunk| chunk.keyword == "sd-ti-embedding")?
            .clone();
        chunk.decompress_text_with_limit(MAX_UNPACKED_BYTES).ok()?;
        chunk.get_text().ok()
    })
}

/// A1111's steganography: the low four bits of the columns left and right of the picture, separated
/// from it by columns that are all zero, hold the two halves of every byte of zlib data.
fn hidden_json(picture: &image::RgbImage) -> Result<Json, String> {
    let Some((left, top, right, bottom)) = bounding_box(picture) else {
        return Err("it carries no embedding".to_owned());
    };
    let nibble = |x: u32, y: u32, channel: usize| picture.get_pixel(x, y)[channel] & 0x0f;
    let zero_columns: Vec<u32> = (left..right)
        .filter(|x| (top..bottom).all(|y| (0..3).all(|channel| nibble(*x, y, channel) == 0)))
        .collect();
    let (Some(&first), Some(&last)) = (zero_columns.first(), zero_columns.last()) else {
        return Err("it carries no embedding".to_owned());
    };
    if zero_columns.len() < 2 {
        return Err("it carries no embedding".to_owned());
    }
    let block = |columns: std::ops::Range<u32>| -> Vec<u8> {
        let mut noise = Noise::default();
        let mut values = Vec::new();
        for y in top..bottom {
            for x in columns.clone() {
                for channel in 0..3 {
                    values.push(nibble(x, y, channel) ^ noise.nibble());
                }
            }
        }
        values
    };
    let (low, high) = (block(left..first), block(last + 1..right));
    let bytes: Vec<u8> = low
        .iter()
        .zip(&high)
        .map(|(left, right)| right << 4 | left)
        .collect();
    let mut json = Vec::new();
    flate2::read::ZlibDecoder::new(bytes.as_slice())
        .take_limited(&mut json)
        .map_err(|error| format!("its hidden data cannot be unpacked: {error}"))?;
    serde_json::from_slice(&json).map_err(|error| error.to_string())
}

/// Reading with a bound, so that a small picture cannot unpack to gigabytes.
trait ReadLimited {
    fn take_limited(self, out: &mut Vec<u8>) -> std::io::Result<usize>;
}

impl<R: std::io::Read> ReadLimited for R {
    fn take_limited(self, out: &mut Vec<u8>) -> std::io::Result<usize> {
        std::io::Read::read_to_end(
            &mut std::io::Read::take(self, MAX_UNPACKED_BYTES as u64),
            out,
        )
    }
}

/// The box around everything that is not black: left, top, right, bottom (exclusive).
fn bounding_box(picture: &image::RgbImage) -> Option<(u32, u32, u32, u32)> {
    let lit = || {
        picture
            .enumerate_pixels()
            .filter(|(_, _, pixel)| pixel.0 != [0, 0, 0])
    };
    Some((
        lit().map(|(x, _, _)| x).min()?,
        lit().map(|(_, y, _)| y).min()?,
        lit().map(|(x, _, _)| x).max()? + 1,
        lit().map(|(_, y, _)| y).max()? + 1,
    ))
}

/// A1111's linear congruential generator, `s = (1664525 s + 1013904223) mod 2^32` from 0.
#[derive(Default)]
struct Noise(u32);

impl Noise {
    fn nibble(&mut self) -> u8 {
        self.0 = self.0.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (self.0 % 255) as u8 & 0x0f
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    fn golden(name: &str) -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("compat-tests/golden/models/embeddings")
            .join(name)
    }

    #[test]
    fn safetensors_and_pickled_embeddings_are_read() {
        let list = EmbeddingList::new(Some(golden("")));
        let (loaded, skipped) = list.split(&[128]);
        let names: Vec<&str> = loaded.iter().map(|file| file.name.as_str()).collect();
        assert_eq!(names, ["bad-tiny", "tinyti"]);
        assert!(skipped.is_empty());
        assert_eq!(list.split(&[768]).0, []);
        assert!(loaded.iter().all(|file| file.width() == 128));
    }

    #[test]
    fn a_picture_hides_its_vectors_in_the_low_bits() {
        let json =
            br#"{"name":"seen","string_to_param":{"*":{"TORCHTENSOR":[[1.5,-2.0]]}},"step":7}"#;
        let mut packed = flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::best());
        packed.write_all(json).unwrap();
        let mut bytes = packed.finish().unwrap();
        let (height, block) = (4_u32, 12_u32);
        bytes.resize((height * block * 3) as usize, 0);
        let width = 2 * block + 2 + 3;
        let mut picture = image::RgbImage::from_pixel(width, height, image::Rgb([0xf0; 3]));
        for (shift, begin) in [(0, 0), (4, width - block)] {
            let mut noise = Noise::default();
            let mut rest = bytes.iter();
            for y in 0..height {
                for x in begin..begin + block {
                    for channel in 0..3 {
                        let value = (rest.next().unwrap() >> shift & 0x0f) ^ noise.nibble();
                        picture.get_pixel_mut(x, y)[channel] = 0xf0 | value;
                    }
                }
            }
        }
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file.png");
        picture.save(&path).unwrap();
        let file = read_embedding(&path).unwrap();
        assert_eq!((file.name.as_str(), file.step), ("seen", Some(7)));
        assert_eq!(file.vectors, [ndarray::arr2(&[[1.5, -2.0]])]);
        assert!(hidden_json(&image::RgbImage::new(8, 8)).is_err());
    }
}
