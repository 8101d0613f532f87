//! What Pillow's `Image.info` tells of a GIF and A1111 passes on: version and comment.

/// Version (`GIF87a` or `GIF89a`) and the comment before the first frame, several joined by newlines.
pub(super) fn read(gif: &[u8]) -> (Option<String>, Option<String>) {
    let Some(version) = gif.get(..6).filter(|start| start.starts_with(b"GIF")) else {
        return (None, None);
    };
    let version = String::from_utf8_lossy(version).into_owned();
    (Some(version), first_comment(gif))
}

fn first_comment(gif: &[u8]) -> Option<String> {
    let flags = *gif.get(10)?;
    let colour_table = if flags & 0x80 == 0 {
        0
    } else {
        3 << ((flags & 7) + 1)
    };
    let mut at = 13 + colour_table;
    let mut comment: Option<Vec<u8>> = None;
    while let Some(&[0x21, label]) = gif.get(at..at + 2) {
        at += 2;
        let mut block = Vec::new();
        loop {
            let length = usize::from(*gif.get(at)?);
            at += 1;
            if length == 0 {
                break;
            }
            block.extend(gif.get(at..at + length)?);
            at += length;
        }
        if label == 0xfe {
            match &mut comment {
                Some(earlier) => {
                    earlier.push(b'\n');
                    earlier.extend(block);
                }
                None => comment = Some(block),
            }
        }
    }
    comment.map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn version_and_comment_are_found() {
        let mut gif = b"GIF89a\x01\0\x01\0\x80\0\0".to_vec();
        gif.extend([0; 6]);
        gif.extend(b"\x21\xf9\x04\0\0\0\0\0\x21\xfe\x05hello\x06 world\0,");
        let (version, comment) = read(&gif);
        assert_eq!(version.as_deref(), Some("GIF89a"));
        assert_eq!(comment.as_deref(), Some("hello world"));
        for length in 0..gif.len() {
            read(&gif[..length]);
        }
    }
}
