//! Resizing, masks, blur, PNG text and picture codecs. Uses no other room and reads no file.
//!
//! Follows AUTOMATIC1111 v1.10.1 with its libraries: Pillow 9.5.0 for resampling, blurring and
//! compositing, OpenCV 4 for the mask blur and LAB, torch for latent interpolation. Where those are
//! exact integer arithmetic, so is this room, to the byte.

mod decode;
mod encode;
mod exif;
mod gif_info;
mod jpeg_info;
mod pixels;
mod png_text;

pub use decode::{DecodeError, Decoded, Metadata, base64_decode_lenient, decode, decode_base64};
pub use encode::{
    EncodeError, ImageFormat, encode_jpeg, encode_png, encode_png_with_compression, encode_webp,
};
pub use pixels::{picture_to_signed, picture_to_unit, tensor_to_picture, to_rgb};
