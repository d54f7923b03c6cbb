// Answers on this device: the worker is created from texts in the page.

function openRecogniser() {
  const facts = JSON.parse(document.getElementById("facts").textContent);
  const text = (id) => document.getElementById(id).textContent;
  const source = new Blob([text("runtime"), "\n", text("worker")], { type: "text/javascript" });
  const worker = new Worker(URL.createObjectURL(source));
  const waiting = new Map();
  let last = 0;
  worker.onmessage = ({ data }) => {
    const { resolve, reject } = waiting.get(data.id);
    waiting.delete(data.id);
    if (data.problem === undefined) resolve(data);
    else reject(Object.assign(new Error(data.problem), { ofImage: data.ofImage }));
  };
  worker.onerror = (event) => {
    event.preventDefault();
    for (const { reject } of waiting.values()) reject(new Error(event.message || "the worker could not start"));
    waiting.clear();
  };
  const ask = (message) =>
    new Promise((resolve, reject) => {
      waiting.set(++last, { resolve, reject });
      worker.postMessage({ id: last, ...message });
    });
  const { image_size: imageSize, crop, threshold, names } = facts;
  const ready = ask({ open: { wasm: text("wasm"), network: text("network"), imageSize, crop, threshold } });
  for (const id of ["runtime", "worker", "wasm", "network"]) document.getElementById(id).remove(); // megabytes of text
  const learned = facts.learning ? openLearned(facts, ask) : null;
  const recognise = async (file) => {
    const { answer: said, preview } = await ask({ file });
    const answer = learned?.learner ? withLearned(said, learned.learner, threshold) : said;
    const all = learned ? learned.names() : names;
    for (const one of answer.answers) one.name = all[one.label];
    return { answer, preview };
  };
  return { ready, recognise, landmarks: async () => (learned ? learned.names() : names), teaching: learned?.teaching ?? null };
}

/** Return the landmarks that this page has learned, stored in this browser, and the functions that teach it. */
function openLearned({ learning, learned, names: trained }, ask) {
  const record = learningRecord(learning);
  const kept = keptLandmarks(record, learned);
  const found = { landmarks: [], learner: null, names: () => [...trained, ...found.landmarks.map((one) => one.name)] };
  const take = (landmarks) => {
    found.landmarks = landmarks;
    found.learner = landmarks.length ? learnerOf(record, landmarks) : null;
  };
  const keep = (landmarks) => {
    try {
      kept.write(landmarks);
    } catch {
      throw new Error("this browser keeps nothing for this page, or no more: save what was taught as a file, and forget some");
    }
    take(landmarks);
  };
  try {
    take(kept.read());
  } catch (error) {
    console.warn(`what was learned before cannot be read: ${error.message}`);
  }
  const requireFree = (name) => {
    if (!name) throw new Error("it needs a name");
    if (name === "_unknown") throw new Error("_unknown stands for images of nothing known; choose another name");
    if (trained.includes(name)) throw new Error(`“${name}” is a landmark that it was trained for; choose another name`);
  };
  found.teaching = {
    async teach(given, files) {
      const name = plainName(given);
      requireFree(name);
      const [rows, passed] = [[], []];
      for (const file of files) {
        try {
          rows.push((await ask({ file })).answer.whitened);
        } catch (error) {
          passed.push({ file: file.name, problem: error.message });
        }
      }
      if (!rows.length) throw new Error(`no image of “${name}” can be read: ${passed[0].problem}`);
      keep(plus(found.landmarks, { name, images: rows }));
      return { passed };
    },
    forget: async (name) => keep(found.landmarks.filter((one) => one.name !== name)),
    taught: async () => found.landmarks.map(({ name, images }) => ({ name, images: images.length })),
    text: () => textOf(found.landmarks, record),
    async read(file) {
      const added = landmarksOf(await file.text(), record);
      added.forEach(({ name }) => requireFree(name));
      keep(added.reduce(plus, found.landmarks));
    },
  };
  return found;
}
