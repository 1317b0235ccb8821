// ConvMixer in evaluation mode, as lib/model.py has it: dim h, depth d, kernel k, patch p.
// A map is a Float32Array of (h, n, n) values, n = 32 / p: channel by channel, row by row.
"use strict";

const IMAGE = 32;
const EPS = 1e-5; // BatchNorm's

/** The layers of a packed network (see build.py), BatchNorm folded into a scale and a shift for each channel. */
function unpack(packed) {
  const {dim, depth, kernel, patch} = packed;
  const values = floats(packed.weights);
  let at = 0;
  const take = (count) => values.subarray(at, (at += count));
  const layer = (count) => {
    const weight = take(count), bias = take(dim);
    const [gamma, beta, mean, variance] = [take(dim), take(dim), take(dim), take(dim)];
    const scale = gamma.map((g, c) => g / Math.sqrt(variance[c] + EPS));
    return {weight, bias, scale, shift: beta.map((b, c) => b - mean[c] * scale[c])};
  };
  const stem = layer(dim * 3 * patch * patch);
  const blocks = Array.from({length: depth}, () => ({depthwise: layer(dim * kernel * kernel), pointwise: layer(dim * dim)}));
  return {...packed, side: IMAGE / patch, stem, blocks, head: {weight: take(10 * dim), bias: take(10)}};
}

/** 16-bit floats in base64, as a Float32Array. */
function floats(base64) {
  const bytes = Uint8Array.from(atob(base64), (letter) => letter.charCodeAt(0));
  return Float32Array.from({length: bytes.length / 2}, (_, i) => {
    const bits = bytes[2 * i] | (bytes[2 * i + 1] << 8);
    const exponent = (bits >> 10) & 31, fraction = bits & 1023;
    const size = exponent ? 2 ** (exponent - 15) * (1 + fraction / 1024) : 2 ** -14 * (fraction / 1024);
    return bits >> 15 ? -size : size;
  });
}

/** What a network makes of an image, 32 x 32 x 3 bytes: its ten logits and every map on the way.
 *  maps[0] is {out} of the patch embedding, maps[i] {seen, out} of block i: seen by the kernels, and after the block. */
function forward(network, image) {
  let x = activated(embedded(network, image), network.stem);
  const maps = [{out: x}];
  for (const block of network.blocks) {
    const seen = activated(depthwise(x, block.depthwise, network), block.depthwise);
    x = activated(pointwise(seen.map((value, i) => value + x[i]), block.pointwise, network), block.pointwise);
    maps.push({seen, out: x});
  }
  const {head, dim} = network, size = x.length / dim;
  const logits = Array.from(head.bias);
  for (let c = 0; c < dim; c++) {
    let sum = 0;
    for (let i = c * size; i < (c + 1) * size; i++) sum += x[i];
    for (let y = 0; y < 10; y++) logits[y] += head.weight[y * dim + c] * (sum / size);
  }
  return {logits, maps};
}

/** The patch embedding: each patch of the normalised image times each of the h filters. */
function embedded({dim, patch, side, mean, std, stem}, image) {
  const out = new Float32Array(dim * side * side), size = patch * patch * 3;
  const pixels = new Float32Array(size);
  for (let row = 0; row < side; row++) {
    for (let column = 0; column < side; column++) {
      for (let i = 0, y = 0; y < patch; y++) {
        for (let x = 0; x < patch; x++, i++) {
          const from = 3 * ((row * patch + y) * IMAGE + column * patch + x);
          for (let colour = 0; colour < 3; colour++) {
            pixels[colour * patch * patch + i] = (image[from + colour] / 255 - mean[colour]) / std[colour];
          }
        }
      }
      for (let c = 0; c < dim; c++) {
        let sum = stem.bias[c];
        for (let i = 0; i < size; i++) sum += stem.weight[c * size + i] * pixels[i];
        out[(c * side + row) * side + column] = sum;
      }
    }
  }
  return out;
}

/** Mixes places: each channel with its own k x k kernel, zeros around it; an even kernel reaches further below and right. */
function depthwise(x, {weight, bias}, {dim, side, kernel}) {
  const out = new Float32Array(x.length), size = side * side, before = (kernel - 1) >> 1;
  for (let c = 0; c < dim; c++) {
    const plane = c * size;
    out.fill(bias[c], plane, plane + size);
    for (let i = 0; i < kernel; i++) {
      for (let j = 0; j < kernel; j++) {
        const w = weight[(c * kernel + i) * kernel + j], down = i - before, right = j - before;
        const top = Math.max(0, -down), bottom = Math.min(side, side - down);
        const left = Math.max(0, -right), end = Math.min(side, side - right);
        for (let row = top; row < bottom; row++) {
          let to = plane + row * side + left, from = to + down * side + right;
          for (const last = plane + row * side + end; to < last; to++, from++) out[to] += w * x[from];
        }
      }
    }
  }
  return out;
}

/** Mixes channels: at each place an h x h matrix times its channels, four of them at a time. */
function pointwise(x, {weight, bias}, {dim, side}) {
  const out = new Float32Array(x.length), size = side * side;
  for (let o = 0; o < dim; o++) {
    const sum = out.subarray(o * size, (o + 1) * size).fill(bias[o]);
    let c = 0;
    for (; c + 3 < dim; c += 4) {
      const [w0, w1, w2, w3] = weight.subarray(o * dim + c, o * dim + c + 4);
      for (let i = 0, a = c * size; i < size; i++, a++) {
        sum[i] += w0 * x[a] + w1 * x[a + size] + w2 * x[a + 2 * size] + w3 * x[a + 3 * size];
      }
    }
    for (; c < dim; c++) {
      for (let i = 0, w = weight[o * dim + c]; i < size; i++) sum[i] += w * x[c * size + i];
    }
  }
  return out;
}

/** GELU, then BatchNorm, in place. */
function activated(x, {scale, shift}) {
  const size = x.length / scale.length;
  for (let c = 0, i = 0; c < scale.length; c++) {
    for (const end = i + size, s = scale[c], t = shift[c]; i < end; i++) x[i] = gelu(x[i]) * s + t;
  }
  return x;
}

/** x times the chance that a standard normal number is below x: the exact GELU, PyTorch's default. */
function gelu(x) {
  return 0.5 * x * erfc(-x * Math.SQRT1_2);
}

/** 1 - erf(x), wrong by less than 1.2e-7 of its value (Press et al., Numerical Recipes, section 6.2). */
function erfc(x) {
  const t = 1 / (1 + 0.5 * Math.abs(x));
  const power = -x * x - 1.26551223 + t * (1.00002368 + t * (0.37409196 + t * (0.09678418 + t * (-0.18628806 + t * (
    0.27886807 + t * (-1.13520398 + t * (1.48851587 + t * (-0.82215223 + t * 0.17087277))))))));
  const tail = t * Math.exp(power);
  return x >= 0 ? tail : 2 - tail;
}

/** Probabilities from logits. */
function softmax(logits) {
  const most = Math.max(...logits), values = logits.map((value) => Math.exp(value - most));
  const sum = values.reduce((a, b) => a + b);
  return values.map((value) => value / sum);
}

/** Where a network finds its evidence for class y: what each place adds to the logit, (n, n), whose mean is the logit
 *  without its bias. Exact, since the head is linear and comes after the mean. */
function evidence({head, dim}, {maps}, y) {
  const x = maps.at(-1).out, size = x.length / dim, out = new Float32Array(size);
  for (let c = 0; c < dim; c++) {
    for (let i = 0, w = head.weight[y * dim + c]; i < size; i++) out[i] += w * x[c * size + i];
  }
  return out;
}
