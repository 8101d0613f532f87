// The npm package node-sd-webui, unmodified: its whole surface.
//
//     NODE_PATH=node_modules node node_sd_webui_client.cjs --base http://127.0.0.1:7860
"use strict";

const { default: sdwebui } = require("node-sd-webui");
const { PROMPT, NEGATIVE, expectEqual, expectError, picture, readArguments, readPng, run } = require("./checks.cjs");

const QUICK = { prompt: PROMPT, negativePrompt: NEGATIVE, seed: 41, steps: 4, width: 64, height: 64, cfgScale: 6 };

async function txt2img(client) {
  const result = await client.txt2img({ ...QUICK, samplingMethod: "Euler a", batchSize: 2 });
  const png = readPng(result.images[0]);
  expectEqual([result.images.length, png.width, png.height], [2, 64, 64], "pictures");
  const info = JSON.parse(result.info);
  expectEqual([info.seed, info.all_seeds], [41, [41, 42]], "seeds");
  expectEqual(png.text, info.infotexts[0], "the picture's text");
}

async function every_sampler_it_names(client) {
  const { SamplingMethod } = require("node-sd-webui");
  for (const samplingMethod of Object.values(SamplingMethod)) {
    const result = await client.txt2img({ ...QUICK, steps: 3, samplingMethod });
    const drawn = JSON.parse(result.info).sampler_name;
    // A1111 has no "DPM++ S2 a"; names that it does not know become its first sampler.
    const known = samplingMethod.startsWith("DPM++ S2 a") ? "DPM++ 2M" : samplingMethod.replace(" Karras", "");
    expectEqual(drawn, known, "sampler");
  }
}

async function hires_fix(client) {
  const hires = { upscaler: "Latent", upscaleBy: 1.5, steps: 2, denoisingStrength: 0.6 };
  const png = readPng((await client.txt2img({ ...QUICK, hires })).images[0]);
  expectEqual([png.width, png.height], [96, 96], "size");
}

async function img2img(client) {
  const result = await client.img2img({ ...QUICK, imageData: [picture()] });
  const png = readPng(result.images[0]);
  expectEqual([png.width, png.height], [64, 64], "size");
}

// It counts the entries of the last line, of which A1111 has one more since 1.9, the schedule type.
async function png_info(client) {
  const drawn = await client.txt2img({ ...QUICK, samplingMethod: "Euler a" });
  const found = await client.pngInfo({ imageData: drawn.images[0] });
  expectEqual([found.prompt, found.negativePrompt], [PROMPT, NEGATIVE], "prompts");
  expectEqual([found.steps, found.samplingMethod, found.cfgScale], [4, "Euler a", NaN], "entries");
}

async function errors_reach_the_caller(client) {
  await expectError(() => client.txt2img({ ...QUICK, steps: "many" }), "Unprocessable");
  await expectError(() => client.txt2img({ ...QUICK, extensions: { controlNet: [{}] } }), "Not Found");
}

const { base } = readArguments();
const CHECKS = [txt2img, every_sampler_it_names, hires_fix, img2img, png_info, errors_reach_the_caller];
run(CHECKS, sdwebui({ apiUrl: base }));
