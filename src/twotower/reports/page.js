"use strict";
// Tables sort, figures enlarge, commands are copied. Everything here is added to a page that can be read without it.

function button(name, text, action) {
  const made = document.createElement("button");
  made.type = "button";
  made.className = name;
  made.append(...[text].flat());
  made.addEventListener("click", action);
  return made;
}

// Tables. Values go by number, texts by the alphabet ("run 9" before "run 10"), missing ones last in both directions.
const alphabet = new Intl.Collator("en", { numeric: true });

function keys(rows, column) {
  const cells = rows.map((row) => row.cells[column]);
  const numeric = cells.some((cell) => "value" in cell.dataset);
  return cells.map((cell) => {
    if (numeric) return "value" in cell.dataset ? Number(cell.dataset.value) : null;
    const text = cell.firstChild.textContent.trim();
    return /^[-–—]?$/.test(text) ? null : text;
  });
}

function sort(table, head) {
  const down = head.getAttribute("aria-sort") === "ascending";
  const body = table.tBodies[0];
  const rows = [...body.rows];
  const key = new Map(keys(rows, head.cellIndex).map((value, index) => [rows[index], value]));
  rows.sort((first, second) => {
    const a = key.get(first);
    const b = key.get(second);
    if (a === null || b === null) return (a === null) - (b === null);
    const order = typeof a === "number" ? (a > b) - (a < b) : alphabet.compare(a, b);
    return down ? -order : order;
  });
  body.append(...rows);
  for (const cell of head.parentNode.cells) cell.removeAttribute("aria-sort");
  head.setAttribute("aria-sort", down ? "descending" : "ascending");
}

for (const table of document.querySelectorAll("table")) {
  for (const head of table.tHead.rows[0].cells) {
    if (!head.textContent.trim()) continue; // a button needs a name
    head.replaceChildren(button("sort", [...head.childNodes], () => sort(table, head)));
  }
}

// The caption of a table that is too wide for the page says that there is more.
function hint() {
  for (const region of document.querySelectorAll(".table")) {
    const caption = region.querySelector("caption span");
    const shown = caption.querySelector(".scrolls");
    const needed = region.scrollWidth > region.clientWidth + 1;
    if (needed && !shown) {
      const text = document.createElement("span");
      text.className = "scrolls";
      text.textContent = "scroll for more →";
      caption.append(text);
    }
    if (!needed && shown) shown.remove();
  }
}
hint();
addEventListener("resize", hint);

// Commands.
async function copy(code, pressed) {
  let done = true;
  try {
    await navigator.clipboard.writeText(code.textContent);
  } catch {
    // Pages that came over plain http have no clipboard.
    getSelection().selectAllChildren(code);
    done = document.execCommand("copy");
  }
  pressed.textContent = done ? "copied" : "press Ctrl+C";
  setTimeout(() => (pressed.textContent = "copy"), 2000);
}

for (const code of document.querySelectorAll(".command code")) {
  const pressed = button("copy", "copy", () => copy(code, pressed));
  pressed.setAttribute("aria-live", "polite");
  code.after(" ", pressed);
}

// Figures.
const figures = [...document.querySelectorAll("figure")];
const dialog = document.createElement("dialog");
const picture = document.createElement("img");
const legend = document.createElement("p");
const controls = document.createElement("div");
let shown = 0;

function show(number) {
  shown = (number + figures.length) % figures.length;
  const { src, alt, width, height } = figures[shown].querySelector("img");
  picture.alt = alt;
  picture.src = src;
  legend.replaceChildren(...figures[shown].querySelector("figcaption").cloneNode(true).childNodes);
  dialog.scrollTo(0, 0);
}

function enlarge(full) {
  dialog.classList.toggle("full", full);
  size.textContent = full ? "fit" : "full size";
}

const size = button("size", "", () => enlarge(!dialog.classList.contains("full")));
const close = button("close", "close", () => dialog.close());
close.autofocus = true; // so that Enter opens and closes
controls.append(
  button("previous", "← previous", () => show(shown - 1)),
  button("next", "next →", () => show(shown + 1)),
  size,
  close,
);
dialog.setAttribute("aria-label", "Figure");
dialog.append(controls, picture, legend);
dialog.addEventListener("click", (event) => {
  if (event.target === dialog || event.target === picture) dialog.close();
});
dialog.addEventListener("keydown", (event) => {
  const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
  if (!step || event.altKey || event.ctrlKey || event.metaKey) return;
  event.preventDefault();
  show(shown + step);
});
if (figures.length) document.body.append(dialog);

figures.forEach((figure, number) => {
  const image = figure.querySelector("img");
  const opener = button("enlarge", "", () => {
    enlarge(false);
    show(number);
    dialog.showModal();
  });
  opener.setAttribute("aria-haspopup", "dialog");
  image.replaceWith(opener);
  opener.replaceChildren(image);
});
