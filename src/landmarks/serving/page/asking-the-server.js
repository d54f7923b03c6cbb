// Answers from the server that this page came from, which may require a token and may be busy.

const PATIENCE = 5; // retries when the server is busy
const LARGE_FILE_BYTES = 2 ** 21; // larger images are scaled down, since the size of requests is limited
const SENT_SIDE = 2048;

function openRecogniser() {
  const form = document.getElementById("token");
  let token = "";
  let given = () => {};
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    token = form.elements.token.value;
    form.hidden = true;
    given();
  });

  async function ask(path, options = {}) {
    for (let tries = 0; ; tries++) {
      const headers = { ...options.headers, ...(token ? { Authorization: `Bearer ${token}` } : {}) };
      let response;
      try {
        response = await fetch(path, { ...options, headers });
      } catch {
        throw new Error("the server does not answer");
      }
      if (response.status === 401) {
        await tokenGiven();
        continue;
      }
      if (response.status === 503 && tries < PATIENCE) {
        const seconds = Math.min(30, Number(response.headers.get("Retry-After")) || 1);
        await new Promise((resolve) => setTimeout(resolve, 1000 * seconds));
        continue;
      }
      const body = await response.json().catch(() => ({ what: `the server answered ${response.status}` }));
      if (!response.ok) throw new Error([body.what, body.expected, body.way_out].filter(Boolean).join("; "));
      return body;
    }
  }

  function tokenGiven() {
    form.hidden = false;
    form.elements.token.focus();
    return new Promise((resolve) => {
      given = resolve;
    });
  }

  async function recognise(file) {
    const type = file.type.startsWith("image/") ? file.type : "application/octet-stream";
    const answering = ask("recognise?top=4&maps=true", { method: "POST", body: file, headers: { "Content-Type": type } });
    const [{ images: [image] }, preview] = await Promise.all([
      answering,
      decoded(file).then(previewOf).catch(() => null),
    ]);
    if (image.problem) throw new ImageProblem(image.problem);
    return { answer: { ...image, maps: mapsOf(image.answers) }, preview };
  }

  const known = async () => (await ask("landmarks")).landmarks;
  const landmarks = async () => (await known()).map((landmark) => landmark.name);
  const found = { recognise, landmarks, teaching: null };
  found.ready = ask("healthz").then((health) => {
    if (health.teach) found.teaching = { teach, forget, taught };
  });
  return found;

  async function teach(name, files) {
    const body = new FormData();
    body.append("name", name);
    for (const file of files) body.append("images", await sendable(file), file.name || "image");
    return ask("landmarks", { method: "POST", body });
  }

  async function forget(name) {
    await ask(`landmarks/${encodeURIComponent(name)}`, { method: "DELETE" });
  }

  async function taught() {
    return (await known()).filter((landmark) => landmark.images !== null);
  }
}

/** Return the file to send: a large image scaled down to what any network can use, if this browser can decode it. */
async function sendable(file) {
  if (file.size <= LARGE_FILE_BYTES) return file;
  try {
    const bitmap = await decoded(file);
    const scale = Math.min(1, SENT_SIDE / Math.max(bitmap.width, bitmap.height));
    const canvas = new OffscreenCanvas(Math.round(bitmap.width * scale), Math.round(bitmap.height * scale));
    const context = canvas.getContext("2d", { alpha: false });
    context.fillStyle = "#fff"; // transparent pixels become white
    context.fillRect(0, 0, canvas.width, canvas.height);
    context.imageSmoothingQuality = "high";
    context.drawImage(bitmap, 0, 0, canvas.width, canvas.height);
    bitmap.close();
    return await canvas.convertToBlob({ type: "image/jpeg", quality: 0.92 });
  } catch {
    return file;
  }
}

function mapsOf(answers) {
  const maps = answers.map((answer) => answer.map);
  if (!maps.length || maps.some((map) => !map)) return null;
  return { rows: maps[0].length, columns: maps[0][0].length, values: Float32Array.from(maps.flat(2)) };
}
