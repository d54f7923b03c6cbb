// Answers on this device: the worker is made of texts that lie in the page.

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
  const recognise = async (file) => {
    const { answer, preview } = await ask({ file });
    for (const one of answer.answers) one.name = names[one.label];
    return { answer, preview };
  };
  return { ready, recognise, landmarks: async () => names };
}
