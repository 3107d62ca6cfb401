"use strict";
// The page of a network: it brings pictures to pixels, gives them to the workers that are the towers (tower.js), and
// draws what these send back. All names are put in as text, never as HTML.

const MOST_FILE_BYTES = 200e6;
const MOST_PIXELS = 2 ** 27; // of a picture; as much as Python takes
const MOST_SIDE = 4096; // of the square that is resized here; a larger one is first brought down to it by the canvas
const ANSWERS = 5;
const SCHEME = matchMedia("(prefers-color-scheme: dark)");
const NARROW = matchMedia("(max-width: 43.99rem)");
const NOTES = {
  whole: "",
  cut: "Each tower goes on with zeros in the place of the other's half.",
  off0: "Tower 0 sends zeros, and its half of the classes keeps a logit of 0.",
  off1: "Tower 1 sends zeros, and its half of the classes keeps a logit of 0.",
};

const byId = (id) => document.getElementById(id);
const about = JSON.parse(byId("about").textContent);
const { classes, layers, size } = about;
const towers = Array.from({ length: about.towers }, (_, tower) => tower);
const main = document.querySelector("main");

function make(tag, className = "", ...content) {
  const made = document.createElement(tag);
  if (className) made.className = className;
  made.append(...content);
  return made;
}

function count(number) {
  return number.toLocaleString("en");
}

// Sizes stay on one line.
function square(side) {
  return `${side}\u00a0x\u00a0${side}`;
}

function percent(share) {
  return `${(100 * share).toFixed(1)} %`;
}

function decodeBytes(text) {
  if (Uint8Array.fromBase64) return Uint8Array.fromBase64(text);
  return Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
}

// Takes a text out of the page, so that it does not stay in memory twice.
function takeText(id) {
  const element = byId(id);
  const text = element.textContent;
  element.remove();
  return text;
}

function hasFailed() {
  return main.dataset.state === "failed";
}

function complain(sentence) {
  byId("error").textContent = sentence;
  byId("error").hidden = !sentence;
}

// The towers. One pass runs at a time: `pass` is what is known of it so far.

let workers = [];
let pass = null;
let passes = 0;

function startTowers() {
  const program = URL.createObjectURL(new Blob([takeText("tower")], { type: "text/javascript" }));
  const channel = towers.length > 1 ? new MessageChannel() : null;
  workers = towers.map((tower) => {
    const worker = new Worker(program);
    worker.onmessage = ({ data }) => HEAR[data.kind](data);
    worker.onerror = (event) => giveUp(tower, event.message || "it could not be started");
    const wire = channel && [channel.port1, channel.port2][tower];
    const told = { kind: "load", tower, layers, weights: takeText(`weights-${tower}`), wire };
    worker.postMessage(told, wire ? [wire] : []);
    return worker;
  });
}

function fail(sentence) {
  for (const worker of workers) worker.terminate();
  if (hasFailed()) return; // what came first is the reason
  main.dataset.state = "failed";
  byId("status").textContent = "No answer.";
  complain(sentence);
}

function giveUp(tower, message) {
  fail(`Tower ${tower} has stopped: ${message}. Load this page again.`);
}

const HEAR = {
  loaded: ({ tower, kernels }) => keepKernels(tower, kernels),
  failed: ({ tower, message }) => giveUp(tower, message),
  layer: (data) => {
    if (pass && data.run === pass.run) pass.show(data);
  },
  logits: (data) => {
    if (!pass || data.run !== pass.run) return;
    pass.halves[data.tower] = data.logits;
    pass.busy[data.tower] = data.busy;
    if (pass.running.every((tower) => pass.halves[tower])) pass.finish();
  },
};

// Returns { logits, busy }: tower 0's half first, and each tower's milliseconds of arithmetic.
async function compute(pixels, { mode = "whole", precision = about.precision, show = null } = {}) {
  const off = mode.startsWith("off") ? Number(mode.slice(3)) : null;
  const running = towers.filter((tower) => tower !== off);
  const run = ++passes;
  const { halves, busy } = await new Promise((resolve) => {
    pass = { run, running, halves: [], busy: [], show };
    pass.finish = () => resolve(pass);
    for (const tower of running) {
      const copy = pixels.slice();
      const told = { kind: "run", run, pixels: copy, exchange: mode === "whole", precision, quiet: !show };
      workers[tower].postMessage(told, [copy.buffer]);
    }
  });
  pass = null;
  const last = layers.at(-1).kernels;
  const logits = towers.flatMap((tower) => [...(halves[tower] ?? new Float32Array(last[tower]))]);
  return { logits, busy };
}

function softmax(logits) {
  const largest = Math.max(...logits);
  const powers = logits.map((logit) => Math.exp(logit - largest));
  const sum = powers.reduce((total, power) => total + power, 0);
  return powers.map((power) => power / sum);
}

// Pictures. { name, crop: Uint8ClampedArray [size, size, 4] }, as the network reads them but for the mean.

const mean = new Float32Array(decodeBytes(takeText("mean")).buffer);

// For each output pixel its first input pixel and the weights from there on: a triangle as wide as the step is long.
function triangles(from, to) {
  const scale = from / to;
  const reach = Math.max(scale, 1);
  return Array.from({ length: to }, (_, i) => {
    const centre = (i + 0.5) * scale;
    const first = Math.max(0, Math.floor(centre - reach + 0.5));
    const last = Math.min(from, Math.floor(centre + reach + 0.5));
    const weights = [];
    for (let j = first; j < last; j++) weights.push(Math.max(0, 1 - Math.abs((j - centre + 0.5) / reach)));
    const sum = weights.reduce((total, weight) => total + weight, 0);
    return { first, weights: weights.map((weight) => weight / sum) };
  });
}

// Rows first, then columns, with whole numbers in between, as Pillow and torch do.
function resize(pixels, from, to) {
  if (from === to) return pixels;
  const windows = triangles(from, to);
  const narrow = new Uint8ClampedArray(from * to * 4);
  const small = new Uint8ClampedArray(to * to * 4);
  const fill = (target, place, source, first, step, weights) => {
    for (let channel = 0; channel < 3; channel++) {
      let sum = 0;
      for (let j = 0; j < weights.length; j++) sum += weights[j] * source[first + j * step + channel];
      target[place + channel] = Math.floor(sum + 0.5);
    }
    target[place + 3] = 255;
  };
  for (let row = 0; row < from; row++) {
    windows.forEach(({ first, weights }, i) => fill(narrow, (row * to + i) * 4, pixels, (row * from + first) * 4, 4, weights));
  }
  windows.forEach(({ first, weights }, i) => {
    for (let column = 0; column < to; column++) {
      fill(small, (i * to + column) * 4, narrow, (first * to + column) * 4, to * 4, weights);
    }
  });
  return small;
}

function cutCrop(bitmap) {
  const side = Math.min(bitmap.width, bitmap.height);
  const left = (bitmap.width - side) >> 1;
  const top = (bitmap.height - side) >> 1;
  const drawn = Math.min(side, MOST_SIDE);
  const canvas = new OffscreenCanvas(drawn, drawn);
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.fillStyle = "#fff"; // behind what is transparent
  context.fillRect(0, 0, drawn, drawn);
  context.imageSmoothingEnabled = drawn !== side;
  context.imageSmoothingQuality = "high";
  context.drawImage(bitmap, left, top, side, side, 0, 0, drawn, drawn);
  const prepared = resize(context.getImageData(0, 0, drawn, drawn).data, drawn, about.prepared);
  const begin = (about.prepared - size) >> 1;
  const crop = new Uint8ClampedArray(size * size * 4);
  for (let row = 0; row < size; row++) {
    const from = ((row + begin) * about.prepared + begin) * 4;
    crop.set(prepared.subarray(from, from + size * 4), row * size * 4);
  }
  return crop;
}

async function readPicture(blob, name) {
  if (blob.size > MOST_FILE_BYTES) {
    throw new Error(`${name} has ${count(Math.round(blob.size / 1e6))} MB; choose a picture of at most 200 MB.`);
  }
  let bitmap;
  try {
    bitmap = await createImageBitmap(blob, { imageOrientation: "from-image", colorSpaceConversion: "none" });
  } catch {
    throw new Error(`${name} is no picture that this browser can open; choose a JPEG, PNG, WebP or GIF.`);
  }
  try {
    if (bitmap.width * bitmap.height > MOST_PIXELS) {
      throw new Error(`${name} has more than ${count(MOST_PIXELS)} pixels; choose a smaller picture.`);
    }
    return { name, crop: cutCrop(bitmap) };
  } finally {
    bitmap.close();
  }
}

function toInput(crop) {
  const pixels = size * size;
  const input = new Float32Array(3 * pixels);
  for (let channel = 0; channel < 3; channel++) {
    for (let p = 0; p < pixels; p++) input[channel * pixels + p] = crop[4 * p + channel] - mean[channel * pixels + p];
  }
  return input;
}

// What is asked for last is computed next; whatever was asked for in between is passed over.

let picture = null;
let trained = null; // probabilities of the picture by the network as it was trained
let isBusy = false;
let isStale = false;
let choices = 0; // of pictures, so that one that takes long to read does not come after one that was chosen later

function chosenMode() {
  return document.querySelector("input[name=mode]:checked")?.value ?? "whole";
}

async function answer() {
  if (!picture || hasFailed()) return;
  isStale = true;
  if (isBusy) return;
  isBusy = true;
  while (isStale) {
    isStale = false;
    await answerOnce(picture, chosenMode());
  }
  isBusy = false;
  main.dataset.state = "ready";
  if (!main.dataset.checked) check();
}

async function answerOnce(asked, mode) {
  main.dataset.state = "computing";
  const since = performance.now();
  const input = toInput(asked.crop);
  startFigure(mode);
  const { logits, busy } = await compute(input, { mode, show: keepLayer });
  const probabilities = softmax(logits);
  if (mode === "whole") trained = { of: asked, probabilities };
  else if (trained?.of !== asked) trained = { of: asked, probabilities: softmax((await compute(input)).logits) };
  showAnswer(logits, probabilities, mode);
  main.dataset.answers = Number(main.dataset.answers ?? 0) + 1;
  const times = towers.filter((tower) => tower in busy).map((tower) => `tower ${tower} ${Math.round(busy[tower])} ms`);
  const whole = Math.round(performance.now() - since);
  if (!main.dataset.first) main.dataset.first = Math.round(performance.now());
  byId("timing").textContent =
    `${whole} ms, of which arithmetic: ${times.join(", ")}. ` +
    `The first answer came ${(main.dataset.first / 1000).toFixed(2)} s after the page was opened.`;
}

// A file that was altered, or a browser that computes wrongly, is found out by the answer that the network's own
// towers gave about two pictures that a formula draws: that of `known_images` in weights/verify.py.
async function check() {
  main.dataset.checked = "running";
  isBusy = true;
  let difference = 0;
  let largest = 0;
  for (const [i, wanted] of about.known.logits.entries()) {
    const input = new Float32Array(3 * size * size);
    let place = 0;
    for (let c = 0; c < 3; c++) {
      for (let y = 0; y < size; y++) {
        for (let x = 0; x < size; x++) {
          const waves =
            Math.sin(0.05 * (i + 1) * x + c) + Math.sin(0.07 * (c + 1) * y + i) + Math.sin(0.11 * (x + y) - 2 * i);
          input[place++] = (100 / 3) * waves;
        }
      }
    }
    const { logits } = await compute(input, { precision: "single" });
    logits.forEach((logit, k) => (difference = Math.max(difference, Math.abs(logit - wanted[k]))));
    largest = Math.max(largest, ...wanted.map(Math.abs));
  }
  const share = difference / largest;
  const passed = share <= about.known.tolerance;
  main.dataset.checked = passed ? "passed" : "failed";
  const measured = `its logits for two known pictures differ from Python's by ${share.toExponential(1)} of the largest`;
  byId("check").textContent = passed ? `Checked in this browser just now: ${measured}.` : `Wrong: ${measured}.`;
  if (!passed) complain(`This page computes wrongly in this browser: ${measured}. Export the network again.`);
  isBusy = false;
  if (isStale) answer();
}

// The answer.

function towerOf(index) {
  return index < layers.at(-1).kernels[0] ? 0 : 1;
}

function showAnswer(logits, probabilities, mode) {
  const order = probabilities.map((_, index) => index).sort((a, b) => probabilities[b] - probabilities[a] || a - b);
  const likeliest = order[0];
  byId("status").textContent = `Most likely: ${classes[likeliest]}, ${percent(probabilities[likeliest])}`;
  const rows = order.slice(0, ANSWERS).map((index) => {
    const bar = make("div");
    bar.style.width = `${100 * probabilities[index]}%`;
    const notes = [];
    if (mode !== "whole") notes.push(`as trained ${percent(trained.probabilities[index])}`);
    if (mode === `off${towerOf(index)}`) notes.push("tower off");
    const name = make("span", "", classes[index], " ", make("small", "", notes.join(", ")));
    const share = make("span", "", percent(probabilities[index]));
    return make("li", `of-${towerOf(index)}`, name, share, make("div", "bar", bar));
  });
  byId("answer").replaceChildren(...rows);
  const cells = classes.map((name, index) => {
    const head = make("th", "", name);
    head.scope = "row";
    const numbers = [logits[index].toPrecision(8), probabilities[index].toPrecision(4)];
    return make("tr", "", head, ...numbers.map((text) => make("td", "number", text)));
  });
  document.querySelector("#all tbody").replaceChildren(...cells);
}

// Figure 2.

const boxes = []; // of each layer: a box for each tower, and what stands between them
const seen = []; // of each layer: what each tower sent
let shownMode = "whole";

function ways() {
  const space = "http://www.w3.org/2000/svg";
  const drawing = document.createElementNS(space, "svg");
  drawing.setAttribute("viewBox", "0 0 128 48");
  drawing.setAttribute("aria-hidden", "true");
  for (const [way, head] of [["M6 4 L119 42", "M111 45 L121 43 L115 34"], ["M122 4 L9 42", "M17 45 L7 43 L13 34"]]) {
    for (const [line, name] of [[way, "way"], [head, "head"]]) {
      const path = document.createElementNS(space, "path");
      path.setAttribute("d", line);
      path.setAttribute("class", name);
      drawing.append(path);
    }
  }
  return drawing;
}

function titles(layer, tower) {
  const kernels = layer.kernels[tower];
  if (layer.kind === "linear") {
    const total = towers.length > 1 ? ` of ${count(layer.kernels[0] + layer.kernels[1])}` : "";
    return [`${layer.name}: ${count(kernels)}${total} units`, ""];
  }
  const pooled = layer.size_out === layer.size_conv ? "" : `, pooled to ${square(layer.size_out)}`;
  const details = [`${square(layer.size)} kernels`];
  if (layer.stride > 1) details.push(`stride ${layer.stride}`);
  if (layer.groups > 1) details.push(`${layer.groups} groups`);
  if (layer.kind === "local") details.push("not shared");
  return [`${layer.name}: ${kernels} maps ${square(layer.size_conv)}${pooled}`, details.join(", ")];
}

function buildFigure() {
  document.body.classList.toggle("one-tower", towers.length === 1);
  const readers = towers.length > 1 ? ", read by each tower" : "";
  const heads = [make("span", "image", `the picture, 3\u00a0x\u00a0${square(size)}${readers}`)];
  if (towers.length > 1) heads.push(make("span", "", "tower 0"), make("span", "middle"), make("span", "", "tower 1"));
  document.querySelector(".heads").append(...heads);
  const rows = layers.map((layer) => {
    const row = towers.map((tower) => {
      const [title, details] = titles(layer, tower);
      const canvas = make("canvas");
      canvas.setAttribute("role", "img");
      const note = make("p", "", details);
      return { box: make("div", `box of-${tower}`, make("h3", "", title), note, canvas), canvas, note, details };
    });
    const words = make("span");
    const between = layer.both ? make("div", "between way", ways(), words) : make("div", "between none");
    between.addEventListener("animationend", () => between.classList.remove("crosses"));
    boxes.push({ row, between, words });
    return make("li", "", ...(towers.length > 1 ? [row[0].box, between, row[1].box] : [row[0].box]));
  });
  byId("layers").append(...rows);
}

function startFigure(mode) {
  shownMode = mode;
  seen.length = 0;
}

function isOff(tower) {
  return shownMode === `off${tower}`;
}

function keepLayer(data) {
  seen[data.index] ??= [];
  seen[data.index][data.tower] = data;
  if (!towers.every((tower) => isOff(tower) || seen[data.index][tower])) return;
  drawLayer(data.index);
  if (shownMode === "whole") boxes[data.index].between.classList.add("crosses");
}

// Shades of a tower, 256 times R, G, B: none, half, most.
function readShades(tower) {
  const style = getComputedStyle(document.documentElement);
  const stops = ["low", "middle", "high"].map((name) => {
    const hex = style.getPropertyValue(`--${name}-${tower}`).trim().slice(1);
    const wide = hex.length === 3 ? [...hex].map((digit) => digit + digit).join("") : hex;
    return [0, 2, 4].map((place) => parseInt(wide.slice(place, place + 2), 16));
  });
  return Array.from({ length: 256 }, (_, level) => {
    const place = level / 127.5;
    const [from, to] = place < 1 ? [stops[0], stops[1]] : [stops[1], stops[2]];
    return from.map((value, c) => value + (to[c] - value) * (place < 1 ? place : place - 1));
  });
}

let shades = [];

// Tiles side by side with a gap between them; `colour` gives the R, G, B of a pixel of a tile.
function drawTiles(canvas, tiles, side, columns, colour) {
  const gap = side > 1 ? Math.max(1, Math.round(side / 16)) : 0;
  const rows = Math.ceil(tiles / columns);
  canvas.width = columns * (side + gap) - gap;
  canvas.height = rows * (side + gap) - gap;
  const image = new ImageData(canvas.width, canvas.height);
  for (let tile = 0; tile < tiles; tile++) {
    const top = Math.floor(tile / columns) * (side + gap);
    const left = (tile % columns) * (side + gap);
    for (let p = 0; p < side * side; p++) {
      const place = ((top + Math.floor(p / side)) * canvas.width + left + (p % side)) * 4;
      const [r, g, b] = colour(tile, p);
      image.data[place] = r;
      image.data[place + 1] = g;
      image.data[place + 2] = b;
      image.data[place + 3] = 255;
    }
  }
  canvas.getContext("2d").putImageData(image, 0, 0);
}

function chooseColumns(tiles, side) {
  const most = (side > 1 ? 16 : 64) / (NARROW.matches ? 2 : 1);
  if (tiles >= most) return most;
  return side > 1 ? tiles : Math.min(most, Math.max(tiles, 16));
}

function drawLayer(index) {
  const { row, between, words } = boxes[index];
  const halves = seen[index];
  const running = towers.filter((tower) => halves[tower]);
  const least = Math.min(0, ...running.map((tower) => halves[tower].least));
  const largest = Math.max(...running.map((tower) => halves[tower].largest));
  const span = largest - least || 1;
  for (const tower of towers) {
    const { box, canvas, note, details } = row[tower];
    box.classList.toggle("off", isOff(tower));
    if (isOff(tower)) {
      note.textContent = "off: zeros";
      canvas.setAttribute("aria-label", `${layers[index].name} of tower ${tower} is off`);
      continue;
    }
    const { values, maps, side } = halves[tower];
    const tiles = values.length / side ** 2;
    const shown = tiles < maps ? `the first ${count(tiles)} shown` : "";
    note.textContent = [details, shown].filter(Boolean).join("; ");
    const pixels = side ** 2;
    drawTiles(canvas, tiles, side, chooseColumns(tiles, side), (tile, p) => {
      return shades[tower][Math.round(255 * Math.sqrt((values[tile * pixels + p] - least) / span))];
    });
    const range = `values from ${halves[tower].least.toPrecision(3)} to ${halves[tower].largest.toPrecision(3)}`;
    canvas.setAttribute("aria-label", `${layers[index].name} of tower ${tower}, ${range}`);
  }
  if (!layers[index].both) return;
  const bytes = running.map((tower) => halves[tower].bytes);
  const isCut = shownMode !== "whole";
  between.classList.toggle("cut", isCut);
  const alike = bytes.every((number) => number === bytes[0]);
  words.textContent = isCut ? "nothing crosses: zeros" : `${alike ? count(bytes[0]) : bytes.map(count).join(" and ")} bytes each way`;
  showTotal();
}

function showTotal() {
  const crossing = seen.flatMap((halves, index) => (halves && layers[index].both ? [halves] : []));
  const sent = towers.map((tower) => crossing.reduce((sum, halves) => sum + (halves[tower]?.bytes ?? 0), 0));
  const places = layers.filter((layer) => layer.both).length;
  byId("crossed").textContent =
    shownMode === "whole"
      ? `Tower 0 has sent ${count(sent[0])} bytes and tower 1 ${count(sent[1])}, in ${places} exchange${places > 1 ? "s" : ""}.`
      : "Nothing crosses.";
}

function redraw() {
  shades = towers.map(readShades);
  seen.forEach((halves, index) => halves && drawLayer(index));
}

// The first layer's kernels.

const kernels = [];

function keepKernels(tower, weights) {
  kernels[tower] = weights;
  const layer = layers[0];
  if (!towers.every((each) => kernels[each]) || layer.kind !== "conv" || layer.maps_in[0] !== 3 || layer.groups > 1) return;
  const all = kernels.flatMap((each) => [Math.min(...each), Math.max(...each)]);
  const reach = Math.max(...all.map(Math.abs)) || 1;
  const pixels = layer.size ** 2;
  const figures = towers.map((each) => {
    const canvas = make("canvas");
    canvas.setAttribute("role", "img");
    canvas.setAttribute("aria-label", `The ${layer.kernels[each]} kernels of ${layer.name} in tower ${each}`);
    drawTiles(canvas, layer.kernels[each], layer.size, Math.min(12, layer.kernels[each]), (tile, p) => {
      return [0, 1, 2].map((c) => 127.5 + (127.5 * kernels[each][(tile * 3 + c) * pixels + p]) / reach);
    });
    return make("figure", "", make("figcaption", "", `${towers.length > 1 ? `tower ${each}: ` : ""}${layer.kernels[each]} kernels`), canvas);
  });
  byId("kernels-title").textContent = `The kernels of ${layer.name}`;
  document.querySelector(".kernels").replaceChildren(...figures);
  byId("kernels").hidden = false;
}

// Choosing a picture: drawn, from a file, dropped, pasted.

function usePicture(chosen, button = null) {
  if (hasFailed()) return;
  choices++;
  picture = chosen;
  complain("");
  const canvas = byId("crop");
  canvas.getContext("2d").putImageData(new ImageData(chosen.crop, size, size), 0, 0);
  canvas.setAttribute("aria-label", `${chosen.name}, as the network reads it`);
  for (const each of byId("drawn").children) each.setAttribute("aria-pressed", each === button);
  const strange = button && !about.are_shapes ? " The network was trained on other things than such drawings." : "";
  byId("source").textContent = button ? `Drawn: ${chosen.name}. It is in no training or validation set.${strange}` : chosen.name;
  answer();
}

async function useFile(file) {
  if (!file || hasFailed()) return;
  const choice = ++choices;
  const name = file.name || "what was pasted";
  const before = byId("status").textContent;
  byId("status").textContent = `Reading ${name}.`;
  await new Promise((resolve) => setTimeout(resolve)); // so that it is seen
  try {
    const read = await readPicture(file, name);
    if (choice === choices) usePicture(read);
  } catch (error) {
    if (choice !== choices) return;
    byId("status").textContent = before;
    complain(error.message);
  }
}

async function offerDrawn() {
  for (const [number, { name, png }] of about.pictures.entries()) {
    const drawn = await readPicture(new Blob([decodeBytes(png)], { type: "image/png" }), name);
    const canvas = make("canvas");
    canvas.width = canvas.height = size;
    canvas.getContext("2d").putImageData(new ImageData(drawn.crop, size, size), 0, 0);
    const button = make("button", "", canvas);
    button.type = "button";
    button.setAttribute("aria-label", `drawn picture: ${name}`);
    button.addEventListener("click", () => usePicture(drawn, button));
    byId("drawn").append(button);
    if (number === 0) usePicture(drawn, button);
  }
}

function listen() {
  addEventListener("unhandledrejection", ({ reason }) => fail(`This page has failed: ${reason.message}. Load it again.`));
  byId("file").addEventListener("change", ({ target }) => {
    useFile(target.files[0]);
    target.value = ""; // so that the same file can be chosen again
  });
  const drop = byId("drop");
  addEventListener("dragover", (event) => {
    event.preventDefault();
    drop.classList.add("dropping");
  });
  addEventListener("dragleave", (event) => {
    if (!event.relatedTarget) drop.classList.remove("dropping");
  });
  addEventListener("drop", (event) => {
    event.preventDefault();
    drop.classList.remove("dropping");
    const [file] = event.dataTransfer.files;
    if (file) useFile(file);
    else complain("What was dropped is no file; drop a picture from a folder, or copy and paste it.");
  });
  addEventListener("paste", (event) => {
    const [file] = event.clipboardData.files;
    if (file) useFile(file);
    else complain("There is no picture on the clipboard; copy one first.");
  });
  byId("switches")?.addEventListener("change", () => {
    byId("mode-note").textContent = NOTES[chosenMode()];
    answer();
  });
  byId("switches")?.dispatchEvent(new Event("change")); // some browsers keep a choice when a page is loaded again
  SCHEME.addEventListener("change", redraw);
  NARROW.addEventListener("change", redraw);
}

try {
  startTowers();
  buildFigure();
  shades = towers.map(readShades);
  listen();
  offerDrawn().catch((error) => complain(error.message));
} catch (error) {
  fail(`This browser cannot run the page: ${error.message}. Use one of the last two years.`);
}
