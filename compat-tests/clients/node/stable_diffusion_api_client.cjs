// The npm package stable-diffusion-api, unmodified: its whole surface.
//
//     NODE_PATH=node_modules node stable_diffusion_api_client.cjs --base http://127.0.0.1:7860
"use strict";

const { default: StableDiffusionApi } = require("stable-diffusion-api");
const sharp = require("sharp");
const { PROMPT, NEGATIVE, expect, expectEqual, expectError, picture, readArguments, run } = require("./checks.cjs");

const QUICK = { prompt: PROMPT, negative_prompt: NEGATIVE, seed: 31, steps: 4, width: 64, height: 64 };

const image = (width, height) => sharp(Buffer.from(picture(width, height), "base64"));

async function size(sharpImage) {
  const { width, height } = await sharpImage.metadata();
  return [width, height];
}

async function txt2img(api) {
  const result = await api.txt2img({ ...QUICK, batch_size: 2 });
  expectEqual(result.images.length, 2, "pictures");
  expectEqual(await size(result.image), [64, 64], "size");
  const info = JSON.parse(result.info);
  expectEqual(info.all_seeds, [31, 32], "seeds");
  expectEqual([info.prompt, info.sampler_name], [PROMPT, "Euler a"], "info");
  expectEqual(result.parameters.steps, 4, "steps in the echo");
}

async function hires_fix(api) {
  const result = await api.txt2img({ ...QUICK, enable_hr: true, hr_scale: 1.5, denoising_strength: 0.6 });
  expectEqual(await size(result.image), [96, 96], "size");
}

async function img2img(api) {
  const result = await api.img2img({ ...QUICK, init_images: [image()], denoising_strength: 0.5 });
  expectEqual(await size(result.image), [64, 64], "size");
  const masked = { mask_image: image(), inpainting_fill: 1, inpaint_full_res: false };
  const again = await api.img2img({ ...QUICK, ...masked, init_images: [image()] });
  expectEqual(await size(again.image), [64, 64], "size, inpainting");
}

async function extra_single(api) {
  const result = await api.extraSingle({ image: image(32, 32), upscaler_1: "Lanczos", upscaling_resize: 2 });
  expectEqual(await size(result.image), [64, 64], "size");
  expect(result.info.includes("Postprocess upscaler: Lanczos"), result.info);
}

// The client sends `image_list`, which A1111 does not know, and no `imageList`, which it needs.
async function extra_batch_is_refused_as_by_a1111(api) {
  const call = () => api.extraBatch({ images: [image()], name_list: ["a"], upscaler_1: "Lanczos" });
  await expectError(call, "422", "imageList", "field required");
}

async function png_info(api) {
  const drawn = await api.txt2img(QUICK);
  // sharp drops text chunks, so the client's picture has none.
  const found = await api.pngInfo(drawn.image);
  expectEqual(found.parameters["Schedule type"] ?? "Automatic", "Automatic", "parsed defaults");
}

async function interrogate(api) {
  expect((await api.interrogate(image(), "clip")).response.data.caption, "no caption");
}

async function lists(api) {
  for (const read of [
    "getCmdFlags",
    "getSamplers",
    "getUpscalers",
    "getSdModels",
    "getFaceRestorers",
    "getRealesrganModels",
    "getPromptStyles",
  ]) {
    const answer = await api[read]();
    expect(Object.keys(answer).length > 0, `${read} answers nothing`);
  }
  expect(Array.isArray(await api.getHypernetworks()), "getHypernetworks");
  await api.refreshCheckpoints();
}

async function options(api) {
  const before = (await api.getOptions()).CLIP_stop_at_last_layers;
  expectEqual(await api.setOptions({ CLIP_stop_at_last_layers: 2 }), null, "the answer");
  expectEqual((await api.getOptions()).CLIP_stop_at_last_layers, 2, "the option");
  await api.setOptions({ CLIP_stop_at_last_layers: before });
}

async function models(api) {
  const current = await api.getCurrentModel();
  const titles = (await api.getSdModels()).map((model) => model.title);
  expect(titles.includes(current), `${current} is not among the titles`);
  await api.setOptions({ sd_model_checkpoint: current });
}

async function progress(api) {
  const state = await api.getProgress();
  expectEqual([state.progress, state.state.job_count], [0, 0], "progress of an idle server");
  expectEqual(await api.waitForReady(0.05), true, "waitForReady");
}

// Without the extension there is nothing at its addresses; the client always sends empty arguments for it.
async function control_net_is_missing(api) {
  await expectError(() => api.ControlNet.getModules(), "404");
  await expectError(() => api.ControlNet.getModels(), "404");
}

async function errors_reach_the_caller(api) {
  await expectError(() => api.txt2img({ ...QUICK, steps: "many" }), "422", "value is not a valid integer");
  await expectError(() => api.extraSingle({ image: image(), upscaler_1: "nope" }), "500", "could not find upscaler");
}

const CHECKS = [
  txt2img,
  hires_fix,
  img2img,
  extra_single,
  extra_batch_is_refused_as_by_a1111,
  png_info,
  interrogate,
  lists,
  options,
  models,
  progress,
  control_net_is_missing,
  errors_reach_the_caller,
];

async function the_login_opens(api, login) {
  await expectError(() => api.txt2img(QUICK), "401", "Not authenticated");
  api.setAuth(...login);
  expectEqual(await size((await api.txt2img(QUICK)).image), [64, 64], "size");
}

const { base, login } = readArguments();
const api = new StableDiffusionApi({ baseUrl: base });
run(login ? [the_login_opens] : CHECKS, api, login);
