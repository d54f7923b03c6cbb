(() => {
"use strict";
const { digest, file, items } = JSON.parse(document.getElementById("items").textContent);
const by = (id) => document.getElementById(id);
const buttons = [...document.querySelectorAll("[data-answer]")];
const place = `landmarks-doubts-${digest}`;
const kinds = {
  label: "Labelled wrong?", across: "Copies with two landmarks", leak: "Copies in two splits",
  nothing: "Shows no landmark at all?",
};

// `decided`: image → answer; `done`: what was decided, for undoing it: [image, answer before, place in the list].
let state = { decided: {}, done: [], at: 0 };
try {
  const kept = JSON.parse(localStorage.getItem(place));
  if (kept && typeof kept.decided === "object" && Array.isArray(kept.done) && kept.at >= 0 && kept.at < items.length) state = kept;
} catch { /* no storage here, or not ours: begin anew */ }

function keep() {
  try { localStorage.setItem(place, JSON.stringify(state)); } catch { /* decisions last as long as the page then */ }
}

function show(said) {
  const item = items[state.at], answer = state.decided[item.id];
  by("kind").textContent = `${state.at + 1} of ${items.length} · ${kinds[item.kind]}`;
  by("image").src = item.image;
  by("image").alt = `Image ${item.id}`;
  by("caption").textContent = `${item.name ?? "nothing known"} · ${item.id}${item.split ? ` · ${item.split}` : ""}`;
  by("beside").hidden = !item.other;
  if (item.other) {
    by("other").src = item.other.image;
    by("other").alt = `Image ${item.other.id}`;
    by("other-caption").textContent =
      `${item.other.name ?? "nothing known"} · ${item.other.id}${item.other.split ? ` · ${item.other.split}` : ""}`;
  }
  by("why").textContent = item.why;
  for (const button of buttons) {
    const which = button.dataset.answer, text = button.querySelector("span");
    if (which === "keep") text.textContent = `Keep: ${item.name ?? "nothing known"}`;
    if (which === "suggested") {
      button.disabled = item.suggested === null;
      text.textContent = item.suggested === null ? "No suggestion" : `It is ${item.suggestedName}`;
    }
    button.setAttribute("aria-pressed", String(answer === which));
  }
  const decided = items.filter((one) => one.id in state.decided).length;
  by("bar").value = decided;
  by("told").textContent = `${said ? `${said} · ` : ""}${decided} of ${items.length} decided`;
  by("back").disabled = state.at === 0;
  by("next").disabled = state.at === items.length - 1;
  by("undo").disabled = state.done.length === 0;
}

function move(to) {
  state.at = Math.max(0, Math.min(items.length - 1, to));
  keep();
  show();
}

function decide(answer) {
  const item = items[state.at];
  if (answer === "suggested" && item.suggested === null) return;
  state.done.push([item.id, state.decided[item.id] ?? null, state.at]);
  state.decided[item.id] = answer;
  state.at = Math.min(items.length - 1, state.at + 1);
  keep();
  show(`${item.id}: ${answer}`);
}

function undo() {
  const last = state.done.pop();
  if (!last) return;
  const [id, before, at] = last;
  if (before === null) delete state.decided[id]; else state.decided[id] = before;
  state.at = at;
  keep();
  show(`${id} undone`);
}

function firstOpen() {
  const open = items.findIndex((item) => !(item.id in state.decided));
  if (open >= 0) move(open);
}

// A cell as the project writes it: what a spreadsheet would take for a formula begins with an apostrophe.
function cell(text) {
  const safe = /^'*[=+\-@\t\r]/.test(text) ? `'${text}` : text;
  return /[",\n\r]/.test(safe) ? `"${safe.replaceAll('"', '""')}"` : safe;
}

function save() {
  const rows = [["image_id", "correct_landmark_id"]], seen = new Set();
  for (const item of items) {
    const answer = state.decided[item.id];
    if (answer === undefined || seen.has(item.id)) continue;
    seen.add(item.id);
    const own = item.landmark === null ? "none" : String(item.landmark);
    rows.push([item.id, { keep: own, suggested: String(item.suggested), none: "none", remove: "remove" }[answer]]);
  }
  const text = rows.map((row) => row.map(cell).join(",")).join("\n") + "\n";
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([text], { type: "text/csv" }));
  link.download = file;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
  show(`${rows.length - 1} decisions written to ${file}`);
}

const keys = {
  k: () => decide("keep"), s: () => decide("suggested"), n: () => decide("none"), r: () => decide("remove"),
  u: undo, o: firstOpen, d: save, ArrowLeft: () => move(state.at - 1), ArrowRight: () => move(state.at + 1),
};
document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.repeat) return;
  const act = keys[event.key.length === 1 ? event.key.toLowerCase() : event.key];
  if (act) { event.preventDefault(); act(); }
});
for (const button of buttons) button.addEventListener("click", () => decide(button.dataset.answer));
by("back").addEventListener("click", keys.ArrowLeft);
by("next").addEventListener("click", keys.ArrowRight);
by("undo").addEventListener("click", undo);
by("open").addEventListener("click", firstOpen);
by("save").addEventListener("click", save);
show();
})();
