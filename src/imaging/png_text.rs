//! Text and the few other chunks of a PNG that Pillow 9.5.0 shows in `Image.info`.
//!
//! Kept: tEXt, zTXt and iTXt (a later chunk with the same keyword replaces the earlier text but keeps
//! its place), gAMA, sRGB, the aspect of pHYs and the interlace flag. Left out: colour profiles,
//! resolutions and EXIF, which A1111 hides from its callers anyway.

use std::io::Read;

use serde_json::{Map, Value};

/// Pillow refuses a text chunk that inflates beyond this.
const MAX_TEXT_BYTES: u64 = 1 << 20;

const SIGNATURE: &[u8] = b"\x89PNG\r\n\x1a\n";

/// What the chunks say, in file order. Broken text chunks are passed over.
pub(super) fn read_info(png: &[u8]) -> Map<String, Value> {
    let mut info = Map::new();
    for (kind, data) in chunks(png) {
        match &kind {
            b"IHDR" if data.last() == Some(&1) => {
                info.insert("interlace".into(), 1.into());
            }
            b"gAMA" if data.len() == 4 => {
                let value = u32::from_be_bytes([data[0], data[1], data[2], data[3]]);
                info.insert("gamma".into(), (f64::from(value) / 100_000.0).into());
            }
            b"sRGB" if !data.is_empty() => {
                info.insert("srgb".into(), data[0].into());
            }
            b"pHYs" if data.len() == 9 && data[8] == 0 => {
                let side = |at: usize| {
                    u32::from_be_bytes([data[at], data[at + 1], data[at + 2], data[at + 3]])
                };
                info.insert("aspect".into(), vec![side(0), side(4)].into());
            }
            b"tEXt" | b"zTXt" | b"iTXt" => {
                if let Some((keyword, text)) = read_text(kind, data) {
                    info.insert(keyword, text.into());
                }
            }
            _ => {}
        }
    }
    info
}

/// The chunks of a PNG up to IEND or the first that is cut off; checksums are not looked at.
fn chunks(png: &[u8]) -> impl Iterator<Item = ([u8; 4], &[u8])> {
    let mut rest = png.strip_prefix(SIGNATURE).unwrap_or_default();
    std::iter::from_fn(move || {
        let (length, after) = rest.split_first_chunk::<4>()?;
        let (kind, after) = after.split_first_chunk::<4>()?;
        let length = u32::from_be_bytes(*length) as usize;
        let data = after.get(..length)?;
        rest = after.get(length + 4..).unwrap_or_default();
        (kind != b"IEND").then_some((*kind, data))
    })
}

fn read_text(kind: [u8; 4], data: &[u8]) -> Option<(String, String)> {
    let (keyword, rest) = split_at_nul(data)?;
    let text = match &kind {
        b"tEXt" => latin1(rest),
        b"zTXt" => latin1(&inflate(rest.strip_prefix(&[0])?)?),
        _ => {
            let (&[compressed, method], rest) = rest.split_first_chunk::<2>()?;
            let (_language, rest) = split_at_nul(rest)?;
            let (_translated, text) = split_at_nul(rest)?;
            match (compressed, method) {
                (0, _) => String::from_utf8(text.to_vec()).ok()?,
                (_, 0) => String::from_utf8(inflate(text)?).ok()?,
                _ => return None,
            }
        }
    };
    Some((latin1(keyword), text))
}

fn split_at_nul(data: &[u8]) -> Option<(&[u8], &[u8])> {
    let at = data.iter().position(|&byte| byte == 0)?;
    Some((&data[..at], &data[at + 1..]))
}

fn inflate(data: &[u8]) -> Option<Vec<u8>> {
    let mut text = Vec::new();
    let mut reader = flate2::read::ZlibDecoder::new(data).take(MAX_TEXT_BYTES + 1);
    reader.read_to_end(&mut text).ok()?;
    (text.len() as u64 <= MAX_TEXT_BYTES).then_some(text)
}

fn latin1(bytes: &[u8]) -> String {
    bytes.iter().map(|&byte| char::from(byte)).collect()
}

/// The chunk that holds `text` under `keyword`, as Pillow's `PngInfo.add_text` chooses it: tEXt where
/// Latin-1 can hold the text, else uncompressed iTXt. Answers the chunk's type and data.
pub(super) fn text_chunk(keyword: &str, text: &str) -> (png::chunk::ChunkType, Vec<u8>) {
    let mut data: Vec<u8> = keyword
        .chars()
        .map(|character| u8::try_from(u32::from(character)).unwrap_or(b'?'))
        .collect();
    data.push(0);
    let as_latin1: Result<Vec<u8>, _> = text
        .chars()
        .map(|character| u8::try_from(u32::from(character)))
        .collect();
    if let Ok(bytes) = as_latin1 {
        data.extend(bytes);
        (png::chunk::tEXt, data)
    } else {
        data.extend([0; 4]); // not compressed, method 0, no language, no translated keyword
        data.extend(text.as_bytes());
        (png::chunk::iTXt, data)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn png_of(parts: &[(&[u8; 4], Vec<u8>)]) -> Vec<u8> {
        let mut png = SIGNATURE.to_vec();
        for (kind, data) in parts {
            png.extend((data.len() as u32).to_be_bytes());
            png.extend(*kind);
            png.extend(data);
            png.extend([0; 4]);
        }
        png
    }

    #[test]
    fn texts_keep_their_order_and_the_later_wins() {
        let png = png_of(&[
            (b"tEXt", b"b\0first".to_vec()),
            (b"tEXt", b"a\0caf\xe9".to_vec()),
            (b"iTXt", "b\0\0\0\0\0zweiter ☕".as_bytes().to_vec()),
        ]);
        let info = read_info(&png);
        let pairs: Vec<_> = info.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
        assert_eq!(pairs, [("b", Some("zweiter ☕")), ("a", Some("café"))]);
    }

    #[test]
    fn compressed_text_is_inflated_up_to_a_limit() {
        let deflate = |text: &[u8]| {
            let mut encoder =
                flate2::write::ZlibEncoder::new(b"k\0\0".to_vec(), flate2::Compression::fast());
            encoder.write_all(text).unwrap();
            encoder.finish().unwrap()
        };
        let png = png_of(&[(b"zTXt", deflate(b"hello"))]);
        assert_eq!(read_info(&png)["k"], "hello");
        let bomb = png_of(&[(b"zTXt", deflate(&vec![b'x'; (1 << 20) + 1]))]);
        assert!(read_info(&bomb).is_empty());
    }

    #[test]
    fn cut_off_files_are_read_as_far_as_they_go() {
        let png = png_of(&[(b"tEXt", b"a\0b".to_vec()), (b"tEXt", b"c\0d".to_vec())]);
        for length in 0..png.len() {
            read_info(&png[..length]);
        }
    }

    #[test]
    fn latin1_text_is_stored_as_text_and_other_text_as_utf8() {
        let (kind, data) = text_chunk("parameters", "café");
        assert_eq!(
            (kind, data),
            (png::chunk::tEXt, b"parameters\0caf\xe9".to_vec())
        );
        let (kind, data) = text_chunk("parameters", "☕");
        assert_eq!(kind, png::chunk::iTXt);
        assert_eq!(data, "parameters\0\0\0\0\0☕".as_bytes());
    }
}
