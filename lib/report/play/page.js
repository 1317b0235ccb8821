// The page: what is chosen, and how it is shown.

const CLASSES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"];
const $ = (name) => document.getElementById(name);
const packed = JSON.parse($("networks").textContent);
const pictures = Uint8Array.from(atob($("images").textContent), (letter) => letter.charCodeAt(0));
const dark = matchMedia("(prefers-color-scheme: dark)");

const built = []; // networks by number, unpacked when they are first chosen
const now = {
  network: null, image: null, label: "", result: null, // what is computed with, on and to
  layer: 0, channel: 0, row: 0, column: 0, shown: null, kept: null, // what is looked at; shown: a class's evidence
};

// Choosing

function chooseNetwork(number) {
  now.network = built[number] ??= unpack(packed[number]);
  const {depth, dim, side} = now.network;
  now.layer = Math.min(now.layer, depth);
  now.channel = Math.min(now.channel, dim - 1);
  now.row = now.column = side >> 1;
  const names = ["patch embedding", ...Array.from({length: depth}, (_, i) => `block ${i + 1}`)];
  $("layers").replaceChildren($("layers").firstElementChild, ...names.map((name, i) => {
    const label = document.createElement("label");
    label.innerHTML = `<input type="radio" name="layer" value="${i}"${i === now.layer ? " checked" : ""}><span>${name}</span>`;
    return label;
  }));
  compute();
}

function chooseImage(image, button, label = "") {
  Object.assign(now, {image, label});
  for (const other of $("pictures").children) other.setAttribute("aria-pressed", other === button);
  problem("");
  compute();
}

async function chooseFile(file) {
  try {
    const image = await pictureOf(file);
    $("own")?.remove();
    chooseImage(image, addPicture(image, "your picture", "own"));
  } catch {
    problem(`${file.name || "This"} is not a picture that this browser can read.`);
  }
}

function problem(text) {
  $("problem").textContent = text;
  $("problem").hidden = !text;
}

function compute() {
  if (!now.image || !now.network) return;
  const begun = performance.now();
  now.result = forward(now.network, now.image);
  now.milliseconds = performance.now() - begun;
  showAnswer();
  showPicture();
  showLayer();
}

// The picture and the answer

function addPicture(image, name, id) {
  const button = document.createElement("button");
  button.type = "button";
  button.title = name;
  if (id) button.id = id;
  button.setAttribute("aria-label", name);
  button.append(paint(document.createElement("canvas"), IMAGE, (i) => image.subarray(3 * i, 3 * i + 3)));
  button.onclick = () => chooseImage(image, button, id ? "" : name);
  $("pictures").append(button);
  return button;
}

function showAnswer() {
  const {logits} = now.result, chances = softmax(logits), first = chances.indexOf(Math.max(...chances));
  [...$("classes").children].forEach((button, y) => {
    const chance = 100 * chances[y];
    button.classList.toggle("first", y === first);
    button.dataset.logit = logits[y];
    button.querySelector("i").style.width = `${chance}%`;
    button.querySelector("b").textContent = `${chance.toFixed(1)} %`;
  });
  const time = now.milliseconds < 1 ? "less than 1" : now.milliseconds.toFixed(0);
  const label = now.label && (now.label === CLASSES[first] ? ", and so does its label" : `; its label is ${now.label}`);
  $("answer").textContent = `${now.network.name} of ${now.network.study} says ${CLASSES[first]}${label} (${time} ms). ` +
    "Point at a class to see where in the picture it finds its evidence; a click keeps it.";
}

/** The picture with its patches, the patch that is looked at and what a kernel sees around it, or a class's evidence. */
function showPicture() {
  const canvas = $("picture").firstElementChild, context = canvas.getContext("2d");
  const {patch, kernel, side} = now.network, pixel = canvas.width / IMAGE, cell = pixel * patch;
  const small = paint(document.createElement("canvas"), IMAGE, (i) => now.image.subarray(3 * i, 3 * i + 3));
  context.imageSmoothingEnabled = false;
  context.drawImage(small, 0, 0, canvas.width, canvas.width);
  if (now.shown !== null) {
    const places = evidence(now.network, now.result, now.shown);
    const most = Math.max(...places.map(Math.abs)) || 1;
    context.fillStyle = "rgb(20 24 28 / 45%)";
    context.fillRect(0, 0, canvas.width, canvas.width);
    places.forEach((value, i) => {
      const [r, g, b] = value > 0 ? [255, 140, 40] : [60, 150, 240];
      context.fillStyle = `rgb(${r} ${g} ${b} / ${(80 * Math.abs(value)) / most}%)`;
      context.fillRect((i % side) * cell, Math.floor(i / side) * cell, cell, cell);
    });
    $("about-picture").textContent = `Orange places speak for ${CLASSES[now.shown]}, blue ones against it.`;
    return;
  }
  context.strokeStyle = "rgb(255 255 255 / 30%)";
  context.lineWidth = 1;
  context.beginPath();
  for (let i = 1; i < side; i++) {
    context.moveTo(i * cell, 0);
    context.lineTo(i * cell, canvas.width);
    context.moveTo(0, i * cell);
    context.lineTo(canvas.width, i * cell);
  }
  context.stroke();
  const before = (kernel - 1) >> 1;
  framed(context, (now.column - before) * cell, (now.row - before) * cell, kernel * cell, "#ff9a3c");
  framed(context, now.column * cell, now.row * cell, cell, "#ffffff");
  const patches = patch === 1 ? "every pixel is a patch" : `patches of ${patch} × ${patch} pixels`;
  $("about-picture").textContent = `p=${patch}: ${patches}, ${side} × ${side} of them. k=${kernel}: around the patch that ` +
    `is looked at (white), a kernel of the first block sees ${kernel} × ${kernel} patches (orange), ` +
    `${kernel * patch} × ${kernel * patch} pixels.`;
}

function framed(context, x, y, size, colour) {
  for (const [width, style] of [[6, "rgb(0 0 0 / 55%)"], [3, colour]]) {
    context.lineWidth = width;
    context.strokeStyle = style;
    context.strokeRect(x, y, size, size);
  }
}

function lookAt(row, column) {
  const last = now.network.side - 1;
  now.row = Math.min(Math.max(row, 0), last);
  now.column = Math.min(Math.max(column, 0), last);
  showPicture();
  showChannel();
}

function showEvidence(y) {
  now.shown = y;
  [...$("classes").children].forEach((button, i) => button.setAttribute("aria-pressed", i === now.kept));
  showPicture();
}

// Inside

/** A channel of the chosen layer: what its kernel takes and gives, as planes of n x n values. */
function channelOf(layer, c) {
  const {stem, blocks, kernel, patch, side} = now.network, {maps} = now.result;
  const plane = (map) => map.subarray(c * side * side, (c + 1) * side * side);
  if (!layer) {
    const size = 3 * patch * patch;
    return {weights: stem.weight.subarray(c * size, (c + 1) * size), seen: plane(maps[0].out)};
  }
  const weights = blocks[layer - 1].depthwise.weight.subarray(c * kernel * kernel, (c + 1) * kernel * kernel);
  return {weights, from: plane(maps[layer - 1].out), seen: plane(maps[layer].seen), out: plane(maps[layer].out)};
}

function showLayer() {
  const options = Array.from({length: now.network.dim}, (_, c) => {
    const option = $("channels").children[c] ?? document.createElement("div");
    if (!option.firstChild) {
      option.setAttribute("role", "option");
      option.setAttribute("aria-label", `channel ${c + 1}`);
      option.append(document.createElement("canvas"), document.createElement("canvas"));
    }
    const {weights, seen} = channelOf(now.layer, c);
    paintKernel(option.children[0], weights);
    paintMap(option.children[1], seen);
    return option;
  });
  $("channels").replaceChildren(...options);
  showChannel();
}

function showChannel() {
  const {layer, channel, network} = now, {weights, from, seen, out} = channelOf(layer, channel);
  [...$("channels").children].forEach((option, c) => {
    option.setAttribute("aria-selected", c === channel);
    option.tabIndex = c === channel ? 0 : -1;
  });
  const range = (values) => `${shown(Math.min(...values))} to ${shown(Math.max(...values))}`;
  if (from) paintMap($("from"), from, true);
  else paint($("from"), IMAGE, (i) => now.image.subarray(3 * i, 3 * i + 3));
  paintKernel($("kernel"), weights);
  paintMap($("seen"), seen, true);
  const size = layer ? network.kernel : network.patch;
  $("from-text").textContent = from ? `channel ${channel + 1} before block ${layer}: ${range(from)}` : "the picture";
  $("kernel-text").textContent = layer ? `its kernel, ${size}\u00a0×\u00a0${size}: ${range(weights)}`
    : `filter ${channel + 1}, ${size}\u00a0×\u00a0${size} pixels as colours`;
  $("seen-text").textContent = `its map, after GELU and BatchNorm: ${range(seen)}`;
  for (const rest of document.querySelectorAll(".rest")) rest.hidden = !out;
  if (out) {
    paintMap($("out"), out, true);
    $("out-text").textContent = `channel ${channel + 1} after block ${layer}, channels mixed: ${range(out)}`;
  }
  const place = now.row * network.side + now.column;
  $("reading").textContent = `Channel ${channel + 1} at row ${now.row + 1}, column ${now.column + 1}: ` +
    (from ? `${shown(from[place])} → ${shown(seen[place])}` : shown(seen[place])) +
    (out ? ` → ${shown(out[place])}` : "");
}

function chooseChannel(c, focus) {
  now.channel = Math.min(Math.max(c, 0), now.network.dim - 1);
  showChannel();
  if (focus) $("channels").children[now.channel].focus();
}

const shown = (value) => value.toFixed(2).replace("-", "−");

// Colours

/** Paints size x size pixels; colour(i) gives three bytes. */
function paint(canvas, size, colour) {
  canvas.width = canvas.height = size;
  const context = canvas.getContext("2d"), data = context.createImageData(size, size);
  for (let i = 0; i < size * size; i++) data.data.set([...colour(i), 255], 4 * i);
  context.putImageData(data, 0, 0);
  return canvas;
}

/** Between two or more colours, at 0..1. */
function between(colours, at) {
  const place = Math.min(Math.max(at, 0), 1) * (colours.length - 1), i = Math.min(Math.floor(place), colours.length - 2);
  return colours[i].map((value, n) => value + (place - i) * (colours[i + 1][n] - value));
}

/** A kernel, blue below and orange above zero; the patch embedding's filters (3, p, p) as the colours that they are. */
function paintKernel(canvas, weights) {
  const colours = [[31, 111, 180], dark.matches ? [36, 43, 50] : [244, 244, 242], [217, 100, 28]];
  const most = Math.max(...weights.map(Math.abs)) || 1;
  if (now.layer) return paint(canvas, now.network.kernel, (i) => between(colours, 0.5 + weights[i] / most / 2));
  const size = now.network.patch ** 2;
  return paint(canvas, now.network.patch, (i) => [0, 1, 2].map((c) => 127.5 * (1 + weights[c * size + i] / most)));
}

/** A map from its least to its greatest value; with `looked` the place that is looked at is marked. */
function paintMap(canvas, values, looked) {
  const least = Math.min(...values), range = Math.max(...values) - least || 1, side = now.network.side;
  const colours = [[0, 34, 78], [124, 123, 120], [254, 232, 56]];
  const place = looked ? now.row * side + now.column : -1;
  return paint(canvas, side, (i) => (i === place ? [255, 90, 30] : between(colours, (values[i] - least) / range)));
}

// Hands

const ARROWS = {ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1]};

function placeUnder(event) {
  const box = $("picture").getBoundingClientRect(), {side} = now.network;
  return [(event.clientY - box.top) / box.height, (event.clientX - box.left) / box.width].map((at) => Math.floor(at * side));
}

$("picture").onpointermove = $("picture").onpointerdown = (event) => lookAt(...placeUnder(event));
$("picture").onkeydown = (event) => {
  if (!ARROWS[event.key]) return;
  event.preventDefault();
  lookAt(now.row + ARROWS[event.key][0], now.column + ARROWS[event.key][1]);
};

CLASSES.forEach((name, y) => {
  const button = document.createElement("button");
  button.type = "button";
  button.innerHTML = `<span>${name}</span><i></i><b></b>`;
  button.onclick = () => showEvidence((now.kept = now.kept === y ? null : y));
  button.onpointerenter = button.onfocus = () => showEvidence(y);
  button.onpointerleave = button.onblur = () => showEvidence(now.kept);
  $("classes").append(button);
});

$("channels").onkeydown = (event) => {
  const options = [...$("channels").children];
  const columns = options.filter((option) => option.offsetTop === options[0].offsetTop).length;
  const step = {ArrowLeft: -1, ArrowRight: 1, ArrowUp: -columns, ArrowDown: columns, Home: -Infinity, End: Infinity}[event.key];
  if (!step) return;
  event.preventDefault();
  chooseChannel(now.channel + step, true);
};
const optionOf = (event) => [...$("channels").children].indexOf(event.target.closest("[role=option]"));
for (const kind of ["pointermove", "focusin", "click"]) {
  $("channels").addEventListener(kind, (event) => {
    const still = kind === "pointermove" && !event.movementX && !event.movementY; // the list was scrolled under the pointer
    const channel = optionOf(event);
    if (channel >= 0 && channel !== now.channel && !still) chooseChannel(channel);
    if (kind === "click") $("channels").children[now.channel].focus();
  });
}

document.addEventListener("change", ({target}) => {
  if (target.name === "network") chooseNetwork(Number(target.value));
  if (target.name === "layer") {
    now.layer = Number(target.value);
    showLayer();
  }
  if (target.id === "file" && target.files.length) chooseFile(target.files[0]);
});
document.addEventListener("paste", ({clipboardData}) => clipboardData.files.length && chooseFile(clipboardData.files[0]));
for (const kind of ["dragover", "dragleave", "drop"]) {
  document.addEventListener(kind, (event) => {
    event.preventDefault();
    document.body.classList.toggle("dropping", kind === "dragover");
    if (kind === "drop" && event.dataTransfer.files.length) chooseFile(event.dataTransfer.files[0]);
  });
}
dark.addEventListener("change", showLayer);

CLASSES.forEach((name, y) => addPicture(pictures.subarray(y * 3072, (y + 1) * 3072), name));
const best = packed.reduce((best, network, i) => (network.validation > packed[best].validation ? i : best), 0);
document.querySelectorAll("[name=network]")[best].checked = true;
now.layer = Math.min(1, packed[best].depth);
chooseNetwork(best);
$("pictures").children[8].click();
