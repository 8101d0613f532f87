//! UNets of which a checkpoint has only the averaged weights (EMA).
//!
//! ldm keeps an averaged copy of `model.diffusion_model.a.0.b` as `model_ema.diffusion_modela0b`: the name without its dots.
//! Where the plain weights are there too, A1111 uses those. Where they are not, it draws with the noise that its UNet is made
//! of, which is of no use to anyone: here the averaged weights take their place.

use super::tensor_file::TensorFile;

const AVERAGED: &str = "model_ema.diffusion_model";
const PLAIN: &str = "model.diffusion_model.";

/// The words between the dots of a UNet's names, of those that begin alike the longer first.
const WORDS: [&str; 30] = [
    "transformer_blocks",
    "skip_connection",
    "output_blocks",
    "input_blocks",
    "middle_block",
    "out_layers",
    "emb_layers",
    "time_embed",
    "in_layers",
    "label_emb",
    "proj_out",
    "proj_in",
    "to_out",
    "weight",
    "attn1",
    "attn2",
    "norm1",
    "norm2",
    "norm3",
    "to_q",
    "to_k",
    "to_v",
    "norm",
    "proj",
    "conv",
    "bias",
    "out",
    "net",
    "ff",
    "op",
];

/// The table with the averaged UNet under plain names, if it has no other.
pub(super) fn with_plain_names(file: TensorFile) -> TensorFile {
    let begins = |prefix: &str| file.names().any(|name| name.starts_with(prefix));
    if begins(PLAIN) || !begins(AVERAGED) {
        return file;
    }
    file.renamed(|name| {
        let rest = name.strip_prefix(AVERAGED)?;
        Some(format!("{PLAIN}{}", with_dots(rest)?))
    })
}

/// The dots of a UNet's name; `None` for one of other words.
fn with_dots(name: &str) -> Option<String> {
    let mut parts: Vec<&str> = Vec::new();
    let mut rest = name;
    while !rest.is_empty() {
        let word = WORDS.into_iter().find(|word| rest.starts_with(word))?;
        rest = &rest[word.len()..];
        let digits;
        (digits, rest) = rest.split_at(
            rest.find(|c: char| !c.is_ascii_digit())
                .unwrap_or(rest.len()),
        );
        parts.push(word);
        match word {
            // The block, and one of its up to three layers.
            "input_blocks" | "output_blocks" => {
                let (block, layer) = digits.split_at(digits.len().checked_sub(1)?);
                parts.extend([block, layer]);
            }
            "label_emb" => parts.extend(digits.split("").filter(|digit| !digit.is_empty())),
            _ if digits.is_empty() => {}
            _ => parts.push(digits),
        }
    }
    Some(parts.join("."))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_dots_of_every_kind_of_name_are_found() {
        for name in [
            "time_embed.0.weight",
            "label_emb.0.2.bias",
            "input_blocks.0.0.weight",
            "input_blocks.3.0.op.weight",
            "input_blocks.11.0.in_layers.0.weight",
            "input_blocks.4.0.emb_layers.1.bias",
            "input_blocks.4.0.skip_connection.weight",
            "input_blocks.4.1.norm.weight",
            "input_blocks.4.1.proj_in.weight",
            "input_blocks.8.1.transformer_blocks.9.attn1.to_q.weight",
            "middle_block.1.transformer_blocks.0.attn2.to_out.0.bias",
            "middle_block.1.transformer_blocks.0.ff.net.0.proj.weight",
            "middle_block.1.transformer_blocks.0.ff.net.2.weight",
            "middle_block.1.transformer_blocks.0.norm3.weight",
            "middle_block.2.out_layers.3.weight",
            "output_blocks.10.1.proj_out.bias",
            "output_blocks.5.2.conv.weight",
            "out.2.weight",
        ] {
            assert_eq!(with_dots(&name.replace('.', "")).as_deref(), Some(name));
        }
        for other in ["x", "input_blocksweight", "time_embed0x"] {
            assert_eq!(with_dots(other), None, "{other}");
        }
    }
}
