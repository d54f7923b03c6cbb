// Teaching a landmark by a name and images of it, and forgetting landmarks taught before.

const [lesson, lessonName, lessonSaid] = [element("lesson"), element("lesson-name"), element("lesson-said")];
const taughtList = element("taught");
let pupils = []; // images to learn from, with their entries in the list
let teaching = false;

/** Show the form; called once the recogniser is ready and can be taught. */
function beginTeaching() {
  element("teach").hidden = false;
  element("learned-file").hidden = !recogniser.teaching.text;
  listTaught();
}

function gather(files) {
  for (const file of files) {
    const name = file.name || "pasted image";
    const entry = make("li");
    const shown = make("img", { src: URL.createObjectURL(file), alt: name });
    shown.addEventListener("load", () => URL.revokeObjectURL(shown.src));
    const button = make("button", { type: "button", class: "remove", "aria-label": `Do not learn from ${name}` }, "×");
    button.addEventListener("click", () => {
      const next = entry.nextElementSibling ?? entry.previousElementSibling;
      pupils = pupils.filter((one) => one.entry !== entry);
      entry.remove();
      saySoFar();
      (next?.querySelector("button") ?? element("gather")).focus();
    });
    entry.append(shown, button);
    element("lesson-images").append(entry);
    pupils.push({ file, entry });
  }
  saySoFar();
}

const counted = (count, thing) => `${count} ${thing}${count === 1 ? "" : "s"}`;

function saySoFar() {
  tell(pupils.length ? `${counted(pupils.length, "image")} to learn from` : "");
}

function tell(text, trouble = false) {
  lessonSaid.textContent = text;
  lessonSaid.classList.toggle("trouble", trouble);
}

/** Add an answered image to the lesson, and ask for its name. */
function teachFrom(file) {
  element("teach").open = true;
  gather([file]);
  lessonName.focus();
}

element("gather").addEventListener("click", () => element("lesson-files").click());
element("lesson-files").addEventListener("change", ({ target }) => {
  gather(target.files);
  target.value = "";
});

lesson.addEventListener("submit", async (event) => {
  event.preventDefault();
  const name = lessonName.value.trim();
  if (teaching) return;
  if (!name || !pupils.length) {
    tell(name ? "Choose at least one image of it first." : "Say first what it is called.", true);
    (name ? element("gather") : lessonName).focus();
    return;
  }
  teaching = true;
  tell(`Learning “${name}”…`);
  try {
    const { passed } = await recogniser.teaching.teach(name, pupils.map(({ file }) => file));
    const known = await listTaught();
    const images = known.find((one) => one.name === name.normalize("NFC"))?.images;
    const unread = passed.map(({ file, problem }) => `${file}: ${problem}`).join("; ");
    const passedBy = passed.length ? ` ${counted(passed.length, "image")} could not be used (${unread}).` : "";
    tell(`“${name}” is known${images ? ` from ${counted(images, "image")}` : ""} now.${passedBy}`);
    pupils = [];
    element("lesson-images").replaceChildren();
    lesson.reset();
    if (element("known").open) listNames();
  } catch (error) {
    tell(sentence(error.message), true);
  }
  teaching = false;
});

element("save-learned").addEventListener("click", () => {
  const address = URL.createObjectURL(new Blob([recogniser.teaching.text()], { type: "application/json" }));
  make("a", { href: address, download: "learned.json" }).click();
  setTimeout(() => URL.revokeObjectURL(address), 60_000);
});
element("read-learned").addEventListener("click", () => element("learned-files").click());
element("learned-files").addEventListener("change", async ({ target }) => {
  const [file] = target.files;
  target.value = "";
  if (!file) return;
  try {
    await recogniser.teaching.read(file);
    tell(`${file.name} is read.`);
    if (element("known").open) listNames();
    await listTaught();
  } catch (error) {
    tell(sentence(error.message), true);
  }
});

/** List the taught landmarks, each with a button that forgets it when pressed twice. */
async function listTaught() {
  let known = [];
  try {
    known = await recogniser.teaching.taught();
  } catch (error) {
    tell(sentence(error.message), true);
  }
  taughtList.replaceChildren(...known.map(taughtEntry));
  const beside = document.getElementById("and-taught"); // exists in a page that answers by itself
  if (beside) beside.textContent = known.length ? ` and ${known.length} that it was taught` : "";
  element("taught-part").hidden = !known.length;
  element("save-learned").hidden = !known.length;
  return known;
}

function taughtEntry({ name, images }) {
  const button = make("button", { type: "button", class: "quiet" });
  const ask = (sure) => {
    button.replaceChildren(sure ? "Really forget" : "Forget", make("span", { class: "unseen" }, ` ${name}`), sure ? "?" : "");
    button.dataset.sure = sure ? "yes" : "";
  };
  ask(false);
  button.addEventListener("blur", () => ask(false));
  button.addEventListener("click", async () => {
    if (!button.dataset.sure) {
      ask(true);
      return;
    }
    try {
      await recogniser.teaching.forget(name);
      tell(`“${name}” is forgotten.`);
      if (element("known").open) listNames();
      await listTaught();
      (taughtList.children.length ? element("taught-title") : element("gather")).focus();
    } catch (error) {
      tell(sentence(error.message), true);
    }
  });
  return make("li", {}, make("span", {}, name), make("span", { class: "percent" }, counted(images, "image")), button);
}
