// The recogniser in a worker, so that the page stays responsive while it computes. onnxruntime and the network come from
// the page; the worker's text is onnxruntime's, followed by pixels.js and this file.

const MOST_ANSWERS = 5;

let opening;

self.onmessage = async ({ data: { id, open, file } }) => {
  try {
    if (open) {
      opening = opened(open);
      await opening;
      self.postMessage({ id });
    } else {
      const { answer, preview } = await answered(await opening, file);
      self.postMessage({ id, answer, preview }, [preview]);
    }
  } catch (error) {
    self.postMessage({ id, problem: String(error?.message ?? error), ofImage: error instanceof ImageProblem });
  }
};

async function opened({ wasm, network, imageSize, crop, threshold }) {
  // onnxruntime requests its wasm with `fetch`; this returns it from the page, without a connection.
  self.fetch = async () => new Response(inflated(wasm), { headers: { "Content-Type": "application/wasm" } });
  ort.env.wasm.numThreads = 1;
  ort.env.logLevel = "error";
  const bytes = new Uint8Array(await new Response(inflated(network)).arrayBuffer());
  const session = await ort.InferenceSession.create(bytes, { executionProviders: ["wasm"] });
  return { session, imageSize, crop, threshold };
}

function inflated(text) {
  return new Blob([bytesOf(text)]).stream().pipeThrough(new DecompressionStream("gzip"));
}

// The digits of RFC 1924 with a comma for "<", which a block of an HTML file cannot hold everywhere.
const DIGITS = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz!#$%&()*+-;,=>?@^_`{|}~";

/** Return the bytes of a text in base 85: five digits are four bytes, big end first; the last group may be shorter. */
function bytesOf(text) {
  const values = new Uint8Array(128);
  for (let value = 0; value < DIGITS.length; value++) values[DIGITS.charCodeAt(value)] = value;
  const groups = Math.ceil(text.length / 5);
  const padded = text.padEnd(5 * groups, "~");
  const numbers = new DataView(new ArrayBuffer(4 * groups));
  for (let group = 0; group < groups; group++) {
    let number = 0;
    for (let digit = 5 * group; digit < 5 * group + 5; digit++) number = number * 85 + values[padded.charCodeAt(digit)];
    numbers.setUint32(4 * group, number);
  }
  return new Uint8Array(numbers.buffer, 0, 4 * groups - (padded.length - text.length));
}

async function answered({ session, imageSize, crop, threshold }, file) {
  const bitmap = await decoded(file);
  const seen = seenOf(bitmap.width, bitmap.height, crop);
  const { rgb, width, height } = pixelsOf(bitmap, imageSize);
  const preview = await previewOf(bitmap);
  const { probabilities, features, known_score, best, maps, whitened, trained_scores } = await session.run({
    image: new ort.Tensor("uint8", rgb, [1, height, width, 3]),
  });
  const labels = Array.from(best.data, Number);
  const score = known_score.data[0];
  const answer = {
    answers: labels.slice(0, MOST_ANSWERS).map((label) => ({ label, probability: probabilities.data[label] })),
    known: threshold === null ? null : score >= threshold,
    score,
    features: features?.data,
    maps: maps ? { rows: maps.dims[2], columns: maps.dims[3], values: maps.data } : null,
    seen,
    ...(whitened && { probabilities: probabilities.data, whitened: whitened.data, trainedScores: trained_scores.data }),
  };
  return { answer, preview };
}

/** Return left, top, right and bottom of the central square that the network sees, as shares of both sides. */
function seenOf(width, height, crop) {
  const side = Math.min(width, height) * crop;
  const [across, down] = [side / width / 2, side / height / 2];
  return [0.5 - across, 0.5 - down, 0.5 + across, 0.5 + down];
}
