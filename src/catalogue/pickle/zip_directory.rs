//! Where the members of a zip archive lie, as far as torch's archives need it: central directory,
//! zip64 sizes, stored and deflated members. Encrypted, split and other archives are refused.

use std::collections::HashMap;
use std::io::{Read, Seek, SeekFrom};

use flate2::read::DeflateDecoder;

use super::PickleError;

const END_SIGNATURE: &[u8; 4] = b"PK\x05\x06";
const END64_LOCATOR_SIGNATURE: &[u8; 4] = b"PK\x06\x07";
const END64_SIGNATURE: &[u8; 4] = b"PK\x06\x06";
const ENTRY_SIGNATURE: &[u8; 4] = b"PK\x01\x02";
const LOCAL_SIGNATURE: &[u8; 4] = b"PK\x03\x04";
/// The longest central directory that is read; real ones are under 1 MiB.
const MAX_DIRECTORY_BYTES: u64 = 64 << 20;
/// The end record with the longest comment.
const MAX_END_BYTES: u64 = 22 + 65_535;

/// One member of an archive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Member {
    deflated: bool,
    packed_bytes: u64,
    /// Size once unpacked.
    pub(super) size_bytes: u64,
    header_offset: u64,
}

/// An archive's table of contents.
#[derive(Debug)]
pub(super) struct ZipDirectory {
    members: HashMap<String, Member>,
    file_size: u64,
}

impl ZipDirectory {
    /// Reads the central directory of a file of `file_size` bytes.
    pub(super) fn read(file: &mut fs_err::File, file_size: u64) -> Result<Self, PickleError> {
        let tail_length = file_size.min(MAX_END_BYTES);
        let tail = read_at(file, file_size - tail_length, tail_length)?;
        let end = find_end(&tail).ok_or(PickleError::Truncated)?;
        let record = &tail[end..];
        let (mut count, mut length, mut offset) = (
            u64::from(u16_at(record, 10)?),
            u64::from(u32_at(record, 12)?),
            u64::from(u32_at(record, 16)?),
        );
        if count == 0xffff || length == 0xffff_ffff || offset == 0xffff_ffff {
            let locator = end.checked_sub(20).ok_or_else(|| damaged("no zip64 end"))?;
            let locator = &tail[locator..];
            if !locator.starts_with(END64_LOCATOR_SIGNATURE) {
                return Err(damaged("no zip64 end"));
            }
            let end64 = read_at(file, u64_at(locator, 8)?, 56)?;
            if !end64.starts_with(END64_SIGNATURE) {
                return Err(damaged("no zip64 end"));
            }
            count = u64_at(&end64, 32)?;
            length = u64_at(&end64, 40)?;
            offset = u64_at(&end64, 48)?;
        }
        let inside = offset
            .checked_add(length)
            .is_some_and(|end| end <= file_size);
        if !inside || length > MAX_DIRECTORY_BYTES || count > length / 46 {
            return Err(damaged("its zip directory claims more than there is"));
        }
        let directory = read_at(file, offset, length)?;
        let members = parse_entries(&directory, count)?;
        Ok(Self { members, file_size })
    }

    pub(super) fn names(&self) -> impl Iterator<Item = &str> {
        self.members.keys().map(String::as_str)
    }

    pub(super) fn get(&self, name: &str) -> Option<Member> {
        self.members.get(name).copied()
    }

    /// Where the bytes of a member begin in the file, if they are there as they are.
    pub(super) fn stored_at(
        &self,
        file: &mut fs_err::File,
        member: Member,
    ) -> Result<Option<u64>, PickleError> {
        let begin = self.packed_at(file, member)?;
        if !member.deflated && member.packed_bytes != member.size_bytes {
            return Err(damaged("a stored zip member has two sizes"));
        }
        Ok((!member.deflated).then_some(begin))
    }

    /// The unpacked bytes of a member of at most `limit` bytes.
    pub(super) fn read_member(
        &self,
        file: &mut fs_err::File,
        member: Member,
        limit: u64,
    ) -> Result<Vec<u8>, PickleError> {
        let begin = self.packed_at(file, member)?;
        if member.size_bytes > limit || member.packed_bytes > limit {
            return Err(PickleError::TooLarge { limit });
        }
        let packed = read_at(file, begin, member.packed_bytes)?;
        if !member.deflated {
            return Ok(packed);
        }
        // One byte more than claimed is asked for, so that a member which lies is noticed.
        let mut bytes = Vec::new();
        DeflateDecoder::new(packed.as_slice())
            .take(member.size_bytes + 1)
            .read_to_end(&mut bytes)
            .map_err(|error| damaged(&format!("a zip member cannot be unpacked: {error}")))?;
        if bytes.len() as u64 == member.size_bytes {
            Ok(bytes)
        } else {
            Err(damaged("a zip member has another size than it claims"))
        }
    }

    fn packed_at(&self, file: &mut fs_err::File, member: Member) -> Result<u64, PickleError> {
        let header = read_at(file, member.header_offset, 30)?;
        if !header.starts_with(LOCAL_SIGNATURE) {
            return Err(damaged("a zip member is not where it should be"));
        }
        let names = u64::from(u16_at(&header, 26)?) + u64::from(u16_at(&header, 28)?);
        let begin = member.header_offset + 30 + names;
        let end = begin.checked_add(member.packed_bytes);
        if end.is_none_or(|end| end > self.file_size) {
            return Err(PickleError::Truncated);
        }
        Ok(begin)
    }
}

fn parse_entries(directory: &[u8], count: u64) -> Result<HashMap<String, Member>, PickleError> {
    let mut members = HashMap::new();
    let mut rest = directory;
    for _ in 0..count {
        if !rest.starts_with(ENTRY_SIGNATURE) {
            return Err(damaged("its zip directory is cut off"));
        }
        if u16_at(rest, 8)? & 1 != 0 {
            return Err(damaged("it is encrypted"));
        }
        let deflated = match u16_at(rest, 10)? {
            0 => false,
            8 => true,
            other => return Err(damaged(&format!("zip method {other} is not known"))),
        };
        let (name_length, extra_length, comment_length) = (
            usize::from(u16_at(rest, 28)?),
            usize::from(u16_at(rest, 30)?),
            usize::from(u16_at(rest, 32)?),
        );
        let cut = || damaged("its zip directory is cut off");
        let extra_begin = 46 + name_length;
        let name = rest.get(46..extra_begin).ok_or_else(cut)?;
        let extra = rest
            .get(extra_begin..extra_begin + extra_length)
            .ok_or_else(cut)?;
        let [size_bytes, packed_bytes, header_offset] = sizes(
            [u32_at(rest, 24)?, u32_at(rest, 20)?, u32_at(rest, 42)?],
            extra,
        )?;
        // Additions to it (a local header, names) must not overflow.
        if header_offset > u64::MAX / 2 {
            return Err(damaged("a zip member is not where it should be"));
        }
        members.insert(
            String::from_utf8_lossy(name).into_owned(),
            Member {
                deflated,
                packed_bytes,
                size_bytes,
                header_offset,
            },
        );
        rest = rest
            .get(extra_begin + extra_length + comment_length..)
            .ok_or_else(cut)?;
    }
    Ok(members)
}

/// Size, packed size and offset; those that are all ones stand in the zip64 field, in this order.
fn sizes(short: [u32; 3], extra: &[u8]) -> Result<[u64; 3], PickleError> {
    let mut long: &[u8] = &[];
    let mut rest = extra;
    while rest.len() >= 4 {
        let (kind, length) = (u16_at(rest, 0)?, usize::from(u16_at(rest, 2)?));
        let body = rest.get(4..4 + length).unwrap_or_default();
        if kind == 1 {
            long = body;
        }
        rest = rest.get(4 + length..).unwrap_or_default();
    }
    let mut at = 0;
    let mut sizes = [0; 3];
    for (size, short) in sizes.iter_mut().zip(short) {
        *size = u64::from(short);
        if short == u32::MAX {
            *size = u64_at(long, at)?;
            at += 8;
        }
    }
    Ok(sizes)
}

/// The last end record whose comment reaches exactly to the end.
fn find_end(tail: &[u8]) -> Option<usize> {
    (0..tail.len().saturating_sub(21)).rev().find(|&at| {
        let record = &tail[at..];
        record.starts_with(END_SIGNATURE)
            && u16_at(record, 20).is_ok_and(|length| usize::from(length) == record.len() - 22)
    })
}

/// `length` bytes from `offset` on. The caller has bounded `length`.
pub(super) fn read_at(
    file: &mut fs_err::File,
    offset: u64,
    length: u64,
) -> Result<Vec<u8>, PickleError> {
    file.seek(SeekFrom::Start(offset))?;
    let mut bytes = Vec::new();
    file.by_ref().take(length).read_to_end(&mut bytes)?;
    if bytes.len() as u64 == length {
        Ok(bytes)
    } else {
        Err(PickleError::Truncated)
    }
}

fn damaged(reason: &str) -> PickleError {
    PickleError::Damaged(reason.to_owned())
}

fn u16_at(bytes: &[u8], at: usize) -> Result<u16, PickleError> {
    Ok(u16::from_le_bytes(array_at(bytes, at)?))
}

fn u32_at(bytes: &[u8], at: usize) -> Result<u32, PickleError> {
    Ok(u32::from_le_bytes(array_at(bytes, at)?))
}

fn u64_at(bytes: &[u8], at: usize) -> Result<u64, PickleError> {
    Ok(u64::from_le_bytes(array_at(bytes, at)?))
}

fn array_at<const N: usize>(bytes: &[u8], at: usize) -> Result<[u8; N], PickleError> {
    bytes
        .get(at..)
        .and_then(|rest| rest.first_chunk::<N>())
        .copied()
        .ok_or_else(|| damaged("its zip directory is cut off"))
}
