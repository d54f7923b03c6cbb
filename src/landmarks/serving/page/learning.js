// Learning landmarks as `recognition/learned.py` does: the odds of each learned landmark against all trained
// ones, from the network's outputs for a few images, and a threshold for how closely an image must resemble them.

const ACCEPTED = 0.02; // largest share of the record's other images that may be taken for learned landmarks
const LEAST = 1e-30;
const FILE_FORMAT = 1;
const MAX_NAME = 200;

const bytesOfBase64 = (text) => Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
const floatsOf = (text) => new Float32Array(bytesOfBase64(text).buffer);

function base64OfFloats(numbers) {
  return btoa(String.fromCharCode(...new Uint8Array(Float32Array.from(numbers).buffer)));
}

/** Return the record of an export with its images unpacked to rows of numbers. */
function learningRecord(told) {
  const rows = ({ images, scales }) => {
    const numbers = new Int8Array(bytesOfBase64(images).buffer);
    return [...floatsOf(scales)].map((scale, at) =>
      Float64Array.from(numbers.subarray(at * told.width, (at + 1) * told.width), (number) => number * scale),
    );
  };
  const found = { ...told, validation: rows(told.validation), others: rows(told.others) };
  found.evidence = floatsOf(told.evidence);
  found.best = floatsOf(told.best);
  if (!found.others.length) found.others = found.validation;
  return found;
}

const dot = (first, second) => first.reduce((sum, number, at) => sum + number * second[at], 0);

function lengthOne(row) {
  const length = Math.max(Math.sqrt(dot(row, row)), 1e-12);
  return Float64Array.from(row, (number) => number / length);
}

const logSumExp = (numbers) => {
  const top = numbers.reduce((most, number) => Math.max(most, number), -Infinity);
  return top + Math.log(numbers.reduce((sum, number) => sum + Math.exp(number - top), 0));
};

/** Return the learner of one or more `landmarks`, each {name, landmark_id, images: rows of whitened features}. */
function learnerOf(record, landmarks) {
  const known = landmarks.map(({ images }) => {
    const mean = Float64Array.from({ length: record.width }, (_, at) => images.reduce((sum, row) => sum + row[at], 0) / images.length);
    const bias = record.excess / images.length / 2 - dot(mean, mean) / 2;
    return { mean, bias, directions: images.map(lengthOne) };
  });
  const others = record.others.map(lengthOne);
  const kernel = (direction, other) => Math.exp(record.concentration * (dot(direction, other) - 1));
  const density = (direction, images) =>
    Math.log(Math.max(images.reduce((sum, one) => sum + kernel(direction, one), 0) / images.length, LEAST));
  const scores = (row) => {
    const direction = lengthOne(row);
    return known.map(
      ({ mean, bias, directions }) => record.discriminant * (dot(row, mean) + bias) + record.density * density(direction, directions),
    );
  };
  /** By how much a row resembles the nearest learned landmark more than other images; leaves out number `itself`. */
  const resemblance = (row, itself = -1) => {
    const direction = lengthOne(row);
    const nearest = Math.max(...known.map(({ directions }) => density(direction, directions)));
    const sum = others.reduce((total, one, at) => (at === itself ? total : total + kernel(direction, one)), 0);
    const count = Math.max(others.length - (itself >= 0 ? 1 : 0), 1);
    return nearest - Math.log(Math.max(sum / count, LEAST));
  };
  let offset = 0;
  if (record.best.length) {
    const margins = record.validation.map((row, at) => record.best[at] - (Math.max(...scores(row)) - record.evidence[at]));
    margins.sort((first, second) => first - second);
    offset = record.most_offset;
    if (record.spare < margins.length) offset = Math.min(offset, margins[record.spare] - 1e-6);
  }
  let threshold = Infinity;
  if (others.length > 1) {
    const likeness = record.others.map((row, at) => resemblance(row, at)).sort((first, second) => first - second);
    threshold = likeness[likeness.length - 1 - Math.floor(ACCEPTED * likeness.length)];
  }
  /** Return probabilities of the trained landmarks, followed by those of the learned ones. */
  const probabilities = (trained, row, trainedScores) => {
    const evidence = logSumExp(trainedScores);
    const old = Array.from(trained, (one, at) => Math.log(Math.max((one + Math.exp(trainedScores[at] - evidence)) / 2, LEAST)));
    const logs = [...old, ...scores(row).map((score) => score - evidence + offset)];
    const whole = logSumExp(logs);
    return logs.map((one) => Math.exp(one - whole));
  };
  return { probabilities, closeness: (row) => resemblance(row) - threshold };
}

/** Return an answer of the network, which includes all probabilities, extended by the learned landmarks. */
function withLearned(answer, learner, threshold) {
  const { probabilities, whitened, trainedScores } = answer;
  const all = learner.probabilities(probabilities, whitened, trainedScores);
  const labels = [...all.keys()].sort((first, second) => all[second] - all[first] || first - second);
  const drawn = new Map(answer.answers.map(({ label }, at) => [label, at]));
  const best = labels.slice(0, answer.answers.length);
  const answers = best.map((label) => ({ label, probability: all[label], drawn: drawn.get(label) ?? null }));
  const close = best[0] >= probabilities.length && learner.closeness(whitened) > 0;
  return { ...answer, answers, known: threshold === null ? null : answer.known || close };
}

// ── Storage: in this browser, and in a file that `landmarks learn NAME.onnx --from FILE.json` reads too ─────────────

/** Return functions that read and write the stored landmarks. `brought` is {text, digest} of the landmarks that the page
    came with, or null. They are added to the stored ones once only, so that they can be forgotten. */
function keptLandmarks(record, brought) {
  const place = `landmarks ${record.digest}`;
  const placeOfBrought = `${place} brought`;
  const stored = (key) => {
    try {
      return localStorage.getItem(key);
    } catch {
      return null; // without storage it still answers with the landmarks that the page came with
    }
  };
  const read = () => {
    const text = stored(place);
    const own = text === null ? [] : landmarksOf(text, record);
    if (brought === null || stored(placeOfBrought) === brought.digest) return own;
    return landmarksOf(brought.text, record).reduce(plus, own);
  };
  const write = (landmarks) => {
    localStorage.setItem(place, textOf(landmarks, record));
    if (brought !== null) localStorage.setItem(placeOfBrought, brought.digest);
  };
  return { read, write };
}

function textOf(landmarks, record) {
  const told = landmarks.map(({ name, landmark_id, images }) => ({ name, landmark_id, images: images.map(base64OfFloats) }));
  return JSON.stringify({ format: FILE_FORMAT, learned_with: record.digest, landmarks: told });
}

/** Return the landmarks in the text of a file, which may come from anybody. */
function landmarksOf(text, record) {
  let told;
  try {
    told = JSON.parse(text);
    if (told.format !== FILE_FORMAT || !Array.isArray(told.landmarks)) throw new Error();
  } catch {
    throw new Error("this is no file of learned landmarks");
  }
  if (told.learned_with !== record.digest) throw new Error("this was learned with another network; teach this one with images");
  return told.landmarks.map(({ name, landmark_id, images }) => {
    const rows = images.map(floatsOf);
    const sound = rows.length && rows.every((row) => row.length === record.width && row.every(Number.isFinite));
    if (typeof name !== "string" || !plainName(name) || !Number.isInteger(landmark_id) || !sound) {
      throw new Error("this file holds a landmark that cannot be read");
    }
    return { name: plainName(name), landmark_id, images: rows };
  });
}

const plainName = (name) => name.normalize("NFC").trim().slice(0, MAX_NAME);

/** Return the id below all that are taken, or, where that is no exact number, the greatest free one below -1. */
function freeId(taken) {
  let id = Math.min(-1, ...taken) - 1;
  for (let next = -2; !Number.isSafeInteger(id); next--) id = taken.includes(next) ? id : next;
  return id;
}

/** Return landmarks with the images added to a new landmark or to the one of that name; duplicates are skipped. */
function plus(landmarks, { name, images, landmark_id: id }) {
  const own = landmarks.find((one) => one.name === name);
  const there = new Set((own?.images ?? []).map(base64OfFloats));
  const fresh = images.filter((row) => {
    const text = base64OfFloats(row);
    return !there.has(text) && there.add(text);
  });
  if (own) return landmarks.map((one) => (one === own ? { ...one, images: [...one.images, ...fresh] } : one));
  const taken = landmarks.map((one) => one.landmark_id);
  const landmark_id = id === undefined || taken.includes(id) ? freeId(taken) : id;
  return [...landmarks, { name, landmark_id, images: fresh }];
}
