//! OpenCV 4's 8-bit conversion between RGB and L*a*b* (sRGB gamma, D65), which is fixed-point
//! arithmetic over small tables; the tables are rounded from the same f32 formulas.

use std::sync::LazyLock;

use image::RgbImage;

/// Row-major, RGB to XYZ, and its inverse, as OpenCV rounds them.
const RGB_TO_XYZ: [[f64; 3]; 3] = [
    [0.412_453, 0.357_580, 0.180_423],
    [0.212_671, 0.715_160, 0.072_169],
    [0.019_334, 0.119_193, 0.950_227],
];
const XYZ_TO_RGB: [[f64; 3]; 3] = [
    [3.240_479, -1.537_15, -0.498_535],
    [-0.969_256, 1.875_991, 0.041_556],
    [0.055_648, -0.204_043, 1.057_311],
];
const D65: [f64; 3] = [0.950_456, 1.0, 1.088_754];

/// Fractional bits of matrices, of linear light, of the cube root, of L*a*b* internals and of gamma.
const MATRIX_BITS: u32 = 12;
const GAMMA_BITS: u32 = 3;
const ROOT_BITS: u32 = MATRIX_BITS + GAMMA_BITS;
const BASE: i32 = 1 << 14;
const INVERSE_GAMMA_BITS: u32 = 12;
/// The lowest index of the table that turns f(x) and f(z) back into x and z.
const LOWEST_AB: i32 = -8145;

struct Tables {
    /// 8-bit sRGB to linear light times 8.
    linear: [i32; 256],
    root: Vec<i32>,
    to_xyz: [[i32; 3]; 3],
    /// L* to Y and f(Y).
    y_of_l: [(i32, i32); 256],
    cube: Vec<i32>,
    to_rgb: [[i32; 3]; 3],
    gamma: Vec<u8>,
}

static TABLES: LazyLock<Tables> = LazyLock::new(|| Tables {
    linear: std::array::from_fn(|level| {
        let light = linear_of_srgb(level as f32 / 255.0);
        round(255.0 * (1 << GAMMA_BITS) as f32 * light)
    }),
    root: (0..256 * 3 / 2 * (1 << GAMMA_BITS)).map(root_of).collect(),
    to_xyz: std::array::from_fn(|row| {
        std::array::from_fn(|column| fixed(RGB_TO_XYZ[row][column] / D65[row]))
    }),
    y_of_l: std::array::from_fn(|level| y_of(level as i32)),
    cube: (LOWEST_AB..BASE * 9 / 4 + LOWEST_AB).map(cube_of).collect(),
    to_rgb: std::array::from_fn(|row| {
        std::array::from_fn(|column| fixed(XYZ_TO_RGB[row][column] * D65[column]))
    }),
    gamma: (0..1 << INVERSE_GAMMA_BITS)
        .map(|light| {
            let light = light as f32 / (1 << INVERSE_GAMMA_BITS) as f32;
            round(255.0 * srgb_of_linear(light)) as u8
        })
        .collect(),
});

fn round(value: f32) -> i32 {
    value.round_ties_even() as i32
}

fn fixed(value: f64) -> i32 {
    (value * f64::from(1 << MATRIX_BITS)).round_ties_even() as i32
}

fn linear_of_srgb(x: f32) -> f32 {
    let x = f64::from(x);
    if x <= 0.04045 {
        (x / 12.92) as f32
    } else {
        ((x + 0.055) / 1.055).powf(2.4) as f32
    }
}

fn srgb_of_linear(x: f32) -> f32 {
    let x = f64::from(x);
    if x <= 0.003_130_8 {
        (x * 12.92) as f32
    } else {
        (x.powf(1.0 / 2.4) * 1.055 - 0.055) as f32
    }
}

/// CIE's f: the cube root with its linear foot.
fn root_of(index: i32) -> i32 {
    let x = (1.0 / (255.0 * (1 << GAMMA_BITS) as f32)) * index as f32;
    let f = if x < 216.0 / 24389.0 {
        x.mul_add(841.0 / 108.0, 16.0 / 116.0)
    } else {
        // OpenCV's own cube root cuts its result down to f32 instead of rounding it.
        let root = f64::from(x).cbrt().to_bits() & !0x1fff_ffff;
        f64::from_bits(root) as f32
    };
    round((1 << ROOT_BITS) as f32 * f)
}

fn y_of(l: i32) -> (i32, i32) {
    if l <= 20 {
        let y = (l * BASE * 20 * 9) as f32 / (17 * 29 * 29 * 29) as f32;
        let f = BASE as f32 * (16.0 / 116.0 + (l * 5) as f32 / (3 * 17 * 29) as f32);
        (round(y), round(f))
    } else {
        let f = (l * 100 * BASE) as f32 / (255 * 116) as f32 + (16 * BASE) as f32 / 116.0;
        (round(f * f * f / (BASE as f32 * BASE as f32)), round(f))
    }
}

fn cube_of(f: i32) -> i32 {
    if f <= 3390 {
        f * 108 / 841 - BASE * 16 / 116 * 108 / 841
    } else {
        f * f / BASE * f / BASE
    }
}

/// `(value + half) >> bits`, OpenCV's descaling.
fn descale(value: i32, bits: u32) -> i32 {
    (value + (1 << (bits - 1))) >> bits
}

fn dot(row: [i32; 3], vector: [i32; 3]) -> i32 {
    row[0] * vector[0] + row[1] * vector[1] + row[2] * vector[2]
}

fn clip8(value: i32) -> u8 {
    value.clamp(0, 255) as u8
}

/// L*, a*, b* of a pixel, each scaled to 0..255.
fn lab_of_pixel(tables: &Tables, rgb: [u8; 3]) -> [u8; 3] {
    const L_SCALE: i32 = (116 * 255 + 50) / 100;
    const L_SHIFT: i32 = -((16 * 255 * (1 << ROOT_BITS) + 50) / 100);
    const MIDDLE: i32 = 128 << ROOT_BITS;
    let light = rgb.map(|level| tables.linear[usize::from(level)]);
    let f = |row| tables.root[descale(dot(row, light), MATRIX_BITS) as usize];
    let [fx, fy, fz] = tables.to_xyz.map(f);
    [
        clip8(descale(L_SCALE * fy + L_SHIFT, ROOT_BITS)),
        clip8(descale(500 * (fx - fy) + MIDDLE, ROOT_BITS)),
        clip8(descale(200 * (fy - fz) + MIDDLE, ROOT_BITS)),
    ]
}

fn rgb_of_pixel(tables: &Tables, [l, a, b]: [u8; 3]) -> [u8; 3] {
    let (y, fy) = tables.y_of_l[usize::from(l)];
    let a_share = ((5 * i32::from(a) * 53687 + (1 << 7)) >> 13) - 128 * BASE / 500;
    let b_share = ((i32::from(b) * 41943 + (1 << 4)) >> 9) - 128 * BASE / 200 + 1;
    let cube = |f: i32| tables.cube[(f - LOWEST_AB) as usize];
    let xyz = [cube(fy + a_share), y, cube(fy - b_share)];
    tables.to_rgb.map(|row| {
        let light = descale(dot(row, xyz), MATRIX_BITS + 14 - INVERSE_GAMMA_BITS);
        tables.gamma[light.clamp(0, (1 << INVERSE_GAMMA_BITS) - 1) as usize]
    })
}

/// `cvtColor(…, COLOR_RGB2LAB)`.
pub(super) fn lab_of_rgb(picture: &RgbImage) -> RgbImage {
    map_pixels(picture, |pixel| lab_of_pixel(&TABLES, pixel))
}

/// `cvtColor(…, COLOR_LAB2RGB)`.
pub(super) fn rgb_of_lab(picture: &RgbImage) -> RgbImage {
    map_pixels(picture, |pixel| rgb_of_pixel(&TABLES, pixel))
}

fn map_pixels(picture: &RgbImage, of: impl Fn([u8; 3]) -> [u8; 3]) -> RgbImage {
    let mut out = picture.clone();
    for pixel in out.pixels_mut() {
        pixel.0 = of(pixel.0);
    }
    out
}
