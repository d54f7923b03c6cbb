// The page: images from button, camera, drop or paste wait in a queue; each becomes a card with its answers.

const NOT_KNOWN = "Not a landmark I know";
const NAMES_SHOWN = 60;

const element = (id) => document.getElementById(id);
const [state, told, cards, over] = [element("state"), element("told"), element("cards"), document.querySelector(".over")];

const queue = [];
let working = false;
let broken = false;
let numbered = 0;

const recogniser = openRecogniser();
recogniser.ready.then(
  () => {
    say("Ready");
    if (recogniser.teaching) beginTeaching();
  },
  (error) => {
    broken = true;
    state.classList.add("trouble");
    say(`This browser cannot run the recogniser (${error.message}). Try a current Chrome, Edge, Firefox or Safari.`);
    for (const job of queue.splice(0)) fail(job, new Error("the recogniser did not start"));
  },
);

function say(text) {
  state.textContent = text;
}

// ── Input ─────────────────────────────────────────────────────────────────────────────────────────────────────────

function add(files) {
  const added = [...files].map((file) => ({ file, name: file.name || "pasted image", card: waitingCard(file.name) }));
  cards.prepend(...added.map((job) => job.card)); // the newest on top, in the order given
  queue.push(...added);
  count();
  if (broken) for (const job of queue.splice(0)) fail(job, new Error("the recogniser did not start"));
  else work();
}

for (const [button, input] of [["choose", "files"], ["take", "camera"]]) {
  element(button).addEventListener("click", () => element(input).click());
  element(input).addEventListener("change", ({ target }) => {
    add(target.files);
    target.value = ""; // so that the same file can be chosen again
  });
}

document.addEventListener("paste", (event) => {
  if (!event.clipboardData.files.length) return;
  event.preventDefault();
  add(event.clipboardData.files);
});

let inside = 0; // `dragleave` fires for every element that is left, for the page itself last
const dragging = (event) => [...event.dataTransfer.types].includes("Files");
addEventListener("dragenter", (event) => {
  if (dragging(event)) document.body.classList.toggle("dragging", ++inside > 0);
});
addEventListener("dragleave", (event) => {
  if (dragging(event)) document.body.classList.toggle("dragging", --inside > 0);
});
addEventListener("dragover", (event) => {
  if (dragging(event)) event.preventDefault();
});
addEventListener("drop", async (event) => {
  if (!dragging(event)) return;
  event.preventDefault();
  inside = 0;
  document.body.classList.remove("dragging");
  const dropped = event.target instanceof Element && event.target.closest("#lesson") ? gather : add;
  dropped(await filesOf(event.dataTransfer));
});

/** Return the dropped files, including those in dropped folders. */
async function filesOf(transfer) {
  const entries = [...transfer.items].map((item) => item.webkitGetAsEntry?.()).filter(Boolean);
  if (!entries.some((entry) => entry.isDirectory)) return [...transfer.files];
  const found = [];
  for (const entry of entries) await walk(entry, found);
  return found;
}

async function walk(entry, found) {
  if (entry.isFile) {
    const file = await new Promise((resolve, reject) => entry.file(resolve, reject)).catch(() => null);
    if (file?.type.startsWith("image/")) found.push(file);
    return;
  }
  const reader = entry.createReader();
  for (;;) { // a reader returns at most a hundred entries at a time
    const some = await new Promise((resolve, reject) => reader.readEntries(resolve, reject)).catch(() => []);
    if (!some.length) return;
    for (const one of some) await walk(one, found);
  }
}

// ── Answering one image after another ─────────────────────────────────────────────────────────────────────────────

async function work() {
  if (working) return;
  working = true;
  let done = 0;
  while (queue.length) {
    const job = queue.shift();
    if (!job.card.isConnected) continue; // removed while waiting
    const together = done + queue.length + 1;
    if (!state.classList.contains("trouble")) say(together > 1 ? `Looking at image ${done + 1} of ${together}…` : "Looking…");
    try {
      const { answer, preview } = await recogniser.recognise(job.file);
      show(job, answer, preview);
    } catch (error) {
      fail(job, error);
    }
    done++;
  }
  working = false;
  if (!broken) say(done > 1 ? `${done} images answered` : "Ready for the next image");
}

function count() {
  const total = cards.children.length;
  over.hidden = total < 2;
  element("count").textContent = `${total} images`;
}

element("clear").addEventListener("click", () => {
  queue.length = 0;
  cards.replaceChildren();
  count();
  told.textContent = "All images removed";
  element("choose").focus();
});

// ── Cards ─────────────────────────────────────────────────────────────────────────────────────────────────────────

/** Create an element with attributes and children; strings become text, never markup. */
function make(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children);
  return made;
}

function waitingCard(name) {
  const said = make("div", { class: "said" }, make("p", { class: "file" }, name || "pasted image"), make("p", { class: "nearly" }, "Looking…"));
  return make("li", { class: "card waiting" }, make("figure", { class: "frame" }), said);
}

function removeButton(card, name) {
  const button = make("button", { type: "button", class: "remove", "aria-label": `Remove ${name}` }, "×");
  button.addEventListener("click", () => {
    const next = card.nextElementSibling ?? card.previousElementSibling;
    card.remove();
    count();
    told.textContent = `${name} removed`;
    (next?.querySelector(".remove") ?? element("choose")).focus();
  });
  return button;
}

function fail(job, error) {
  const said = make(
    "div",
    { class: "said" },
    make("p", { class: "file" }, job.name),
    make("h2", {}, "No answer"),
    make("p", { class: "nearly" }, sentence(error.message)),
  );
  job.card.className = "card failed";
  job.card.replaceChildren(make("figure", { class: "frame" }), said, removeButton(job.card, job.name));
  told.textContent = `${job.name}: no answer. ${sentence(error.message)}`;
}

const sentence = (text) => `${text.charAt(0).toUpperCase()}${text.slice(1)}.`.replace(/\.\.$/, ".");

function percent(probability) {
  const value = 100 * probability;
  return value < 0.1 ? "< 0.1 %" : value > 99.9 ? "> 99.9 %" : `${value.toFixed(1)} %`;
}

function show(job, { answers, known, maps, seen }, preview) {
  const number = ++numbered;
  const [best] = answers;
  const heading = make("h2", { id: `card-${number}` }, known === false ? NOT_KNOWN : best.name);
  const nearly = `The nearest is ${best.name}`;
  const list = make("fieldset", {}, make("legend", { class: "unseen" }, maps ? "Answers; choose one to see its heat map" : "Answers"));
  answers.forEach((answer, position) => list.append(answerRow(answer, position, number, maps !== null && preview !== null)));
  const canvas = make("canvas", { role: "img" });
  const heat = make("input", { type: "checkbox", role: "switch", checked: "" });
  const draw = () => {
    const chosen = Number(list.querySelector("input:checked")?.value ?? 0);
    const which = answers[chosen].drawn === undefined ? chosen : answers[chosen].drawn; // null: learned landmarks have no map
    const shown = maps !== null && heat.checked && which !== null;
    if (preview) drawImage(canvas, preview, maps, shown ? which : null, seen);
    const where = shown ? `, with the heat map of ${answers[chosen].name}` : "";
    canvas.setAttribute("aria-label", `${job.name}${where}`);
  };
  list.addEventListener("change", () => {
    heat.checked = true;
    draw();
  });
  heat.addEventListener("change", draw);
  const said = make("div", { class: "said" }, make("p", { class: "file" }, job.name), heading);
  if (known === false) said.append(make("p", { class: "nearly" }, nearly));
  said.append(list);
  if (maps !== null && preview) said.append(make("label", { class: "switch" }, heat, "Show where it looked"));
  if (recogniser.teaching) said.append(teachButton(job));
  job.card.className = known === false ? "card unknown" : "card";
  job.card.setAttribute("aria-labelledby", heading.id);
  if (!preview) job.card.classList.add("blind"); // only the server can decode this format
  const frame = make("figure", { class: "frame" }, ...(preview ? [canvas] : []));
  job.card.replaceChildren(frame, said, removeButton(job.card, job.name));
  draw();
  const sure = `${best.name}, ${percent(best.probability)}`;
  told.textContent = `${job.name}: ${known === false ? `${NOT_KNOWN}. ${nearly}` : sure}`;
}

function teachButton({ file, name }) {
  const button = make("button", { type: "button", class: "quiet" }, "Teach it what this is");
  button.append(make("span", { class: "unseen" }, `, from ${name}`));
  button.addEventListener("click", () => teachFrom(file));
  return button;
}

function answerRow({ name, probability }, position, number, chosen) {
  const filled = make("i");
  filled.style.width = `${100 * probability}%`;
  const parts = [
    make("span", { class: "name" }, name),
    make("span", { class: "percent" }, percent(probability)),
    make("span", { class: "bar", "aria-hidden": "true" }, filled),
  ];
  if (!chosen) return make("div", { class: "answer" }, ...parts);
  const radio = make("input", { type: "radio", name: `answer-${number}`, value: position, class: "unseen" });
  radio.defaultChecked = position === 0;
  return make("label", { class: "answer" }, radio, ...parts);
}

// ── The list of landmarks ─────────────────────────────────────────────────────────────────────────────────────────

const FEW = 12; // up to this many names need no search

async function listNames() {
  let names;
  try {
    names = await recogniser.landmarks();
  } catch (error) {
    element("found").textContent = sentence(error.message);
    return;
  }
  document.querySelector("label.find").hidden = names.length <= FEW;
  const list = () => {
    const wanted = element("find").value.trim().toLowerCase();
    const found = names.filter((name) => name.toLowerCase().includes(wanted));
    element("names").replaceChildren(...found.slice(0, NAMES_SHOWN).map((name) => make("li", {}, name)));
    const beyond = found.length > NAMES_SHOWN ? `, the first ${NAMES_SHOWN} of them below` : "";
    element("found").textContent = wanted || beyond ? `${found.length} of ${names.length}${beyond}` : "";
  };
  element("find").oninput = list;
  list();
}
element("known").addEventListener("toggle", ({ target }) => target.open && listNames());
