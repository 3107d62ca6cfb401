"use strict";
// One tower in a worker of its own. It has the weights of this tower and no others; of the other tower it learns only
// what comes through `wire`, at the layers that read both.
//
// Maps are { values: Float32Array [maps, side, side], maps, side }. Products are summed in double precision and
// rounded to float32 once a layer.

const TILE_VALUES = 1 << 14; // of the windows that are laid out at a time: 128 kB, which the second-level cache holds
const SHOWN_MAPS = 32; // of a layer that are sent to the page for drawing
const SHOWN_UNITS = 2048;

let tower = 0;
let layers = [];
let parameters = []; // of each layer: { own, other, bias }
let wire = null; // the MessagePort to the other tower; null for a network of one
const arrived = new Map(); // "run/layer" -> what came from the other tower
const awaited = new Map(); // "run/layer" -> who waits for it

// Weights.

function decode(text) {
  if (Uint8Array.fromBase64) return new Float32Array(Uint8Array.fromBase64(text).buffer);
  const letters = atob(text);
  const bytes = new Uint8Array(letters.length);
  for (let i = 0; i < bytes.length; i++) bytes[i] = letters.charCodeAt(i);
  return new Float32Array(bytes.buffer);
}

function cut(all) {
  let place = 0;
  const take = (count) => all.subarray(place, (place += count));
  const cutLayers = layers.map((layer) => {
    const kernels = layer.kernels[tower];
    const pixels = layer.kind === "local" ? layer.size_conv ** 2 : 1;
    const count = (maps) => (pixels * kernels * maps * layer.size ** 2) / layer.groups;
    // A convolution's weights are read many times, and a double needs no conversion; those of others are read once.
    const kept = (values) => (layer.kind === "conv" ? new Float64Array(values) : values);
    return {
      own: kept(take(count(layer.maps_in[tower]))),
      other: layer.both ? kept(take(count(layer.maps_in[1 - tower]))) : null,
      bias: take(pixels * kernels),
    };
  });
  if (place !== all.length) throw new Error(`the page has ${all.length} weights, and its table needs ${place}`);
  return cutLayers;
}

// Sums of a layer.

function pad(x, before, after) {
  if (before + after === 0) return x;
  const side = x.side + before + after;
  const values = new Float32Array(x.maps * side * side);
  for (let map = 0; map < x.maps; map++) {
    for (let row = 0; row < x.side; row++) {
      const from = (map * x.side + row) * x.side;
      values.set(x.values.subarray(from, from + x.side), (map * side + row + before) * side + before);
    }
  }
  return { values, maps: x.maps, side };
}

function layOut(x, firstMap, maps, layer, place, count, sideOut, windows) {
  const { size, stride } = layer;
  const { values, side } = x;
  let target = 0;
  for (let p = place; p < place + count; p++) {
    const top = Math.floor(p / sideOut) * stride;
    const left = (p % sideOut) * stride;
    for (let map = firstMap; map < firstMap + maps; map++) {
      let from = (map * side + top) * side + left;
      for (let dy = 0; dy < size; dy++, from += side) {
        for (let dx = 0; dx < size; dx++) windows[target++] = values[from + dx];
      }
    }
  }
}

// y[k, p] += sum over i of weights[k, i] * windows[p, i], four kernels and two places at a time.
function multiply(weights, firstWeight, kernels, length, windows, count, y, firstY, strideY) {
  let k = 0;
  for (; k + 3 < kernels; k += 4) {
    const w0 = firstWeight + k * length;
    const w1 = w0 + length;
    const w2 = w1 + length;
    const w3 = w2 + length;
    const target = firstY + k * strideY;
    let p = 0;
    for (; p + 1 < count; p += 2) {
      const x0 = p * length;
      const x1 = x0 + length;
      let a0 = 0, a1 = 0, a2 = 0, a3 = 0, b0 = 0, b1 = 0, b2 = 0, b3 = 0;
      for (let i = 0; i < length; i++) {
        const a = windows[x0 + i];
        const b = windows[x1 + i];
        const u = weights[w0 + i];
        const v = weights[w1 + i];
        const w = weights[w2 + i];
        const z = weights[w3 + i];
        a0 += u * a;
        b0 += u * b;
        a1 += v * a;
        b1 += v * b;
        a2 += w * a;
        b2 += w * b;
        a3 += z * a;
        b3 += z * b;
      }
      y[target + p] += a0;
      y[target + p + 1] += b0;
      y[target + strideY + p] += a1;
      y[target + strideY + p + 1] += b1;
      y[target + 2 * strideY + p] += a2;
      y[target + 2 * strideY + p + 1] += b2;
      y[target + 3 * strideY + p] += a3;
      y[target + 3 * strideY + p + 1] += b3;
    }
    for (; p < count; p++) {
      for (let j = 0; j < 4; j++) y[target + j * strideY + p] += dot(weights, w0 + j * length, windows, p * length, length);
    }
  }
  for (; k < kernels; k++) {
    for (let p = 0; p < count; p++) {
      y[firstY + k * strideY + p] += dot(weights, firstWeight + k * length, windows, p * length, length);
    }
  }
}

function dot(weights, first, values, place, length) {
  let sum = 0;
  for (let i = 0; i < length; i++) sum += weights[first + i] * values[place + i];
  return sum;
}

// A convolution: windows are laid out side by side, a tile of them at a time, and multiplied by all kernels.
function addConvolution(y, x, weights, layer) {
  const padded = pad(x, layer.pad, layer.pad + layer.overhang);
  const pixels = y.side ** 2;
  const maps = x.maps / layer.groups;
  const kernels = y.maps / layer.groups;
  const length = maps * layer.size ** 2;
  const tile = Math.max(2, Math.min(pixels, Math.floor(TILE_VALUES / length)));
  const windows = new Float64Array(tile * length);
  for (let group = 0; group < layer.groups; group++) {
    for (let place = 0; place < pixels; place += tile) {
      const count = Math.min(tile, pixels - place);
      layOut(padded, group * maps, maps, layer, place, count, y.side, windows);
      const first = group * kernels;
      multiply(weights, first * length, kernels, length, windows, count, y.values, first * pixels + place, pixels);
    }
  }
}

// Products with float32 weights, each of which is read once: `dot` stays with doubles, which makes both faster.
function dotOnce(weights, first, values) {
  let sum = 0;
  let more = 0; // two sums, so that an addition need not wait for the one before
  let i = 0;
  for (; i + 1 < values.length; i += 2) {
    sum += weights[first + i] * values[i];
    more += weights[first + i + 1] * values[i + 1];
  }
  if (i < values.length) sum += weights[first + i] * values[i];
  return sum + more;
}

// A convolution whose weights are not shared: each pixel has kernels of its own.
function addLocal(y, x, weights, layer) {
  const padded = pad(x, layer.pad, layer.pad + layer.overhang);
  const pixels = y.side ** 2;
  const length = x.maps * layer.size ** 2;
  const window = new Float64Array(length);
  for (let p = 0; p < pixels; p++) {
    layOut(padded, 0, x.maps, layer, p, 1, y.side, window);
    for (let k = 0; k < y.maps; k++) y.values[k * pixels + p] += dotOnce(weights, (p * y.maps + k) * length, window);
  }
}

function addLinear(y, x, weights) {
  const values = new Float64Array(x.values);
  for (let k = 0; k < y.maps; k++) y.values[k] += dotOnce(weights, k * x.maps, values);
}

const ADD = { conv: addConvolution, local: addLocal, linear: addLinear };

function startSum(layer, bias) {
  const side = layer.size_conv;
  const maps = layer.kernels[tower];
  const pixels = side ** 2;
  const values = new Float64Array(maps * pixels);
  for (let map = 0; map < maps; map++) {
    // A local layer's biases are [row, column, map], all others' are one a map.
    for (let p = 0; p < pixels; p++) values[map * pixels + p] = layer.kind === "local" ? bias[p * maps + map] : bias[map];
  }
  return { values, maps, side };
}

// Steps after the sum.

const ACTIVATIONS = {
  relu: (value) => (value > 0 ? value : 0),
  tanh: Math.tanh,
  sigmoid: (value) => 1 / (1 + Math.exp(-value)),
};

function activate(x, step) {
  const activation = ACTIVATIONS[step.of];
  return { ...x, values: x.values.map((value) => activation(value)) };
}

function scale(x, step) {
  return { ...x, values: x.values.map((value) => value * step.factor) };
}

// The sum of squares goes over neighbouring maps of this tower, and the window is cut at its first and last map.
function normaliseMaps(x, step) {
  const reach = step.n >> 1;
  const pixels = x.side ** 2;
  const read = x.values;
  const values = new Float32Array(read.length);
  for (let map = 0; map < x.maps; map++) {
    const first = Math.max(0, map - reach);
    const last = Math.min(x.maps - 1, map + reach);
    for (let p = 0; p < pixels; p++) {
      let sum = 0;
      for (let place = first * pixels + p; place <= last * pixels + p; place += pixels) sum += read[place] * read[place];
      values[map * pixels + p] = read[map * pixels + p] * (step.k + step.scale * sum) ** -step.beta;
    }
  }
  return { ...x, values };
}

// The sum of squares goes over pixels of the same map; the divisor stays n * n where the window is cut.
function normalisePixels(x, step) {
  const reach = step.n >> 1;
  const values = new Float32Array(x.values.length);
  for (let map = 0, first = 0; map < x.maps; map++, first += x.side ** 2) {
    for (let row = 0; row < x.side; row++) {
      for (let column = 0; column < x.side; column++) {
        let sum = 0;
        for (let r = Math.max(0, row - reach); r <= Math.min(x.side - 1, row + reach); r++) {
          for (let c = Math.max(0, column - reach); c <= Math.min(x.side - 1, column + reach); c++) {
            sum += x.values[first + r * x.side + c] ** 2;
          }
        }
        const place = first + row * x.side + column;
        values[place] = x.values[place] * (1 + (step.alpha * sum) / step.n ** 2) ** -step.beta;
      }
    }
  }
  return { ...x, values };
}

// The last window may hang over the edge; an average is taken over the pixels that are left of it.
function pool(x, step) {
  const side = step.side;
  const values = new Float32Array(x.maps * side * side);
  let target = 0;
  for (let map = 0; map < x.maps; map++) {
    for (let row = 0; row < side; row++) {
      const bottom = Math.min(x.side, row * step.stride + step.size);
      for (let column = 0; column < side; column++) {
        const right = Math.min(x.side, column * step.stride + step.size);
        let largest = -Infinity;
        let sum = 0;
        let count = 0;
        for (let r = row * step.stride; r < bottom; r++) {
          for (let c = column * step.stride; c < right; c++) {
            const value = x.values[(map * x.side + r) * x.side + c];
            if (value > largest) largest = value;
            sum += value;
            count++;
          }
        }
        values[target++] = step.average ? sum / count : largest;
      }
    }
  }
  return { values, maps: x.maps, side };
}

const STEPS = { activation: activate, lrn: normaliseMaps, spatial_norm: normalisePixels, pool, scale };

// The wire. `half` crosses as float16, as run 170-quant of 2012 did; `single` as float32.

const word = new Float32Array(1);
const bits = new Uint32Array(word.buffer);

function toHalf(value) {
  word[0] = value;
  const sign = (bits[0] >>> 16) & 0x8000;
  const size = bits[0] & 0x7fffffff;
  if (size > 0x7f800000) return sign | 0x7e00; // not a number
  if (size >= 0x47800000) return sign | 0x7c00; // 65,536 and more
  if (size >= 0x38800000) return sign | ((size - 0x38000000 + 0xfff + ((size >>> 13) & 1)) >>> 13);
  const steps = Math.abs(value) * 2 ** 24;
  const below = Math.floor(steps);
  const rest = steps - below;
  return sign | (below + (rest > 0.5 || (rest === 0.5 && below % 2) ? 1 : 0));
}

function fromHalf(code) {
  const sign = code & 0x8000 ? -1 : 1;
  const exponent = (code >>> 10) & 31;
  const rest = code & 1023;
  if (exponent === 31) return rest ? NaN : sign * Infinity;
  return sign * (exponent ? (1024 + rest) * 2 ** (exponent - 25) : rest * 2 ** -24);
}

// Returns the bytes that were sent.
function send(run, index, x, precision) {
  const half = precision === "half" ? Uint16Array.from(x.values, toHalf) : x.values.slice();
  const count = half.byteLength;
  wire.postMessage({ key: `${run}/${index}`, half, maps: x.maps, side: x.side }, [half.buffer]);
  return count;
}

async function receive(run, index) {
  const key = `${run}/${index}`;
  if (!arrived.has(key)) await new Promise((resolve) => awaited.set(key, resolve));
  const { half, maps, side } = arrived.get(key);
  arrived.delete(key);
  awaited.delete(key);
  return { values: half instanceof Uint16Array ? Float32Array.from(half, fromHalf) : half, maps, side };
}

function take({ data }) {
  arrived.set(data.key, data);
  awaited.get(data.key)?.();
}

// A pass from the image to this tower's half of the logits.

function show(run, index, x, bytes) {
  let least = Infinity;
  let largest = -Infinity;
  for (const value of x.values) {
    if (value < least) least = value;
    if (value > largest) largest = value;
  }
  const count = Math.min(x.maps, x.side > 1 ? SHOWN_MAPS : SHOWN_UNITS);
  const values = x.values.slice(0, count * x.side ** 2);
  const told = { kind: "layer", run, index, tower, values, maps: x.maps, side: x.side, least, largest, bytes };
  postMessage(told, [values.buffer]);
}

async function compute({ run, pixels, exchange, precision, quiet }) {
  let busy = 0; // milliseconds of arithmetic, without waiting for the other tower
  let since = performance.now();
  let x = { values: pixels, maps: 3, side: Math.sqrt(pixels.length / 3) };
  for (const [index, layer] of layers.entries()) {
    const { own, other, bias } = parameters[index];
    if (layer.kind === "linear") x = { values: x.values, maps: x.values.length, side: 1 };
    const bytes = layer.both && exchange ? send(run, index, x, precision) : 0;
    const sum = startSum(layer, bias);
    ADD[layer.kind](sum, x, own, layer);
    if (layer.both && exchange) {
      busy += performance.now() - since;
      const peer = await receive(run, index);
      since = performance.now();
      ADD[layer.kind](sum, peer, other, layer);
    } // Without the exchange the other half is zeros, which add nothing.
    x = { ...sum, values: new Float32Array(sum.values) };
    for (const step of layer.steps) x = STEPS[step.kind](x, step);
    if (!quiet) show(run, index, x, bytes);
  }
  busy += performance.now() - since;
  postMessage({ kind: "logits", run, tower, logits: x.values, busy });
}

function load(data) {
  ({ tower, layers } = data);
  wire = data.wire;
  if (wire) wire.onmessage = take;
  parameters = cut(decode(data.weights));
  postMessage({ kind: "loaded", tower, kernels: new Float32Array(parameters[0].own) });
}

onmessage = async ({ data }) => {
  try {
    if (data.kind === "load") load(data);
    else await compute(data);
  } catch (error) {
    postMessage({ kind: "failed", tower, message: error.message });
  }
};
