// What the scripts beside this one share, as checks.py does for those in Python.
"use strict";

const zlib = require("node:zlib");

const PROMPT = "a red cube on a table, (blue sky:1.2)";
const NEGATIVE = "blurry, lowres";

function expect(condition, what) {
  if (!condition) throw new Error(what);
}

function expectEqual(got, want, what) {
  const [left, right] = [JSON.stringify(got), JSON.stringify(want)];
  expect(left === right, `${what}: ${left}, not ${right}`);
}

/** The client has to throw, and what it throws has to say these texts. */
async function expectError(act, ...texts) {
  let said;
  try {
    await act();
  } catch (error) {
    said = `${error.name}: ${error.message} ${JSON.stringify(error.response?.data ?? error.data ?? "")}`;
  }
  expect(said !== undefined, "the client takes it");
  for (const text of texts) expect(said.includes(text), `the error does not say ${text}: ${said.slice(0, 300)}`);
}

/** Width and height of a PNG, and the text of its `parameters`. */
function readPng(base64) {
  const bytes = Buffer.from(base64, "base64");
  expect(bytes.subarray(1, 4).toString() === "PNG", "no PNG");
  let text;
  for (let at = 8; at < bytes.length; ) {
    const length = bytes.readUInt32BE(at);
    const kind = bytes.toString("latin1", at + 4, at + 8);
    const data = bytes.subarray(at + 8, at + 8 + length);
    if (kind === "tEXt" && data.toString("latin1").startsWith("parameters\0")) {
      text = data.toString("latin1").slice("parameters\0".length);
    }
    at += length + 12;
  }
  return { width: bytes.readUInt32BE(16), height: bytes.readUInt32BE(20), text };
}

/** A PNG of one colour as base64. */
function picture(width = 64, height = 64, grey = 128) {
  const row = Buffer.concat([Buffer.from([0]), Buffer.alloc(width * 3, grey)]);
  const header = Buffer.alloc(13);
  header.writeUInt32BE(width, 0);
  header.writeUInt32BE(height, 4);
  header.set([8, 2, 0, 0, 0], 8);
  const chunk = (kind, data) => {
    const body = Buffer.concat([Buffer.from(kind, "latin1"), data]);
    const [length, sum] = [Buffer.alloc(4), Buffer.alloc(4)];
    length.writeUInt32BE(data.length);
    sum.writeUInt32BE(zlib.crc32(body));
    return Buffer.concat([length, body, sum]);
  };
  const pixels = zlib.deflateSync(Buffer.concat(Array(height).fill(row)));
  const signature = Buffer.from([0x89, 0x50, 0x4e, 0x47, 13, 10, 26, 10]);
  const parts = [signature, chunk("IHDR", header), chunk("IDAT", pixels), chunk("IEND", Buffer.alloc(0))];
  return Buffer.concat(parts).toString("base64");
}

/** `--base URL` and `--login user:password`. */
function readArguments() {
  const value = (name) => {
    const at = process.argv.indexOf(name);
    return at < 0 ? undefined : process.argv[at + 1];
  };
  return { base: value("--base") ?? "http://127.0.0.1:7860", login: value("--login")?.split(":") };
}

/** Runs every check with the client and reports as checks.py does. */
async function run(checks, ...client) {
  for (const check of checks) {
    try {
      await check(...client);
      console.log(`ok ${check.name}`);
    } catch (error) {
      const why = `${error.name}: ${error.message}`.replace(/\s+/g, " ").slice(0, 300);
      console.log(`FAIL ${check.name}: ${why}`);
      process.exitCode = 1;
    }
  }
}

module.exports = { PROMPT, NEGATIVE, expect, expectEqual, expectError, readPng, picture, readArguments, run };
