// The npm package modelfusion, unmodified: its provider for A1111.
//
//     NODE_PATH=node_modules node modelfusion_client.cjs --base http://127.0.0.1:7860
"use strict";

const { automatic1111, generateImage } = require("modelfusion");
const { PROMPT, NEGATIVE, expect, expectEqual, expectError, readArguments, readPng, run } = require("./checks.cjs");

function model(base, changes = {}) {
  const { protocol, hostname, port } = new URL(base);
  const api = automatic1111.Api({
    baseUrl: { protocol: protocol.replace(":", ""), host: hostname, port },
    headers: changes.headers,
  });
  const settings = { api, seed: 51, steps: 4, width: 64, height: 64, cfgScale: 6, sampler: "Euler a" };
  return automatic1111.ImageGenerator({ ...settings, ...changes });
}

async function generates_an_image(base) {
  const prompt = { prompt: PROMPT, negativePrompt: NEGATIVE };
  const png = readPng(Buffer.from(await generateImage({ model: model(base), prompt })).toString("base64"));
  expectEqual([png.width, png.height], [64, 64], "size");
  for (const part of [PROMPT, `Negative prompt: ${NEGATIVE}`, "Seed: 51", "Sampler: Euler a", "CFG scale: 6"]) {
    expect(png.text.includes(part), `${part} is not in ${png.text}`);
  }
}

async function text_prompts_and_several_images(base) {
  const several = model(base, { numberOfGenerations: 3 }).withTextPrompt();
  const answer = await generateImage({ model: several, prompt: PROMPT, fullResponse: true });
  expectEqual(answer.images.length, 3, "pictures");
  expectEqual(JSON.parse(answer.rawResponse.info).all_seeds, [51, 52, 53], "seeds");
}

async function chooses_the_checkpoint(base) {
  const listed = await (await fetch(`${base}/sdapi/v1/sd-models`)).json();
  for (const name of [listed[0].title, listed[1].model_name, listed[0].title.split(" [")[0]]) {
    const answer = await generateImage({ model: model(base, { model: name }), prompt: { prompt: PROMPT }, fullResponse: true });
    const drawn = JSON.parse(answer.rawResponse.info).sd_model_name;
    expect(name.includes(drawn), `${name} was asked for, ${drawn} drew`);
  }
}

// Its schema of an error is A1111's four texts; with any other it has no message to show.
async function errors_reach_the_caller(base) {
  const wrong = model(base, { steps: 100000 });
  await expectError(() => generateImage({ model: wrong, prompt: { prompt: PROMPT } }), "ApiCallError", "steps");
}

async function the_login_opens(base, login) {
  const prompt = { prompt: PROMPT };
  await expectError(() => generateImage({ model: model(base), prompt }), "Not authenticated");
  const headers = () => ({ Authorization: `Basic ${Buffer.from(login.join(":")).toString("base64")}` });
  const api = automatic1111.Api({
    baseUrl: { protocol: "http", host: new URL(base).hostname, port: new URL(base).port },
    customCallHeaders: headers,
  });
  const bytes = await generateImage({ model: model(base, { api }), prompt });
  expectEqual(readPng(Buffer.from(bytes).toString("base64")).width, 64, "width");
}

const { base, login } = readArguments();
const CHECKS = [
  generates_an_image,
  text_prompts_and_several_images,
  chooses_the_checkpoint,
  errors_reach_the_caller,
];
run(login ? [the_login_opens] : CHECKS, base, login);
