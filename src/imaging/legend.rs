//! Titles beside a grid's columns and rows, as A1111 v1.10.1 lays them out.
//!
//! Sizes are A1111's: the font's size is a 25th of a cell's width and height together, row titles take
//! three quarters of a cell's width, column titles the height of the highest of them. The letters are
//! Roboto's, drawn without FreeType's hinting, so that their edges differ from A1111's.

use ab_glyph::{Font, FontRef, PxScale, ScaleFont, point};
use image::{Rgb, RgbImage};

use super::composite::{crop, mix, paste};

static ROBOTO: &[u8] = include_bytes!("roboto/Roboto-Regular.ttf");
/// Made by `scripts/roboto_extents.py`.
static EXTENTS: &[u8] = include_bytes!("roboto/extents.bin");
const EXTENT_CHARACTERS: std::ops::RangeInclusive<u8> = b'!'..=b'~';

/// One title of a column or row; a row or column may have several, below each other.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Title {
    pub text: String,
    /// Struck out where not.
    pub active: bool,
}

impl Title {
    /// A title that is not struck out.
    #[must_use]
    pub fn new(text: impl Into<String>) -> Self {
        Self {
            text: text.into(),
            active: true,
        }
    }
}

/// The options `grid_text_active_color`, `grid_text_inactive_color` and `grid_background_color`.
#[derive(Debug, Clone, Copy)]
pub struct LegendColours {
    pub active: Rgb<u8>,
    pub inactive: Rgb<u8>,
    pub background: Rgb<u8>,
}

/// What stands beside a grid.
#[derive(Debug, Clone, Copy)]
pub struct Legend<'a> {
    /// Titles of each column.
    pub columns: &'a [Vec<Title>],
    /// Titles of each row.
    pub rows: &'a [Vec<Title>],
    /// Pixels between cells.
    pub margin: u32,
    pub colours: LegendColours,
}

/// `grid`, made of cells of this width and height, with its legend and with room between the cells.
///
/// # Panics
/// Never for a cell of at least one pixel.
#[must_use]
pub fn with_legend(grid: &RgbImage, (width, height): (u32, u32), legend: Legend<'_>) -> RgbImage {
    let typeface = Typeface::new((width + height) / 25);
    let has_text = |titles: &[Vec<Title>]| titles.iter().flatten().any(|it| !it.text.is_empty());
    let left = if has_text(legend.rows) {
        width * 3 / 4
    } else {
        0
    };
    let columns: Vec<Block> = legend
        .columns
        .iter()
        .map(|titles| Block::new(titles, width, &typeface))
        .collect();
    let rows: Vec<Block> = legend
        .rows
        .iter()
        .map(|titles| Block::new(titles, left, &typeface))
        .collect();
    let highest = columns.iter().map(|it| it.height).max().unwrap_or(0);
    let top = match columns.iter().map(|it| it.height).sum::<u32>() {
        0 => 0,
        _ => highest + typeface.spacing * 2,
    };
    let count = |side: u32, cell: u32| (side / cell.max(1)).max(1);
    let (across, down) = (count(grid.width(), width), count(grid.height(), height));
    let mut picture = RgbImage::from_pixel(
        grid.width() + left + legend.margin * (across - 1),
        grid.height() + top + legend.margin * (down - 1),
        legend.colours.background,
    );
    for row in 0..down {
        for column in 0..across {
            let cell = crop(
                grid,
                i64::from(column * width),
                i64::from(row * height),
                width,
                height,
            );
            let x = left + (width + legend.margin) * column;
            let y = top + (height + legend.margin) * row;
            paste(&mut picture, &cell, i64::from(x), i64::from(y));
        }
    }
    for (column, block) in (0..across).zip(&columns) {
        let x = left + (width + legend.margin) * column + width / 2;
        let y = top as f32 / 2.0 - block.height as f32 / 2.0;
        block.draw(&mut picture, (x as f32, y), &typeface, legend.colours);
    }
    for (row, block) in (0..down).zip(&rows) {
        let middle = top + (height + legend.margin) * row + height / 2;
        let y = middle as f32 - block.height as f32 / 2.0;
        block.draw(
            &mut picture,
            (left as f32 / 2.0, y),
            &typeface,
            legend.colours,
        );
    }
    picture
}

/// Roboto at the size of a grid's legend.
struct Typeface {
    font: FontRef<'static>,
    size_px: u32,
    /// Pixels between lines.
    spacing: u32,
}

impl Typeface {
    fn new(size_px: u32) -> Self {
        Self {
            font: FontRef::try_from_slice(ROBOTO).expect("the embedded font is whole"),
            size_px,
            spacing: size_px / 2,
        }
    }

    /// Pillow's size of a font is that of its em square.
    fn scale(&self, size_px: u32) -> PxScale {
        let units = self.font.units_per_em().unwrap_or(2048.0);
        PxScale::from(size_px as f32 * self.font.height_unscaled() / units)
    }

    fn width(&self, text: &str, size_px: u32) -> f32 {
        let scaled = self.font.as_scaled(self.scale(size_px));
        let mut width = 0.0;
        let mut last = None;
        for character in text.chars() {
            let glyph = scaled.glyph_id(character);
            if let Some(last) = last {
                width += scaled.kern(last, glyph);
            }
            width += scaled.h_advance(glyph);
            last = Some(glyph);
        }
        width.round()
    }

    /// Pixels that the letters of `text` reach above and below the baseline.
    fn extents(&self, text: &str) -> (i32, i32) {
        text.chars()
            .filter_map(|character| self.extent(character))
            .reduce(|all, one| (all.0.max(one.0), all.1.max(one.1)))
            .unwrap_or((0, 0))
    }

    fn extent(&self, character: char) -> Option<(i32, i32)> {
        let in_table = u8::try_from(character)
            .ok()
            .filter(|code| EXTENT_CHARACTERS.contains(code))
            .and_then(|code| {
                let row = (self.size_px as usize).checked_sub(1)? * EXTENT_CHARACTERS.len();
                let at = (row + usize::from(code - EXTENT_CHARACTERS.start())) * 2;
                let pair = EXTENTS.get(at..at + 2)?;
                Some((i32::from(pair[0]), i32::from(pair[1] as i8)))
            });
        if in_table.is_some() {
            return in_table;
        }
        let glyph = self
            .font
            .glyph_id(character)
            .with_scale(self.scale(self.size_px));
        let bounds = self.font.outline_glyph(glyph)?.px_bounds();
        Some(((-bounds.min.y).round() as i32, bounds.max.y.round() as i32))
    }

    fn height(&self, text: &str) -> u32 {
        let (above, below) = self.extents(text);
        u32::try_from(above + below).unwrap_or(0)
    }

    /// Draws `text` with its middle at `(x, y)`.
    fn draw(&self, picture: &mut RgbImage, text: &str, size_px: u32, at: (f32, f32), ink: Rgb<u8>) {
        let scaled = self.font.as_scaled(self.scale(size_px));
        let mut x = at.0 - self.width(text, size_px) / 2.0;
        let baseline = (at.1 + (scaled.ascent() + scaled.descent()) / 2.0).round();
        let mut last = None;
        for character in text.chars() {
            let id = scaled.glyph_id(character);
            if let Some(last) = last {
                x += scaled.kern(last, id);
            }
            let glyph = id.with_scale_and_position(scaled.scale(), point(x, baseline));
            x += scaled.h_advance(id);
            last = Some(id);
            let Some(outline) = self.font.outline_glyph(glyph) else {
                continue;
            };
            let bounds = outline.px_bounds();
            outline.draw(|dx, dy, coverage| {
                let column = bounds.min.x as i64 + i64::from(dx);
                let row = bounds.min.y as i64 + i64::from(dy);
                let level = (coverage.clamp(0.0, 1.0) * 255.0).round() as u8;
                blend_pixel(picture, column, row, ink, level);
            });
        }
    }
}

fn blend_pixel(picture: &mut RgbImage, x: i64, y: i64, ink: Rgb<u8>, level: u8) {
    let (Ok(x), Ok(y)) = (u32::try_from(x), u32::try_from(y)) else {
        return;
    };
    if let Some(pixel) = picture.get_pixel_mut_checked(x, y) {
        for (sample, ink) in pixel.0.iter_mut().zip(ink.0) {
            *sample = mix(ink, *sample, level);
        }
    }
}

/// The titles of one column or row, cut into lines that fit.
struct Block {
    lines: Vec<Line>,
    /// Of all lines with the space between them.
    height: u32,
}

struct Line {
    text: String,
    active: bool,
    height: u32,
    size_px: u32,
    width: f32,
}

impl Block {
    fn new(titles: &[Title], allowed_width: u32, typeface: &Typeface) -> Self {
        let lines: Vec<Line> = titles
            .iter()
            .flat_map(|title| {
                wrap(&title.text, allowed_width, typeface)
                    .into_iter()
                    .map(|text| Line::new(text, title.active, allowed_width, typeface))
            })
            .collect();
        let spaced: u32 = lines
            .iter()
            .map(|line| line.height + typeface.spacing)
            .sum();
        Self {
            lines,
            height: spaced.saturating_sub(typeface.spacing),
        }
    }

    fn draw(
        &self,
        picture: &mut RgbImage,
        (x, mut y): (f32, f32),
        typeface: &Typeface,
        colours: LegendColours,
    ) {
        for line in &self.lines {
            let ink = if line.active {
                colours.active
            } else {
                colours.inactive
            };
            let middle = y + line.height as f32 / 2.0;
            typeface.draw(picture, &line.text, line.size_px, (x, middle), ink);
            if !line.active {
                strike_out(picture, (x, middle), line.width, ink);
            }
            y += (line.height + typeface.spacing) as f32;
        }
    }
}

impl Line {
    fn new(text: String, active: bool, allowed_width: u32, typeface: &Typeface) -> Self {
        let mut size_px = typeface.size_px;
        let width = typeface.width(&text, size_px);
        while size_px > 1 && typeface.width(&text, size_px) > allowed_width as f32 {
            size_px -= 1;
        }
        Self {
            height: typeface.height(&text),
            size_px,
            width,
            text,
            active,
        }
    }
}

/// A line of 4 pixels through the middle of a title, where Pillow draws it.
fn strike_out(picture: &mut RgbImage, (x, y): (f32, f32), width: f32, ink: Rgb<u8>) {
    let (middle, half) = (x as i64, (width / 2.0) as i64);
    let top = y as i64 - 1;
    for row in top..top + 4 {
        for column in middle - half..=middle + half {
            blend_pixel(picture, column, row, ink, 255);
        }
    }
}

/// Words in lines that are as wide as allowed; a longer word has its own line.
fn wrap(text: &str, allowed_width: u32, typeface: &Typeface) -> Vec<String> {
    let mut lines = vec![String::new()];
    for word in text.split_whitespace() {
        let last = lines.last().map_or("", String::as_str);
        let longer = format!("{last} {word}").trim().to_owned();
        let fits = typeface.width(&longer, typeface.size_px) <= allowed_width as f32;
        match lines.last_mut() {
            Some(last) if fits => *last = longer,
            _ => lines.push(word.to_owned()),
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    const COLOURS: LegendColours = LegendColours {
        active: Rgb([0; 3]),
        inactive: Rgb([0x99; 3]),
        background: Rgb([255; 3]),
    };

    fn legend<'a>(columns: &'a [Vec<Title>], rows: &'a [Vec<Title>], margin: u32) -> Legend<'a> {
        Legend {
            columns,
            rows,
            margin,
            colours: COLOURS,
        }
    }

    fn titles(texts: &[&str]) -> Vec<Vec<Title>> {
        texts.iter().map(|text| vec![Title::new(*text)]).collect()
    }

    #[test]
    fn a_grid_without_titles_keeps_its_size() {
        let grid = RgbImage::new(128, 64);
        let none = titles(&["", ""]);
        let plain = with_legend(&grid, (64, 64), legend(&none, &titles(&[""]), 0));
        assert_eq!(plain.dimensions(), (128, 64));
        let apart = with_legend(&grid, (64, 64), legend(&none, &titles(&[""]), 6));
        assert_eq!(apart.dimensions(), (134, 64));
    }

    /// The size of A1111's own picture for this legend.
    #[test]
    fn the_room_for_titles_is_a1111s() {
        let grid = RgbImage::new(128, 128);
        let struck = |text: &str| {
            let active = |active| Title {
                text: text.to_owned(),
                active,
            };
            vec![vec![active(false)], vec![active(true)]]
        };
        let (columns, rows) = (struck("red"), struck("blue"));
        let picture = with_legend(&grid, (64, 64), legend(&columns, &rows, 0));
        assert_eq!(picture.dimensions(), (176, 136));
    }

    /// Heights of Pillow 9.5.0 with FreeType at 40 pixels.
    #[test]
    fn heights_are_freetypes() {
        let typeface = Typeface::new(40);
        for (text, height) in [
            ("CFG Scale: 7.0", 31),
            ("Steps: 20", 37),
            ("gpy", 30),
            ("", 0),
        ] {
            assert_eq!(typeface.height(text), height, "{text}");
        }
    }

    #[test]
    fn long_titles_are_wrapped_and_then_made_smaller() {
        let typeface = Typeface::new(20);
        assert_eq!(wrap("one two three", 80, &typeface), ["one two", "three"]);
        let line = Line::new("incomprehensibilities".to_owned(), true, 64, &typeface);
        assert!(line.size_px < 20);
        assert!(typeface.width(&line.text, line.size_px) <= 64.0);
    }

    #[test]
    fn titles_are_drawn_in_their_room() {
        let grid = RgbImage::from_pixel(200, 200, Rgb([9, 9, 9]));
        let columns = titles(&["Steps: 20"]);
        let rows = titles(&["CFG Scale: 7.0"]);
        let picture = with_legend(&grid, (200, 200), legend(&columns, &rows, 0));
        let (left, top) = (150, picture.height() - 200);
        let has_ink = |x: std::ops::Range<u32>, y: std::ops::Range<u32>| {
            x.clone()
                .any(|x| y.clone().any(|y| picture.get_pixel(x, y).0[0] < 100))
        };
        assert!(has_ink(left..350, 0..top));
        assert!(has_ink(0..left, top..picture.height()));
        assert!(!has_ink(0..left, 0..top));
        assert_eq!(picture.get_pixel(left, top).0, [9, 9, 9]);
    }
}
