"use strict";
// Cards, sorting, filtering, the theme. Texts from the data are only ever set as text.
const cards = JSON.parse(document.getElementById("data").textContent);
const root = document.documentElement;

function element(name, text) {
  const made = document.createElement(name);
  if (text !== undefined) made.textContent = text;
  return made;
}

function showCard(number) {
  const card = cards[number];
  if (!card) return;
  document.getElementById("card-title").textContent = card.title;
  const body = document.getElementById("card-body");
  body.replaceChildren();
  for (const text of card.alarms || []) {
    const note = element("p", text);
    note.className = "note alarm";
    body.append(note);
  }
  const list = element("dl");
  for (const [name, value] of card.facts) list.append(element("dt", name), element("dd", value));
  body.append(list);
  if (card.choices && card.choices.length) body.append(choices(card.choices));
  document.getElementById("card").showModal();
}

function choices(rows) {
  const table = element("table"), head = element("thead"), line = element("tr"), lines = element("tbody");
  table.append(element("caption", "Choices: how many clips had each, and how far its map is from the full one"));
  for (const name of ["choice", "clips", "share", "rebuild error"]) {
    const cell = element("th", name);
    cell.scope = "col";
    if (name !== "choice") cell.className = "number";
    line.append(cell);
  }
  head.append(line);
  for (const row of rows) {
    const made = element("tr");
    row.forEach((text, place) => made.append(element(place ? "td" : "th", text)));
    made.firstChild.scope = "row";
    lines.append(made);
  }
  table.append(head, lines);
  return table;
}

document.addEventListener("click", (event) => {
  const place = event.target.closest("[data-card]");
  if (!place) return;
  event.preventDefault();
  showCard(Number(place.dataset.card));
});
document.getElementById("card").addEventListener("click", (event) => {
  if (event.target === event.currentTarget) event.currentTarget.close(); // the backdrop
});
function fromAddress() {
  const found = /^#card-(\d+)$/.exec(location.hash);
  if (found) showCard(Number(found[1]));
}
window.addEventListener("hashchange", fromAddress);
fromAddress();

function sortBy(button) {
  const head = button.closest("th"), table = button.closest("table"), body = table.tBodies[0];
  const place = Number(button.dataset.sort), down = head.getAttribute("aria-sort") === "ascending" ? -1 : 1;
  for (const other of head.parentNode.children) other.removeAttribute("aria-sort");
  head.setAttribute("aria-sort", down > 0 ? "ascending" : "descending");
  const key = (row) => {
    const cell = row.children[place];
    return cell.dataset.value === undefined ? null : Number(cell.dataset.value);
  };
  const rows = [...body.rows].map((row) => [key(row), row]);
  rows.sort(([a], [b]) => (a === null || b === null ? (a === null) - (b === null) : down * (a - b)));
  body.append(...rows.map(([, row]) => row));
}
for (const button of document.querySelectorAll("[data-sort]")) button.addEventListener("click", () => sortBy(button));

function filter(id) {
  const text = document.querySelector(`[data-filter="${id}"]`).value.trim().toLowerCase();
  const kind = document.querySelector(`select[data-kind="${id}"]`).value;
  const rows = [...document.getElementById(id).tBodies[0].rows];
  let shown = 0;
  for (const row of rows) {
    const fits = row.cells[0].textContent.toLowerCase().includes(text) || row.textContent.toLowerCase().includes(text);
    row.hidden = !(fits && (!kind || row.dataset.kind.split(" ").includes(kind)));
    shown += !row.hidden;
  }
  document.querySelector(`[data-count="${id}"]`).textContent = `${shown} of ${rows.length} layers`;
}
for (const field of document.querySelectorAll("[data-filter]")) {
  const id = field.dataset.filter;
  field.addEventListener("input", () => filter(id));
  document.querySelector(`select[data-kind="${id}"]`).addEventListener("change", () => filter(id));
  filter(id);
}

const theme = document.getElementById("theme"), dark = matchMedia("(prefers-color-scheme: dark)");
function isDark() {
  return root.dataset.theme ? root.dataset.theme === "dark" : dark.matches;
}
function nameTheme() {
  theme.textContent = isDark() ? "Light" : "Dark";
  theme.setAttribute("aria-label", `${theme.textContent} colours`);
}
function keep(name, value) {
  try {
    if (value === undefined) return localStorage.getItem(name);
    localStorage.setItem(name, value);
  } catch (error) {
    // pages opened from a file may have no storage
  }
  return null;
}
const kept = keep("vared2-theme");
if (kept === "dark" || kept === "light") root.dataset.theme = kept;
theme.hidden = false;
theme.addEventListener("click", () => {
  root.dataset.theme = isDark() ? "light" : "dark";
  keep("vared2-theme", root.dataset.theme);
  nameTheme();
});
dark.addEventListener("change", nameTheme);
nameTheme();

const pause = document.getElementById("pause");
if (pause && !matchMedia("(prefers-reduced-motion: reduce)").matches) {
  pause.hidden = false;
  pause.addEventListener("click", () => {
    pause.textContent = root.classList.toggle("paused") ? "Play the clips" : "Pause the clips";
  });
}
