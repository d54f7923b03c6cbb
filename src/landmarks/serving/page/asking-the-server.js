// Answers by the server that this page came from. It may want a token, and it may be busy.

const PATIENCE = 5; // times that a busy server is asked again

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

  const landmarks = async () => (await ask("landmarks")).landmarks.map((landmark) => landmark.name);
  return { ready: ask("healthz"), recognise, landmarks };
}

function mapsOf(answers) {
  const maps = answers.map((answer) => answer.map);
  if (!maps.length || maps.some((map) => !map)) return null;
  return { rows: maps[0].length, columns: maps[0][0].length, values: Float32Array.from(maps.flat(2)) };
}
