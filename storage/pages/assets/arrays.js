// Undoes storage/pages/packing.py.

const TYPES = { u1: Uint8Array, u2: Uint16Array, u4: Uint32Array, f4: Float32Array };
const STEPS = 512; // of a nat

async function inflated(base64) {
  const bytes = Uint8Array.from(atob(base64), (character) => character.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}

async function unpackedTexts(base64) {
  return JSON.parse(new TextDecoder().decode(await inflated(base64)));
}

// A typed array with its shape: the bytes of each number lie as far apart as there are numbers.
async function unpacked({ type, shape, data }) {
  const planes = await inflated(data);
  const width = TYPES[type].BYTES_PER_ELEMENT;
  const count = planes.length / width;
  const bytes = new Uint8Array(planes.length);
  for (let plane = 0; plane < width; plane++) {
    for (let at = 0; at < count; at++) bytes[at * width + plane] = planes[plane * count + at];
  }
  return Object.assign(new TYPES[type](bytes.buffer), { shape });
}

async function unpackedLogprobs(packed) {
  const steps = await unpacked(packed);
  const k = packed.shape.at(-1);
  const logprobs = Object.assign(new Float32Array(steps.length), { shape: packed.shape });
  let sum = 0;
  for (let at = 0; at < steps.length; at++) {
    sum = (at % k ? sum : 0) + steps[at];
    logprobs[at] = -sum / STEPS;
  }
  return logprobs;
}
