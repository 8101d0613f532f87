//! The marker segments of a JPEG that matter here: the EXIF block and the comment.

/// EXIF block (TIFF, without its `Exif\0\0`) and the text of the last comment segment.
pub(super) fn read(jpeg: &[u8]) -> (Option<&[u8]>, Option<String>) {
    let (mut exif, mut comment) = (None, None);
    for (marker, data) in segments(jpeg) {
        match marker {
            0xe1 if exif.is_none() => exif = data.strip_prefix(b"Exif\0\0"),
            0xfe => comment = Some(String::from_utf8_lossy(data).into_owned()),
            _ => {}
        }
    }
    (exif, comment)
}

/// Whether an end-of-image marker follows the first scan. libjpeg makes grey of what a cut-off file lacks;
/// Pillow refuses such a file.
pub(super) fn is_complete(jpeg: &[u8]) -> bool {
    let headers = segments(jpeg)
        .map(|(_, data)| data.len() + 4)
        .sum::<usize>();
    let scans = jpeg.get(headers..).unwrap_or_default();
    scans.windows(2).rev().any(|marker| marker == [0xff, 0xd9])
}

/// The segments before the first scan.
fn segments(jpeg: &[u8]) -> impl Iterator<Item = (u8, &[u8])> {
    let mut rest = jpeg.strip_prefix(&[0xff, 0xd8]).unwrap_or_default();
    std::iter::from_fn(move || {
        let start = rest.iter().position(|&byte| byte != 0xff)?;
        let marker = rest[start];
        if start == 0 || marker == 0xda || marker == 0xd9 {
            return None;
        }
        let (length, after) = rest[start + 1..].split_first_chunk::<2>()?;
        let length = usize::from(u16::from_be_bytes(*length)).checked_sub(2)?;
        let data = after.get(..length)?;
        rest = &after[length..];
        Some((marker, data))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exif_and_comment_are_found() {
        let jpeg = b"\xff\xd8\xff\xe1\0\x0aExif\0\0MM\xff\xff\xfe\0\x04hi\xff\xda\0\x02";
        assert_eq!(read(jpeg), (Some(&b"MM"[..]), Some("hi".to_owned())));
        for length in 0..jpeg.len() {
            read(&jpeg[..length]);
        }
    }
}
