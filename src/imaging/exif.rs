//! The two EXIF values A1111 cares about: the user comment that carries the infotext of JPEG and WebP
//! pictures, and the orientation.
//!
//! Written as piexif 1.1.3 dumps it: a big-endian TIFF whose Exif IFD holds the single tag 0x9286,
//! `UNICODE\0` and UTF-16BE text. Of the prefixes that may be read, JIS is left out: its text comes out
//! as the raw-UTF-8 fallback would give it.

use image::DynamicImage;
use image::metadata::Orientation;

const UNICODE: &[u8] = b"UNICODE\0";
const ASCII: &[u8] = b"ASCII\0\0\0";

/// The TIFF block with `comment` as its user comment; JPEG wants `Exif\0\0` before it, WebP does not.
pub(super) fn user_comment_block(comment: &str) -> Vec<u8> {
    let mut value = UNICODE.to_vec();
    value.extend(comment.encode_utf16().flat_map(u16::to_be_bytes));
    let mut block = b"MM\0*\0\0\0\x08".to_vec();
    block.extend([0, 1, 0x87, 0x69, 0, 4, 0, 0, 0, 1, 0, 0, 0, 26, 0, 0, 0, 0]);
    block.extend([0, 1, 0x92, 0x86, 0, 7]);
    block.extend((value.len() as u32).to_be_bytes());
    block.extend(40_u32.to_be_bytes());
    block.extend(value);
    block
}

/// What a TIFF block says.
#[derive(Debug, Default)]
pub(super) struct ExifFacts {
    pub(super) user_comment: Option<String>,
    pub(super) orientation: Option<Orientation>,
}

/// Reads a TIFF block, with or without `Exif\0\0` before it. Broken blocks say nothing.
pub(super) fn read(block: &[u8]) -> ExifFacts {
    let block = block.strip_prefix(b"Exif\0\0").unwrap_or(block);
    let mut reader = exif::Reader::new();
    reader.continue_on_error(true);
    let parsed = match reader.read_raw(block.to_vec()) {
        Ok(parsed) => parsed,
        Err(error) => match error.distill_partial_result(|_| {}) {
            Ok(parsed) => parsed,
            Err(_) => return ExifFacts::default(),
        },
    };
    let user_comment = parsed
        .get_field(exif::Tag::UserComment, exif::In::PRIMARY)
        .and_then(|field| match &field.value {
            exif::Value::Undefined(bytes, _) => Some(decode_user_comment(bytes)),
            _ => None,
        })
        .filter(|text| !text.is_empty());
    let orientation = parsed
        .get_field(exif::Tag::Orientation, exif::In::PRIMARY)
        .and_then(|field| field.value.get_uint(0))
        .and_then(|value| Orientation::from_exif(u8::try_from(value).ok()?));
    ExifFacts {
        user_comment,
        orientation,
    }
}

fn decode_user_comment(bytes: &[u8]) -> String {
    if let Some(text) = bytes.strip_prefix(UNICODE) {
        let units: Vec<u16> = text
            .chunks_exact(2)
            .map(|pair| u16::from_be_bytes([pair[0], pair[1]]))
            .collect();
        String::from_utf16_lossy(&units)
    } else {
        let text = bytes.strip_prefix(ASCII).unwrap_or(bytes);
        let valid = text.utf8_chunks().map(|chunk| chunk.valid());
        valid.collect()
    }
}

/// Turns the picture upright, as Pillow's `exif_transpose`.
pub(super) fn transpose(picture: DynamicImage, orientation: Option<Orientation>) -> DynamicImage {
    let mut picture = picture;
    picture.apply_orientation(orientation.unwrap_or(Orientation::NoTransforms));
    picture
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `piexif.dump({"Exif": {UserComment: UserComment.dump("aé€", "unicode")}})`.
    const PIEXIF: &str = "4d4d002a00000008000187690004000000010000001a00000000000192860007\
                          0000000e00000028554e49434f444500006100e920ac";

    #[test]
    fn the_block_is_piexifs_to_the_byte() {
        let block = user_comment_block("aé€");
        let digits = |at: usize| u8::from_str_radix(&PIEXIF[at..at + 2], 16).unwrap();
        let want: Vec<u8> = (0..PIEXIF.len()).step_by(2).map(digits).collect();
        assert_eq!(block, want);
    }

    #[test]
    fn comments_are_read_back() {
        for text in ["a red cube\nSteps: 20", "aé€ ☕ 🎨"] {
            let facts = read(&user_comment_block(text));
            assert_eq!(facts.user_comment.as_deref(), Some(text));
        }
        assert_eq!(read(&user_comment_block("")).user_comment, None);
        assert_eq!(decode_user_comment(b"ASCII\0\0\0plain"), "plain");
        assert_eq!(decode_user_comment("nackt é".as_bytes()), "nackt é");
    }

    #[test]
    fn broken_blocks_say_nothing() {
        let block = user_comment_block("text");
        for length in 0..block.len() {
            read(&block[..length]);
        }
        assert!(read(b"nonsense").orientation.is_none());
    }
}
