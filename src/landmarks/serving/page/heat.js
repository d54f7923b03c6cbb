// Heat maps over an image, drawn as the Python package does: cold regions lose their colour.

const INFERNO = [
  [0, 0, 4], [11, 7, 36], [33, 12, 74], [61, 9, 101], [87, 16, 110], [113, 25, 110], [138, 34, 106], [163, 44, 97],
  [188, 55, 84], [210, 70, 68], [228, 90, 49], [241, 115, 29], [249, 142, 9], [252, 172, 17], [249, 203, 53],
  [242, 234, 105], [252, 255, 164],
]; // seventeen steps of the colour map "inferno" (Smith & van der Walt 2015, CC0)
const HOTTEST = 0.78; // opacity of the warmest position

/** Draw `preview` on `canvas`, and map number `which` over its square `seen`; null draws the image alone. */
function drawImage(canvas, preview, maps, which, seen) {
  canvas.width = preview.width;
  canvas.height = preview.height;
  const context = canvas.getContext("2d");
  context.drawImage(preview, 0, 0);
  if (maps === null || which === null) return;
  const [left, top] = [Math.round(seen[0] * preview.width), Math.round(seen[1] * preview.height)];
  const side = Math.max(1, Math.round((seen[2] - seen[0]) * preview.width));
  const square = context.getImageData(left, top, side, side);
  warm(square.data, side, maps, which);
  context.putImageData(square, left, top);
  frame(context, left, top, side);
}

/** Dim what the network does not see, and draw a dashed line around what it sees. */
function frame(context, left, top, side) {
  const { width, height } = context.canvas;
  if (side === width && side === height) return;
  context.fillStyle = "rgb(20 22 24 / 55%)";
  const outside = new Path2D();
  outside.rect(0, 0, width, height);
  outside.rect(left, top, side, side);
  context.fill(outside, "evenodd");
  context.strokeStyle = "rgb(255 255 255 / 80%)";
  context.lineWidth = Math.max(1, width / 400);
  context.setLineDash([width / 80, width / 100]);
  context.strokeRect(left, top, side, side);
}

function warm(data, side, { rows, columns, values }, which) {
  const map = values.subarray(which * rows * columns, (which + 1) * rows * columns);
  const across = weights(side, columns);
  const down = weights(side, rows);
  for (let y = 0, at = 0; y < side; y++) {
    for (let x = 0; x < side; x++, at += 4) {
      let heat = 0;
      for (let v = 0; v < 4; v++) {
        const row = down.from[y * 4 + v] * columns;
        let sum = 0;
        for (let u = 0; u < 4; u++) sum += across.weight[x * 4 + u] * map[row + across.from[x * 4 + u]];
        heat += down.weight[y * 4 + v] * sum;
      }
      heat = Math.min(1, Math.max(0, heat));
      const grey = 0.299 * data[at] + 0.587 * data[at + 1] + 0.114 * data[at + 2];
      const opacity = HOTTEST * heat ** 0.7;
      const step = heat * (INFERNO.length - 1);
      const low = INFERNO[Math.floor(step)];
      const high = INFERNO[Math.ceil(step)];
      for (let channel = 0; channel < 3; channel++) {
        const colour = low[channel] + (step - Math.floor(step)) * (high[channel] - low[channel]);
        const faded = 0.55 * grey + 0.35 * data[at + channel];
        data[at + channel] = (1 - opacity) * faded + opacity * colour + 0.5;
      }
    }
  }
}

/** Weights of the four map values around each of `side` pixels: cubic convolution (Keys 1981, a = -0.5). */
function weights(side, count) {
  const from = new Int32Array(side * 4);
  const weight = new Float32Array(side * 4);
  for (let pixel = 0; pixel < side; pixel++) {
    const place = ((pixel + 0.5) * count) / side - 0.5;
    const first = Math.floor(place) - 1;
    for (let tap = 0; tap < 4; tap++) {
      const away = Math.abs(place - first - tap);
      from[pixel * 4 + tap] = Math.min(count - 1, Math.max(0, first + tap));
      weight[pixel * 4 + tap] =
        away < 1 ? (1.5 * away - 2.5) * away * away + 1 : ((-0.5 * away + 2.5) * away - 4) * away + 2;
    }
  }
  return { from, weight };
}
