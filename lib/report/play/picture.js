// Any picture as the 32 x 32 pixels that a network takes: what lib/data/picture.py does with Pillow.

const LARGEST = 1024; // pixels of a side; from larger squares the browser itself shrinks to this first

/** A picture file's central square as 32 x 32 x 3 bytes, transparent places white; an error if it is no picture. */
async function pictureOf(file) {
  const element = new Image(), address = URL.createObjectURL(file);
  try {
    element.src = address;
    await element.decode(); // turned as its EXIF says
    const {naturalWidth: width, naturalHeight: height} = element;
    const side = Math.min(width, height), kept = Math.min(side, LARGEST);
    const canvas = Object.assign(document.createElement("canvas"), {width: kept, height: kept});
    const context = canvas.getContext("2d", {willReadFrequently: true});
    context.fillStyle = "white";
    context.fillRect(0, 0, kept, kept);
    context.imageSmoothingEnabled = side > kept;
    context.imageSmoothingQuality = "high";
    const left = Math.floor((width - side) / 2), top = Math.floor((height - side) / 2);
    context.drawImage(element, left, top, side, side, 0, 0, kept, kept);
    return shrunk(context.getImageData(0, 0, kept, kept).data, kept);
  } finally {
    URL.revokeObjectURL(address);
  }
}

/** A square of side x side RGBA pixels as 32 x 32 x 3 bytes: Pillow's LANCZOS, rows first, rounded between. */
function shrunk(pixels, side) {
  const taps = lanczos(side);
  const rows = new Uint8ClampedArray(side * IMAGE * 3); // (side, 32, 3)
  const image = new Uint8ClampedArray(IMAGE * IMAGE * 3);
  for (let y = 0; y < side; y++) {
    taps.forEach(({first, weights}, x) => {
      for (let colour = 0; colour < 3; colour++) {
        let sum = 0;
        for (let i = 0; i < weights.length; i++) sum += weights[i] * pixels[4 * (y * side + first + i) + colour];
        rows[3 * (y * IMAGE + x) + colour] = Math.floor(sum + 0.5);
      }
    });
  }
  taps.forEach(({first, weights}, y) => {
    for (let x = 0; x < 3 * IMAGE; x++) {
      let sum = 0;
      for (let i = 0; i < weights.length; i++) sum += weights[i] * rows[(first + i) * 3 * IMAGE + x];
      image[y * 3 * IMAGE + x] = Math.floor(sum + 0.5);
    }
  });
  return new Uint8Array(image);
}

/** For each of 32 pixels, which of `side` it is made of and with which weights. */
function lanczos(side) {
  const sinc = (x) => (x === 0 ? 1 : Math.sin(Math.PI * x) / (Math.PI * x));
  const step = side / IMAGE, wide = Math.max(step, 1);
  return Array.from({length: IMAGE}, (_, x) => {
    const centre = (x + 0.5) * step;
    const first = Math.max(0, Math.trunc(centre - 3 * wide + 0.5));
    const end = Math.min(side, Math.trunc(centre + 3 * wide + 0.5));
    const weights = Array.from({length: end - first}, (_, i) => {
      const away = (first + i - centre + 0.5) / wide;
      return Math.abs(away) < 3 ? sinc(away) * sinc(away / 3) : 0;
    });
    const sum = weights.reduce((a, b) => a + b);
    return {first, weights: weights.map((weight) => weight / sum)};
  });
}
