// Decoding files to pixels in the browser: upright, on white, and no larger than the network can use.

const MAX_FILE_BYTES = 256 * 2 ** 20;
const MAX_PIXELS = 89_478_485; // the limit of the Python package
const GRAPH_PIXELS = 2 ** 20; // larger images are averaged in blocks first; the graph resizes the result
const TILE = 1024;
const PREVIEW_SIDE = 800;

class ImageProblem extends Error {}

/** Decode a file to an ImageBitmap: upright by its EXIF, in sRGB by its profile. */
async function decoded(file) {
  if (!file.size) throw new ImageProblem("the file is empty");
  if (file.size > MAX_FILE_BYTES) throw new ImageProblem(`the file is larger than ${MAX_FILE_BYTES / 2 ** 20} MB`);
  let bitmap;
  try {
    bitmap = await createImageBitmap(file, { imageOrientation: "from-image" });
  } catch {
    throw new ImageProblem("it is damaged, or no image that this browser can show");
  }
  if (bitmap.width * bitmap.height > MAX_PIXELS) {
    const received = `${bitmap.width} × ${bitmap.height}`;
    bitmap.close();
    throw new ImageProblem(`its ${received} pixels are too many`);
  }
  return bitmap;
}

/** Return RGB bytes (height, width, 3) of a bitmap; large ones are averaged in blocks, to sides of at least 2 imageSize. */
function pixelsOf(bitmap, imageSize) {
  const needed = Math.ceil(Math.sqrt((bitmap.width * bitmap.height) / GRAPH_PIXELS));
  const allowed = Math.floor(Math.min(bitmap.width, bitmap.height) / (2 * imageSize));
  const block = Math.max(1, Math.min(needed, allowed));
  const width = Math.ceil(bitmap.width / block);
  const height = Math.ceil(bitmap.height / block);
  const rgb = new Uint8Array(width * height * 3);
  const side = Math.max(1, Math.floor(TILE / block)); // blocks along a tile: the size of a canvas is limited on phones
  const canvas = new OffscreenCanvas(side * block, side * block);
  const context = canvas.getContext("2d", { alpha: false, willReadFrequently: true });
  context.fillStyle = "#fff";
  for (let top = 0; top < height; top += side) {
    for (let left = 0; left < width; left += side) {
      const x = left * block;
      const y = top * block;
      const across = Math.min(side * block, bitmap.width - x);
      const down = Math.min(side * block, bitmap.height - y);
      context.fillRect(0, 0, across, down); // transparent pixels become white
      context.drawImage(bitmap, x, y, across, down, 0, 0, across, down);
      const { data } = context.getImageData(0, 0, across, down);
      if (block === 1) copyTile(data, across, down, rgb, width, left, top);
      else averageTile(data, across, down, block, rgb, width, left, top);
    }
  }
  return { rgb, width, height };
}

function copyTile(data, across, down, rgb, width, left, top) {
  for (let row = 0, from = 0; row < down; row++) {
    let to = ((top + row) * width + left) * 3;
    for (let column = 0; column < across; column++, from += 4, to += 3) {
      rgb[to] = data[from];
      rgb[to + 1] = data[from + 1];
      rgb[to + 2] = data[from + 2];
    }
  }
}

function averageTile(data, across, down, block, rgb, width, left, top) {
  for (let y = 0, row = top; y < down; y += block, row++) {
    const bottom = Math.min(y + block, down);
    for (let x = 0, column = left; x < across; x += block, column++) {
      const right = Math.min(x + block, across);
      const count = (bottom - y) * (right - x);
      let red = 0;
      let green = 0;
      let blue = 0;
      for (let v = y; v < bottom; v++) {
        for (let from = (v * across + x) * 4, end = (v * across + right) * 4; from < end; from += 4) {
          red += data[from];
          green += data[from + 1];
          blue += data[from + 2];
        }
      }
      const to = (row * width + column) * 3;
      rgb[to] = red / count + 0.5;
      rgb[to + 1] = green / count + 0.5;
      rgb[to + 2] = blue / count + 0.5;
    }
  }
}

/** Return a small bitmap for display, and close the large one. */
async function previewOf(bitmap) {
  const scale = Math.min(1, PREVIEW_SIDE / Math.max(bitmap.width, bitmap.height));
  const small = await createImageBitmap(bitmap, {
    resizeWidth: Math.max(1, Math.round(bitmap.width * scale)),
    resizeHeight: Math.max(1, Math.round(bitmap.height * scale)),
    resizeQuality: "high",
  });
  bitmap.close();
  return small;
}
