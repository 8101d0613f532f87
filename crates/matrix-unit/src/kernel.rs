//! One tile product, and how operands are laid out for it.
//!
//! A *line* is 64 bytes: 32 values in a row as bfloat16. A tile is sixteen lines. A *step* is 32 values of the sum: of the
//! left operand, three parts of 32 lines (two tiles), one line a row; of the right one, six tiles in a row, [part][half], in
//! which a line holds pairs of values for sixteen columns.

use std::arch::asm;
use std::arch::x86_64::{
    __m512, __m512i, _MM_HINT_ET0, _MM_HINT_T0, _mm_prefetch, _mm512_and_si512,
    _mm512_castps_si512, _mm512_castsi512_ps, _mm512_i32gather_ps, _mm512_loadu_ps,
    _mm512_loadu_si512, _mm512_mask_blend_epi16, _mm512_mask_storeu_ps, _mm512_maskz_loadu_ps,
    _mm512_permutex2var_epi16, _mm512_set1_epi32, _mm512_setzero_si512, _mm512_shuffle_i32x4,
    _mm512_srli_epi32, _mm512_store_si512, _mm512_sub_ps, _mm512_unpackhi_epi32,
    _mm512_unpackhi_epi64, _mm512_unpacklo_epi32, _mm512_unpacklo_epi64,
};

/// Values of the sum in a step, and rows and columns of a block of the output.
pub(super) const BLOCK: usize = 32;
/// Bytes of a line.
pub(super) const LINE: usize = 64;
/// Bytes of a tile.
const TILE: usize = 16 * LINE;
/// Parts of a value.
pub(super) const PARTS: usize = 3;
/// Bytes that a step takes of the right operand.
pub(super) const RIGHT_STEP: usize = PARTS * 2 * TILE;

/// `palette_id` 1 of the Intel SDM, volume 1, chapter 18: eight tiles of sixteen lines.
#[repr(C, align(64))]
struct TileConfig {
    palette: u8,
    start_row: u8,
    reserved: [u8; 14],
    line_bytes: [u16; 16],
    lines: [u8; 16],
}

static CONFIG: TileConfig = {
    let (mut line_bytes, mut lines) = ([0; 16], [0; 16]);
    let mut tile = 0;
    while tile < 8 {
        line_bytes[tile] = LINE as u16;
        lines[tile] = 16;
        tile += 1;
    }
    TileConfig {
        palette: 1,
        start_row: 0,
        reserved: [0; 14],
        line_bytes,
        lines,
    }
};

/// The calling thread's tiles, set up until it is dropped.
pub(super) struct Tiles;

impl Tiles {
    pub(super) fn set_up(_: super::MatrixUnit) -> Self {
        // SAFETY: there is a unit, and the configuration is one of its palette.
        unsafe { asm!("ldtilecfg [{}]", in(reg) &raw const CONFIG, options(nostack, readonly)) };
        Self
    }
}

impl Drop for Tiles {
    fn drop(&mut self) {
        // SAFETY: there is a unit; nothing is in its tiles that anybody needs.
        unsafe { asm!("tilerelease", options(nostack, nomem)) };
    }
}

/// Values in rows that are so many values apart; 0 is one row for all.
#[derive(Clone, Copy)]
pub(super) struct Rows<P> {
    pub(super) begin: P,
    pub(super) pitch: usize,
}

/// `to [32, 32] = from [32, 32] + left right`. For each step `offsets` tells, in bytes from `left`, where the 32 lines of its
/// first part begin; those of the next part lie `part` bytes further. `right` is read on from step to step.
///
/// # Safety
/// All of that must be readable, `to` writable, and no other thread may use `to` meanwhile.
pub(super) unsafe fn multiply(
    _tiles: &Tiles,
    (left, offsets, part): (*const u8, &[isize], usize),
    right: *const u8,
    from: Rows<*const f32>,
    to: Rows<*mut f32>,
) {
    if offsets.is_empty() {
        return;
    }
    // SAFETY: the caller's. Tiles 0 to 3 are the sums, 4 and 5 of the left operand, 6 and 7 of the right one.
    unsafe {
        asm!(
            "tileloadd tmm0, [{upper} + {pitch}]",
            "tileloadd tmm1, [{upper} + {pitch} + 64]",
            "tileloadd tmm2, [{lower} + {pitch}]",
            "tileloadd tmm3, [{lower} + {pitch} + 64]",
            upper = in(reg) from.begin,
            lower = in(reg) from.begin.add(16 * from.pitch),
            pitch = in(reg) from.pitch * size_of::<f32>(),
            options(nostack, readonly),
        );
        asm!(
            "2:",
            "mov {first}, [{offset}]",
            "add {offset}, 8",
            "add {first}, {left}",
            "lea {other}, [{first} + {part}]",
            // Part 1 with parts 1, 2 and 3 of the left operand.
            "tileloadd tmm6, [{right} + {line}]",
            "tileloadd tmm4, [{first} + {line}]",
            "tileloadd tmm7, [{right} + {line} + 1024]",
            "tileloadd tmm5, [{first} + {line} + 1024]",
            "tdpbf16ps tmm0, tmm4, tmm6",
            "tdpbf16ps tmm1, tmm4, tmm7",
            "tdpbf16ps tmm2, tmm5, tmm6",
            "tdpbf16ps tmm3, tmm5, tmm7",
            "tileloadd tmm4, [{other} + {line}]",
            "tileloadd tmm5, [{other} + {line} + 1024]",
            "lea {other}, [{other} + {part}]",
            "tdpbf16ps tmm0, tmm4, tmm6",
            "tdpbf16ps tmm1, tmm4, tmm7",
            "tdpbf16ps tmm2, tmm5, tmm6",
            "tdpbf16ps tmm3, tmm5, tmm7",
            "tileloadd tmm4, [{other} + {line}]",
            "tileloadd tmm5, [{other} + {line} + 1024]",
            "lea {other}, [{first} + {part}]",
            "tdpbf16ps tmm0, tmm4, tmm6",
            "tdpbf16ps tmm1, tmm4, tmm7",
            "tdpbf16ps tmm2, tmm5, tmm6",
            "tdpbf16ps tmm3, tmm5, tmm7",
            // Part 2 with parts 2 and 1.
            "tileloadd tmm6, [{right} + {line} + 2048]",
            "tileloadd tmm4, [{other} + {line}]",
            "tileloadd tmm7, [{right} + {line} + 3072]",
            "tileloadd tmm5, [{other} + {line} + 1024]",
            "tdpbf16ps tmm0, tmm4, tmm6",
            "tdpbf16ps tmm1, tmm4, tmm7",
            "tdpbf16ps tmm2, tmm5, tmm6",
            "tdpbf16ps tmm3, tmm5, tmm7",
            "tileloadd tmm4, [{first} + {line}]",
            "tileloadd tmm5, [{first} + {line} + 1024]",
            "tdpbf16ps tmm0, tmm4, tmm6",
            "tdpbf16ps tmm1, tmm4, tmm7",
            "tdpbf16ps tmm2, tmm5, tmm6",
            "tdpbf16ps tmm3, tmm5, tmm7",
            // Part 3 with part 1.
            "tileloadd tmm6, [{right} + {line} + 4096]",
            "tileloadd tmm7, [{right} + {line} + 5120]",
            "tdpbf16ps tmm0, tmm4, tmm6",
            "tdpbf16ps tmm1, tmm4, tmm7",
            "tdpbf16ps tmm2, tmm5, tmm6",
            "tdpbf16ps tmm3, tmm5, tmm7",
            "add {right}, 6144",
            "dec {steps}",
            "jnz 2b",
            left = in(reg) left,
            right = inout(reg) right => _,
            offset = inout(reg) offsets.as_ptr() => _,
            steps = inout(reg) offsets.len() => _,
            first = out(reg) _,
            other = out(reg) _,
            part = in(reg) part,
            line = in(reg) LINE,
            options(nostack, readonly),
        );
        asm!(
            "tilestored [{upper} + {pitch}], tmm0",
            "tilestored [{upper} + {pitch} + 64], tmm1",
            "tilestored [{lower} + {pitch}], tmm2",
            "tilestored [{lower} + {pitch} + 64], tmm3",
            upper = in(reg) to.begin,
            lower = in(reg) to.begin.add(16 * to.pitch),
            pitch = in(reg) to.pitch * size_of::<f32>(),
            options(nostack),
        );
    }
}

/// Has a block of the output brought near, to be written.
pub(super) fn expect(block: Rows<*mut f32>) {
    for row in 0..BLOCK {
        let begin = block.begin.wrapping_add(row * block.pitch);
        // SAFETY: a hint, which is none where nothing is.
        unsafe {
            _mm_prefetch::<_MM_HINT_ET0>(begin.cast());
            _mm_prefetch::<_MM_HINT_ET0>(begin.wrapping_add(16).cast());
        }
    }
}

/// Three values that add up to each of sixteen, in the upper half of the bits.
#[target_feature(enable = "avx512f,avx512bw")]
fn split(x: __m512) -> [__m512i; PARTS] {
    let upper = |x: __m512| {
        let mask = _mm512_set1_epi32(0xffff_0000_u32 as i32);
        _mm512_and_si512(_mm512_castps_si512(x), mask)
    };
    let first = upper(x);
    let rest = _mm512_sub_ps(x, _mm512_castsi512_ps(first));
    let second = upper(rest);
    let third = _mm512_sub_ps(rest, _mm512_castsi512_ps(second));
    [first, second, _mm512_castps_si512(third)]
}

/// 32 values in a row as lines, one a part.
#[target_feature(enable = "avx512f,avx512bw")]
fn lines(x: __m512, y: __m512) -> [__m512i; PARTS] {
    const ODD: [u16; 32] = {
        let (mut odd, mut at) = ([0; 32], 0);
        while at < 32 {
            odd[at] = 2 * at as u16 + 1;
            at += 1;
        }
        odd
    };
    // SAFETY: the array has the vector's size.
    let odd = unsafe { _mm512_loadu_si512(ODD.as_ptr().cast()) };
    let (x, y) = (split(x), split(y));
    std::array::from_fn(|part| _mm512_permutex2var_epi16(x[part], odd, y[part]))
}

/// Rows of sixteen words to columns.
#[target_feature(enable = "avx512f")]
fn transpose(rows: &mut [__m512i; 16]) {
    let mut other = [_mm512_setzero_si512(); 16];
    for pair in 0..8 {
        let (a, b) = (rows[2 * pair], rows[2 * pair + 1]);
        other[2 * pair] = _mm512_unpacklo_epi32(a, b);
        other[2 * pair + 1] = _mm512_unpackhi_epi32(a, b);
    }
    for four in 0..4 {
        let at = 4 * four;
        rows[at] = _mm512_unpacklo_epi64(other[at], other[at + 2]);
        rows[at + 1] = _mm512_unpackhi_epi64(other[at], other[at + 2]);
        rows[at + 2] = _mm512_unpacklo_epi64(other[at + 1], other[at + 3]);
        rows[at + 3] = _mm512_unpackhi_epi64(other[at + 1], other[at + 3]);
    }
    for at in 0..4 {
        other[at] = _mm512_shuffle_i32x4::<0x88>(rows[at], rows[at + 4]);
        other[at + 4] = _mm512_shuffle_i32x4::<0xdd>(rows[at], rows[at + 4]);
        other[at + 8] = _mm512_shuffle_i32x4::<0x88>(rows[at + 8], rows[at + 12]);
        other[at + 12] = _mm512_shuffle_i32x4::<0xdd>(rows[at + 8], rows[at + 12]);
    }
    for at in 0..4 {
        rows[at] = _mm512_shuffle_i32x4::<0x88>(other[at], other[at + 8]);
        rows[at + 8] = _mm512_shuffle_i32x4::<0xdd>(other[at], other[at + 8]);
        rows[at + 4] = _mm512_shuffle_i32x4::<0x88>(other[at + 4], other[at + 12]);
        rows[at + 12] = _mm512_shuffle_i32x4::<0xdd>(other[at + 4], other[at + 12]);
    }
}

/// The first `count` of sixteen.
fn mask(count: usize) -> u16 {
    if count >= 16 {
        u16::MAX
    } else {
        (1 << count) - 1
    }
}

/// The left operand of a linear layer: `count` rows of `32 steps` values to lines `[step][part][row]`, with `pitch` rows a
/// part; rows from `count` on are zero.
///
/// # Safety
/// `x` must be readable and `lines_out` aligned to lines and writable.
#[target_feature(enable = "avx512f,avx512bw")]
pub(super) unsafe fn pack_rows(
    x: Rows<*const f32>,
    (count, pitch): (usize, usize),
    steps: usize,
    lines_out: *mut u8,
) {
    for row in 0..pitch {
        for step in 0..steps {
            // SAFETY: the caller's.
            unsafe {
                let parts = if row < count {
                    let values = x.begin.add(row * x.pitch + step * BLOCK);
                    lines(_mm512_loadu_ps(values), _mm512_loadu_ps(values.add(16)))
                } else {
                    [_mm512_setzero_si512(); PARTS]
                };
                for (part, line) in parts.into_iter().enumerate() {
                    let at = (step * PARTS + part) * pitch + row;
                    _mm512_store_si512(lines_out.add(at * LINE).cast(), line);
                }
            }
        }
    }
}

/// The left operand of a convolution: `count` positions of 32 channels that are `plane` values apart, to lines
/// `[part][position]` with `part` bytes a part.
///
/// # Safety
/// As for [`pack_rows`].
#[target_feature(enable = "avx512f,avx512bw")]
pub(super) unsafe fn pack_positions(
    x: *const f32,
    plane: usize,
    count: usize,
    lines_out: *mut u8,
    part: usize,
) {
    for at in (0..count).step_by(16) {
        let some = mask(count - at);
        let mut tiles = [[_mm512_setzero_si512(); 16]; PARTS];
        // SAFETY: the caller's.
        unsafe {
            for pair in 0..16 {
                let even = x.add(2 * pair * plane + at);
                let odd = split(_mm512_maskz_loadu_ps(some, even.add(plane)));
                let even = split(_mm512_maskz_loadu_ps(some, even));
                for (part, tile) in tiles.iter_mut().enumerate() {
                    let low = _mm512_srli_epi32::<16>(even[part]);
                    tile[pair] = _mm512_mask_blend_epi16(0xaaaa_aaaa, low, odd[part]);
                }
            }
            for (number, tile) in tiles.iter_mut().enumerate() {
                transpose(tile);
                for (position, line) in tile.iter().take(count - at).enumerate() {
                    let to = lines_out.add(number * part + (at + position) * LINE);
                    _mm512_store_si512(to.cast(), *line);
                }
            }
        }
    }
}

/// The right operand: 32 rows of weights `[32 blocks, taps]`, `row` values apart, to the tiles of steps in the order
/// `[block][tap]`.
///
/// # Safety
/// As for [`pack_rows`].
#[target_feature(enable = "avx512f,avx512bw")]
pub(super) unsafe fn pack_weights(
    weights: *const f32,
    row: usize,
    (blocks, taps): (usize, usize),
    tiles_out: *mut u8,
) {
    let strides: [i32; 16] = std::array::from_fn(|at| (at * taps) as i32);
    // SAFETY: the caller's; the array has the vector's size.
    unsafe {
        let strides = _mm512_loadu_si512(strides.as_ptr().cast());
        for step in 0..blocks * taps {
            let (block, tap) = (step / taps, step % taps);
            for half in 0..2 {
                let mut tiles = [[_mm512_setzero_si512(); 16]; PARTS];
                for line in 0..16 {
                    // Of the step after the next, or of the next block: 32 values of a row are two lines of the cache.
                    let ahead = if taps == 1 { 2 * BLOCK } else { BLOCK * taps };
                    let later = weights.wrapping_add(
                        (half * 16 + line) * row + (block * taps + tap) * BLOCK + ahead,
                    );
                    _mm_prefetch::<_MM_HINT_T0>(later.cast());
                    _mm_prefetch::<_MM_HINT_T0>(later.wrapping_add(16).cast());
                    let values = weights.add((half * 16 + line) * row + block * BLOCK * taps + tap);
                    let next = values.add(16 * taps);
                    let parts = if taps == 1 {
                        lines(_mm512_loadu_ps(values), _mm512_loadu_ps(next))
                    } else {
                        let values = _mm512_i32gather_ps::<4>(strides, values.cast());
                        lines(values, _mm512_i32gather_ps::<4>(strides, next.cast()))
                    };
                    for (tile, part) in tiles.iter_mut().zip(parts) {
                        tile[line] = part;
                    }
                }
                for (part, tile) in tiles.iter_mut().enumerate() {
                    transpose(tile);
                    let to = tiles_out.add(step * RIGHT_STEP + part * 2 * TILE + half * TILE);
                    for (line, pairs) in tile.iter().enumerate() {
                        _mm512_store_si512(to.add(line * LINE).cast(), *pairs);
                    }
                }
            }
        }
    }
}

/// `count` positions of 32 channels to rows of channels that are `plane` values apart.
///
/// # Safety
/// As for [`pack_rows`].
#[target_feature(enable = "avx512f,avx512bw")]
pub(super) unsafe fn unpack_positions(
    positions: *const f32,
    count: usize,
    y: *mut f32,
    plane: usize,
) {
    for at in (0..count).step_by(16) {
        let left = (count - at).min(16);
        for half in 0..2 {
            let mut rows = [_mm512_setzero_si512(); 16];
            // SAFETY: the caller's.
            unsafe {
                for (position, row) in rows.iter_mut().take(left).enumerate() {
                    let from = positions.add((at + position) * BLOCK + half * 16);
                    *row = _mm512_loadu_si512(from.cast());
                }
                transpose(&mut rows);
                for (channel, row) in rows.iter().enumerate() {
                    let to = y.add((half * 16 + channel) * plane + at);
                    _mm512_mask_storeu_ps(to, mask(left), _mm512_castsi512_ps(*row));
                }
            }
        }
    }
}
