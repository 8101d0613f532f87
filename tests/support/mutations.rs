//! Mutations of files and texts from a fixed seed, for tests that readers never panic on any input.

use std::io::Write as _;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

/// Vigna's SplitMix64.
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub(crate) fn below(&mut self, limit: usize) -> usize {
        (self.next() % limit.max(1) as u64) as usize
    }
}

/// Texts that readers of model files look for, and numbers at the edges.
const MODEL_PIECES: &[&[u8]] = &[
    b"\"shape\":[",
    b"\"dtype\":\"F32\"",
    b"\"data_offsets\":[0,18446744073709551615]",
    b"\"__metadata__\"",
    b"[[[[[[[[[[[[[[[[",
    b"-1",
    b"1e308",
    b"18446744073709551616",
    b"4294967296",
    b"\\ud800",
    b"\xff\xff\xff\xff\xff\xff\xff\x7f",
    b"\xff\xff\xff\xff",
    b"\x00\x00\x00\x00",
    b"PK\x05\x06",
    b"PK\x06\x06",
    b"ctorch._utils\n_rebuild_tensor_v2\n",
    b"cos\nsystem\n",
    b"X\xff\xff\xff\x7f",
    b"\x8a\xff",
    b"(((((((((((t",
    b"R",
    b"Q",
    b"b",
    b"s",
    b"u",
    b".",
];

/// Texts that readers of prompts, infotexts and requests look for.
const REQUEST_PIECES: &[&[u8]] = &[
    b"(",
    b")",
    b"[",
    b"]",
    b":",
    b":1.3)",
    b"|",
    b"\\",
    b" AND ",
    b" BREAK ",
    b"<lora:a:0.5:te=1:dyn=4>",
    b"<hypernet:h>",
    b"__color__",
    b"__deep__",
    b"{2-3$$, $$a|2::b}",
    b"${x=!{p|q}}",
    b"((((((((((((((((",
    b"[[[[[[[[[[[[[[[[",
    b"{{{{{{{{{{{{{{{{",
    b"\nNegative prompt: ",
    b"\nSteps: ",
    b", Size: 999999999999x-1",
    b", Version: v1.",
    b"\"",
    b",",
    b"\n",
    b"null",
    b"-1",
    b"1e400",
    b"NaN",
    b"1e308",
    b"18446744073709551616",
    b"9223372036854775807",
    b"-9223372036854775809",
    b"0.0000000000000000000001",
    b"\\ud800",
    b"\xe2\x80\x8b",
    b"\xf0\x9f\x98\x80",
    b"\xff",
];

/// `seed`, part of a model file, with up to eight bytes, pieces or lengths changed.
pub(crate) fn mutated(random: &mut Random, seed: &[u8]) -> Vec<u8> {
    mutated_with(random, seed, MODEL_PIECES)
}

/// `seed`, part of a request, with up to eight bytes, pieces or lengths changed.
pub(crate) fn mutated_request(random: &mut Random, seed: &[u8]) -> Vec<u8> {
    mutated_with(random, seed, REQUEST_PIECES)
}

fn mutated_with(random: &mut Random, seed: &[u8], pieces: &[&[u8]]) -> Vec<u8> {
    let mut bytes = seed.to_vec();
    for _ in 0..=random.below(8) {
        let at = random.below(bytes.len() + 1);
        match random.below(8) {
            0 if !bytes.is_empty() => {
                let at = at.min(bytes.len() - 1);
                bytes[at] ^= 1 << random.below(8);
            }
            1 if !bytes.is_empty() => {
                let at = at.min(bytes.len() - 1);
                bytes[at] = random.next() as u8;
            }
            2 => bytes.truncate(at),
            3 => {
                let piece = pieces[random.below(pieces.len())];
                bytes.splice(at..at, piece.iter().copied());
            }
            4 => {
                let piece = pieces[random.below(pieces.len())];
                let end = (at + piece.len()).min(bytes.len());
                bytes.splice(at..end, piece.iter().copied());
            }
            5 => {
                let end = (at + random.below(64)).min(bytes.len());
                bytes.drain(at..end);
            }
            6 => {
                let from = random.below(bytes.len() + 1);
                let end = (from + random.below(64)).min(bytes.len());
                let copy = bytes[from..end].to_vec();
                bytes.splice(at..at, copy);
            }
            _ => {
                let number = [
                    0_u64,
                    1,
                    0x7f,
                    0xff,
                    0xffff,
                    u64::from(u32::MAX),
                    u64::MAX / 2,
                    u64::MAX,
                ][random.below(8)];
                let end = (at + 8).min(bytes.len());
                bytes.splice(at..end, number.to_le_bytes());
            }
        }
    }
    bytes
}

/// How many mutations a target gets: a few in a normal run, many by `scripts/fuzz`.
fn mutation_count() -> u64 {
    std::env::var("ANCESTRAL_MUTATIONS")
        .ok()
        .and_then(|text| text.parse().ok())
        .unwrap_or(400)
}

/// Feeds `read` with inputs from fixed seeds, and says which seed made it panic, which took longest and
/// how the process's memory went.
pub(crate) fn never_panics(
    name: &str,
    make: impl Fn(&mut Random) -> Vec<u8>,
    read: impl Fn(&[u8]),
) {
    let count = mutation_count();
    let (mut slowest, mut warm) = ((Duration::ZERO, 0), resident_mib());
    for seed in 0..count {
        let bytes = make(&mut Random::new(seed));
        let begin = Instant::now();
        let outcome = catch_unwind(AssertUnwindSafe(|| read(&bytes)));
        slowest = slowest.max((begin.elapsed(), seed));
        assert!(
            outcome.is_ok(),
            "{name}: the input of seed {seed} makes the reader panic"
        );
        if seed == count / 10 {
            warm = resident_mib();
        }
    }
    eprintln!(
        "{name}: {count} inputs, the slowest took {:?} (seed {}), {warm} MiB after a tenth, {} MiB at the end",
        slowest.0,
        slowest.1,
        resident_mib()
    );
}

/// MiB of this process's memory; 0 where the system does not say.
fn resident_mib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = line.and_then(|line| line.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok());
    kib.unwrap_or_default() / 1024
}

/// `seed`, a picture file, mutated; the checksums of a PNG are half of the time made right again, so that what
/// they guard is reached.
pub(crate) fn mutated_picture_file(random: &mut Random, seed: &[u8]) -> Vec<u8> {
    const SIGNATURE: usize = 8;
    let mut bytes = mutated(random, seed);
    if !bytes.starts_with(b"\x89PNG") || random.below(2) == 0 {
        return bytes;
    }
    let mut begin = SIGNATURE;
    while let Some(length) = bytes.get(begin..begin + 4) {
        let length = u32::from_be_bytes(length.try_into().expect("four bytes")) as usize;
        let end = begin + 8 + length;
        if end + 4 > bytes.len() {
            break;
        }
        let mut checksum = flate2::Crc::new();
        checksum.update(&bytes[begin + 4..end]);
        bytes[end..end + 4].copy_from_slice(&checksum.sum().to_be_bytes());
        begin = end + 4;
    }
    bytes
}

/// A picture around mutated data of a textual inversion: in a text chunk, hidden in the pixels, or the
/// file itself mutated.
pub(crate) fn mutated_picture(random: &mut Random) -> Vec<u8> {
    const JSON: &[u8] = br#"{"name":"w","string_to_param":{"*":{"TORCHTENSOR":[[1.5,-2.0],[0.5,0.25]]}},"step":7,"sd_checkpoint":"abc","sd_checkpoint_name":null}"#;
    let json = mutated(random, JSON);
    match random.below(4) {
        0 => {
            let text = base64::Engine::encode(&base64::engine::general_purpose::STANDARD, json);
            png_with_text(&text, random.below(2) == 0)
        }
        1 => {
            let text = mutated(random, b"eyJuYW1lIjoidyJ9");
            png_with_text(&String::from_utf8_lossy(&text), random.below(2) == 0)
        }
        2 => hidden(random, &json),
        _ => {
            let whole = hidden(random, JSON);
            mutated_picture_file(random, &whole)
        }
    }
}

fn png_with_text(text: &str, compressed: bool) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut encoder = png::Encoder::new(&mut bytes, 2, 2);
    let ascii: String = text
        .chars()
        .map(|c| if c.is_ascii() { c } else { '?' })
        .collect();
    let keyword = "sd-ti-embedding".to_owned();
    let added = if compressed {
        encoder.add_ztxt_chunk(keyword, ascii)
    } else {
        encoder.add_text_chunk(keyword, ascii)
    };
    added.expect("a legal keyword");
    let mut writer = encoder.write_header().expect("memory does not fail");
    writer
        .write_image_data(&[0; 4])
        .expect("memory does not fail");
    writer.finish().expect("memory does not fail");
    bytes
}

fn hidden(random: &mut Random, json: &[u8]) -> Vec<u8> {
    let mut packer = flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::fast());
    packer.write_all(json).expect("memory does not fail");
    let mut packed = packer.finish().expect("memory does not fail");
    if random.below(2) == 0 {
        packed = mutated(random, &packed);
    }
    let (height, block) = (1 + random.below(5), 4 + random.below(20));
    packed.resize(height * block * 3, 0);
    let width = 2 * block + 5;
    let mut pixels = vec![0xf0_u8; width * height * 3];
    for (shift, begin) in [(0, 0), (4, width - block)] {
        let (mut state, mut rest) = (0_u32, packed.iter());
        for y in 0..height {
            for x in begin..begin + block {
                for channel in 0..3 {
                    state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                    let value = rest.next().map_or(0, |byte| byte >> shift & 0x0f);
                    pixels[(y * width + x) * 3 + channel] |= value ^ ((state % 255) as u8 & 0x0f);
                }
            }
        }
    }
    let mut bytes = Vec::new();
    let mut encoder = png::Encoder::new(&mut bytes, width as u32, height as u32);
    encoder.set_color(png::ColorType::Rgb);
    let mut writer = encoder.write_header().expect("memory does not fail");
    writer
        .write_image_data(&pixels)
        .expect("memory does not fail");
    writer.finish().expect("memory does not fail");
    bytes
}
