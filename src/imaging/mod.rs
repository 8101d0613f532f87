//! Resizing, masks, blur, PNG text and picture codecs. Uses no other room and reads no file.
//!
//! Follows AUTOMATIC1111 v1.10.1 with its libraries: Pillow 9.5.0 for resampling, blurring and
//! compositing, OpenCV 4 for the mask blur, LAB and faces, torch for latent interpolation. Where those are
//! exact integer arithmetic, so is this room, to the byte.

mod affine;
mod color_correction;
mod composite;
mod decode;
mod encode;
mod exif;
mod face_mask;
mod gaussian_blur;
mod gif_info;
mod grid;
mod init_image;
mod interpolation;
mod jpeg_info;
mod lab;
mod lanczos4;
mod latent_resize;
mod legend;
mod mask;
mod mask_blur;
mod matched_noise;
mod overlay;
mod pixels;
mod png_text;
mod resample;
mod resize_mode;
mod soft_inpainting;
mod tiles;
mod upscale;
mod warp;

#[cfg(test)]
mod golden_tests;

pub use affine::{Affine, similarity};
pub use color_correction::ColorReference;
pub use composite::{alpha_composite, blend, crop, flatten, parse_colour, paste};
pub use decode::{
    DecodeError, Decoded, Metadata, base64_decode_lenient, decode, decode_base64,
    decode_base64_within, decode_within,
};
pub use encode::{
    EncodeError, ImageFormat, encode_jpeg, encode_png, encode_png_with_compression, encode_webp,
};
pub use face_mask::face_mask;
pub use grid::{GridRows, grid_shape, image_grid};
pub use init_image::{InitImageOptions, PreparedInitImage, prepare_init_image};
pub use lanczos4::resize_lanczos4;
pub use latent_resize::{LATENT_UPSCALE_MODES, LatentFilter, latent_filter, resize_latent};
pub use legend::{Legend, LegendColours, Title, with_legend};
pub use mask::{
    MaskOptions, PreparedMask, Region, expand_region, invert_mask, latent_mask, mask_of_picture,
    masked_region, prepare_mask, resize_mask, to_grey,
};
pub use mask_blur::blur_mask;
pub use matched_noise::matched_noise;
pub use overlay::{apply_overlay, fill_masked, overlay_of, uncrop};
pub use pixels::{
    bgr_to_picture, picture_to_bgr, picture_to_signed, picture_to_unit, tensor_to_picture, to_rgb,
};
pub use resample::{Filter, resize, resize_grey, resize_rgb};
pub use resize_mode::{ResizeMode, resize_image};
pub use soft_inpainting::SoftOverlay;
pub use tiles::TileGrid;
pub use upscale::{Cause, Upscaler, upscale, upscale_tiled, upscaled_side};
pub use warp::{warp_mask, warp_picture};
