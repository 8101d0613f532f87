//! Tensor names of network files, split into the layer's key and the part of the network.
//!
//! A1111 reads kohya's form only: dots of the layer written as `_`, then a dot, then the part
//! (`lora_unet_mid_block_attentions_0_proj_in.lora_up.weight`). Files as diffusers and PEFT save them
//! keep the dots and have other words for the parts; A1111 loads such a file and applies nothing of
//! it. Here their names are turned into kohya's.

/// The endings of dotted names, and what kohya's form calls the part.
const ENDINGS: &[(&str, &str)] = &[
    (".lora_linear_layer.down.weight", "lora_down.weight"),
    (".lora_linear_layer.up.weight", "lora_up.weight"),
    (".lora_A.default.weight", "lora_A.weight"),
    (".lora_B.default.weight", "lora_B.weight"),
    ("_lora.down.weight", "lora_down.weight"),
    ("_lora.up.weight", "lora_up.weight"),
    (".lora.down.weight", "lora_down.weight"),
    (".lora.up.weight", "lora_up.weight"),
    (".lora_down.weight", "lora_down.weight"),
    (".lora_up.weight", "lora_up.weight"),
    (".lora_mid.weight", "lora_mid.weight"),
    (".lora_A.weight", "lora_A.weight"),
    (".lora_B.weight", "lora_B.weight"),
    (".dora_scale", "dora_scale"),
    (".alpha", "alpha"),
    (".scale", "scale"),
    (".diff", "diff"),
    (".diff_b", "diff_b"),
    (".w_norm", "w_norm"),
    (".b_norm", "b_norm"),
    (".hada_w1_a", "hada_w1_a"),
    (".hada_w1_b", "hada_w1_b"),
    (".hada_w2_a", "hada_w2_a"),
    (".hada_w2_b", "hada_w2_b"),
    (".hada_t1", "hada_t1"),
    (".hada_t2", "hada_t2"),
    (".lokr_w1", "lokr_w1"),
    (".lokr_w1_a", "lokr_w1_a"),
    (".lokr_w1_b", "lokr_w1_b"),
    (".lokr_w2", "lokr_w2"),
    (".lokr_w2_a", "lokr_w2_a"),
    (".lokr_w2_b", "lokr_w2_b"),
    (".lokr_t2", "lokr_t2"),
    (".oft_blocks", "oft_blocks"),
    (".oft_diag", "oft_diag"),
    (".rescale", "rescale"),
];

/// The beginnings of dotted names, and what kohya's form (or the internal name) begins with.
const BEGINNINGS: &[(&str, &str)] = &[
    ("unet.", "lora_unet_"),
    ("text_encoder.", "lora_te_"),
    ("text_encoder_2.", "lora_te2_"),
    ("te1.", "lora_te1_"),
    ("te2.", "lora_te2_"),
    ("text_model.", "lora_te_text_model_"),
    ("model.diffusion_model.", "lora_unet_"),
    ("diffusion_model.", "lora_unet_"),
    ("cond_stage_model.", ""),
    ("conditioner.embedders.", ""),
    ("down_blocks.", "lora_unet_down_blocks_"),
    ("up_blocks.", "lora_unet_up_blocks_"),
    ("mid_block.", "lora_unet_mid_block_"),
    ("conv_in.", "lora_unet_conv_in_"),
    ("conv_out.", "lora_unet_conv_out_"),
    ("time_embedding.", "lora_unet_time_embedding_"),
    ("add_embedding.", "lora_unet_add_embedding_"),
    ("input_blocks.", "lora_unet_input_blocks_"),
    ("middle_block.", "lora_unet_middle_block_"),
    ("output_blocks.", "lora_unet_output_blocks_"),
];

/// The layer's key in kohya's form and the part; `None` for names of neither form.
pub(super) fn split(name: &str) -> Option<(String, &str)> {
    dotted(name).or_else(|| {
        let (key, part) = name.split_once('.')?;
        Some((key.to_owned(), part))
    })
}

fn dotted(name: &str) -> Option<(String, &'static str)> {
    let name = name.strip_prefix("base_model.model.").unwrap_or(name);
    let (layer, part) = ENDINGS
        .iter()
        .find_map(|(ending, part)| Some((name.strip_suffix(ending)?, *part)))?;
    let (rest, beginning) = BEGINNINGS
        .iter()
        .find_map(|(from, to)| Some((layer.strip_prefix(from)?, *to)))?;
    let rest = rest.strip_prefix("base_model.model.").unwrap_or(rest);
    // The first diffusers kept networks in attention processors, whose output layer has no number.
    let flat = match rest.split_once(".processor.") {
        Some((attention, "to_out")) => format!("{attention}_to_out_0"),
        Some((attention, projection)) => format!("{attention}_{projection}"),
        None => rest.to_owned(),
    };
    Some((format!("{beginning}{}", flat.replace('.', "_")), part))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_diffusers_and_peft_become_kohyas() {
        for (name, key, part) in [
            (
                "lora_unet_mid_block_attentions_0_proj_in.lora_up.weight",
                "lora_unet_mid_block_attentions_0_proj_in",
                "lora_up.weight",
            ),
            (
                "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_out.0.lora_A.weight",
                "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_out_0",
                "lora_A.weight",
            ),
            (
                "unet.mid_block.attentions.0.transformer_blocks.0.attn2.processor.to_out_lora.up.weight",
                "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn2_to_out_0",
                "lora_up.weight",
            ),
            (
                "text_encoder_2.text_model.encoder.layers.3.mlp.fc1.lora_linear_layer.down.weight",
                "lora_te2_text_model_encoder_layers_3_mlp_fc1",
                "lora_down.weight",
            ),
            (
                "base_model.model.text_model.encoder.layers.0.self_attn.q_proj.lora_B.weight",
                "lora_te_text_model_encoder_layers_0_self_attn_q_proj",
                "lora_B.weight",
            ),
            (
                "unet.base_model.model.up_blocks.1.resnets.0.conv1.lora_A.default.weight",
                "lora_unet_up_blocks_1_resnets_0_conv1",
                "lora_A.weight",
            ),
            (
                "model.diffusion_model.input_blocks.4.1.proj_in.lora_down.weight",
                "lora_unet_input_blocks_4_1_proj_in",
                "lora_down.weight",
            ),
            (
                "conditioner.embedders.1.model.transformer.resblocks.0.mlp.c_fc.lora_down.weight",
                "1_model_transformer_resblocks_0_mlp_c_fc",
                "lora_down.weight",
            ),
            (
                "cond_stage_model.transformer.text_model.encoder.layers.0.mlp.fc1.alpha",
                "transformer_text_model_encoder_layers_0_mlp_fc1",
                "alpha",
            ),
            (
                "bundle_emb.word.string_to_param.*",
                "bundle_emb",
                "word.string_to_param.*",
            ),
            (
                "diffusion_model_input_blocks_4_1_proj_in.hada_w1_a",
                "diffusion_model_input_blocks_4_1_proj_in",
                "hada_w1_a",
            ),
        ] {
            assert_eq!(split(name), Some((key.to_owned(), part)), "{name}");
        }
        assert_eq!(split("nothing"), None);
    }
}
