//! The enlarged canvas of the outpainting scripts.

use image::{DynamicImage, GrayImage, Luma};

use super::Arguments;

/// Pixels that are added on each side.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Sides {
    pub(super) left: u32,
    pub(super) right: u32,
    pub(super) up: u32,
    pub(super) down: u32,
}

impl Sides {
    /// `pixels` on the sides that the argument `directions` lists, and whatever brings the size of the
    /// picture to a multiple of 64: it is shared among those sides, and right and down take the rest.
    pub(super) fn new(
        arguments: &Arguments,
        directions: usize,
        pixels: u32,
        size: (u32, u32),
    ) -> Self {
        let listed = arguments.list(directions);
        let wanted = |name: &str| {
            if listed.iter().any(|it| it == name) {
                pixels
            } else {
                0
            }
        };
        let (left, right) = shared(size.0, wanted("left"), wanted("right"));
        let (up, down) = shared(size.1, wanted("up"), wanted("down"));
        Self {
            left,
            right,
            up,
            down,
        }
    }

    /// The size of the canvas around a picture.
    pub(super) fn canvas(self, size: (u32, u32)) -> (u32, u32) {
        (
            (size.0 + self.left + self.right).next_multiple_of(64),
            (size.1 + self.up + self.down).next_multiple_of(64),
        )
    }
}

/// What both ends of one axis get.
fn shared(side: u32, first: u32, second: u32) -> (u32, u32) {
    let added = (side + first + second).next_multiple_of(64) - side;
    let first = if first > 0 {
        added * first / (first + second)
    } else {
        0
    };
    let second = if second > 0 { added - first } else { 0 };
    (first, second)
}

/// A white mask with a black rectangle. As Pillow draws it, `right` and `bottom` are still inside.
pub(super) fn white_around(
    size: (u32, u32),
    (left, top, right, bottom): (i64, i64, i64, i64),
) -> DynamicImage {
    let mask = GrayImage::from_fn(size.0, size.1, |x, y| {
        let (x, y) = (i64::from(x), i64::from(y));
        let inside = (left..=right).contains(&x) && (top..=bottom).contains(&y);
        Luma([if inside { 0 } else { 255 }])
    });
    mask.into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn sides_share_what_is_added_to_a_multiple_of_64() {
        let arguments = |list: serde_json::Value| Arguments::new(vec![list], &[json!([])]);
        let sides = |list, size| Sides::new(&arguments(list), 0, 32, size);
        let all = sides(json!(["left", "right", "up", "down"]), (100, 64));
        assert_eq!((all.left, all.right, all.up, all.down), (46, 46, 32, 32));
        assert_eq!(all.canvas((100, 64)), (192, 128));
        let one = sides(json!(["down"]), (100, 100));
        assert_eq!((one.left, one.right, one.up, one.down), (0, 0, 0, 92));
        assert_eq!(one.canvas((100, 100)), (128, 192));
    }
}
