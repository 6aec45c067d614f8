"use strict";

// Draws the rows of index.html. Names of files and classes can be anything: they only ever become
// text and attributes, never HTML.

const AT_ONCE = 1000; // rows; a button shows the next ones
const CELL = 1.25; // height of a map in the picture of all maps of its image, with its margins
const MARGIN = 0.125;

const data = JSON.parse(document.getElementById("data").textContent);
const list = document.getElementById("rows");
const controls = document.getElementById("controls");
const more = document.getElementById("more");
const rows = data.images.flatMap((image) =>
  image.findings.map((finding, k) => ({ ...finding, image, k, id: `${image.id}-${finding.label}` }))
);
let shown = rows; // those that the filters leave, in order
let limit = AT_ONCE;
let current = null; // the row that Tab leads to

function element(name, text, className = "") {
  const made = document.createElement(name);
  made.textContent = text;
  made.className = className;
  return made;
}

// A row's element, which is made when it is first shown.
function cardOf(row) {
  if (row.card) return row.card;
  const image = row.image;
  const card = document.querySelector("template").content.firstElementChild.cloneNode(true);
  card.id = row.id;

  // the radiograph, the map, and what is drawn on them
  const picture = card.querySelector(".picture");
  picture.style.aspectRatio = `${image.width} / ${image.height}`;
  picture.querySelector(".radiograph").src = `radiographs/${image.file}.jpg`;
  const map = picture.querySelector(".map img");
  map.src = `heatmaps/${image.file}.png`;
  map.alt = `heatmap of ${row.label}`;
  map.style.height = `${100 * CELL * image.findings.length}%`;
  map.style.top = `${-100 * (CELL * row.k + MARGIN)}%`;
  draw(picture.querySelector("svg"), row);

  // the words
  card.querySelector("b").textContent = row.label;
  card.querySelector(".score").textContent = row.score.toFixed(3);
  const tags = card.querySelector(".tags");
  if (row.present !== null) {
    const called = row.present ? "called present" : "not called present";
    tags.append(element("span", `${called} (from ${row.threshold.toFixed(3)})`));
  }
  if (row.hit !== null) {
    tags.append(element("span", row.hit ? "✓ hit" : "✗ miss", row.hit ? "good" : "bad"));
  }
  const link = card.querySelector("a");
  link.href = `#${encodeURIComponent(row.id)}`;
  link.textContent = image.name;
  link.setAttribute("aria-label", `${image.name}, ${row.label}`);
  link.tabIndex = -1;
  link.addEventListener("focus", () => setCurrent(row));
  // a browser that follows a link to the row focuses the row itself
  card.tabIndex = -1;
  card.addEventListener("focus", () => link.focus({ preventScroll: true }));
  row.card = card;
  row.link = link;
  return card;
}

function draw(svg, row) {
  const { width, height } = row.image;
  svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
  const add = (className, d, transform) => {
    const path = document.createElementNS("http://www.w3.org/2000/svg", "path");
    path.setAttribute("class", className);
    path.setAttribute("d", d);
    if (transform) path.setAttribute("transform", transform);
    svg.append(path);
  };
  const rectangle = ([x, y, w, h]) => `M${x} ${y}h${w}v${h}h${-w}z`;
  if (row.contour) add("contour", row.contour, `scale(${width / 1000} ${height / 1000})`);
  if (row.region) add("region", rectangle(row.region));
  for (const box of row.boxes) add("known", rectangle(box));
  if (!row.point) return; // a flat map has no maximum
  const [y, x] = row.point;
  for (const name of ["point rim", "point"]) add(name, `M${x + 0.5} ${y + 0.5}h0`);
}

// Show the rows that the controls choose.
function update() {
  const { finding, present, hit, order } = controls.elements;
  const fits = (select, value) => select.value === "" || select.value === String(value);
  shown = rows.filter(
    (row) => fits(finding, row.label) && fits(present, row.present) && fits(hit, row.hit)
  );
  const sign = { highest: -1, lowest: 1 }[order.value];
  if (sign) shown.sort((a, b) => sign * (a.score - b.score));

  const all = document.createDocumentFragment();
  for (const row of shown.slice(0, limit)) all.append(cardOf(row));
  list.replaceChildren(all);
  if (!shown.slice(0, limit).includes(current)) setCurrent(shown[0]);
  const left = shown.length - limit;
  more.hidden = left <= 0;
  more.textContent = `Show ${Math.min(left, AT_ONCE)} of ${left} more`;
  document.getElementById("count").textContent = `${shown.length} of ${rows.length} rows`;
  for (const button of document.querySelectorAll("tbody button")) {
    button.setAttribute("aria-pressed", button.textContent === finding.value);
  }
}

// How the rows that are shown look.
function restyle() {
  const { size, fade, scale, boxes, point, contour } = controls.elements;
  list.style.setProperty("--size", `${size.value}rem`);
  list.style.setProperty("--fade", fade.value / 100);
  document.body.dataset.scale = scale.value;
  list.classList.toggle("no-boxes", !boxes.checked);
  list.classList.toggle("no-point", !point.checked);
  list.classList.toggle("no-contour", !contour.checked);
  const ends = scale.value === "absolute" ? ["0", "1"] : ["min", "max"];
  document.getElementById("low").textContent = ends[0];
  document.getElementById("high").textContent = ends[1];
}

// Tab leads to one row, the arrow keys from row to row.
function setCurrent(row) {
  if (current) current.link.tabIndex = -1;
  current = row;
  if (current) current.link.tabIndex = 0;
}

function goTo(row) {
  setCurrent(row);
  row.link.focus({ preventScroll: true });
  row.card.scrollIntoView({ block: "nearest" });
}

function onKey(event) {
  const inList = list.contains(event.target);
  const isPlain = !(event.altKey || event.ctrlKey || event.metaKey || event.shiftKey);
  if (!isPlain || !(inList || event.target === document.body) || shown.length === 0) return;
  const columns = getComputedStyle(list).gridTemplateColumns.split(" ").length;
  const steps = { ArrowLeft: -1, ArrowRight: 1 };
  const within = { ArrowUp: -columns, ArrowDown: columns, Home: -Infinity, End: Infinity };
  const step = { ...steps, ...(inList ? within : {}) }[event.key]; // else they scroll the page
  if (step === undefined) return;
  event.preventDefault();
  const here = shown.slice(0, limit);
  const inView = (row) => row.card.getBoundingClientRect().bottom > innerHeight / 4;
  const next = inList ? here.indexOf(current) + step : here.findIndex(inView);
  goTo(here[Math.max(0, Math.min(next, here.length - 1))]);
}

// Go to the row that the address names, although filters may have left it out.
function goToHash() {
  let id = location.hash.slice(1);
  try {
    id = decodeURIComponent(id);
  } catch {
    // a stray % in an address that was typed
  }
  const row = rows.find((each) => each.id === id);
  if (!row) return;
  if (!shown.includes(row)) for (const name of ["finding", "present", "hit"]) {
    controls.elements[name].value = "";
  }
  update();
  while (shown.indexOf(row) >= limit) limit += AT_ONCE;
  update();
  goTo(row);
}

// the words around the rows
document.title = data.title;
document.querySelector("h1").textContent = data.title;
document.getElementById("notes").textContent = data.notes.join(" ");
document.getElementById("weights").textContent = data.weights;
document.getElementById("command").textContent = data.command;
for (const name of data.head) {
  const cell = document.querySelector("thead tr").appendChild(element("th", name));
  cell.scope = "col";
}
for (const [name, ...cells] of data.table) {
  const line = document.querySelector("tbody").appendChild(document.createElement("tr"));
  const first = line.appendChild(document.createElement("th"));
  first.scope = "row";
  if (data.classes.includes(name)) {
    const button = first.appendChild(element("button", name));
    button.type = "button";
    button.addEventListener("click", () => {
      controls.elements.finding.value = controls.elements.finding.value === name ? "" : name;
      limit = AT_ONCE;
      update();
    });
  } else {
    first.textContent = name;
  }
  for (const text of cells) line.append(element("td", text));
}
for (const name of data.classes) controls.elements.finding.append(new Option(name));

// what this page has
const has = (test) => rows.some(test);
document.getElementById("outcome").hidden = !has((row) => row.hit !== null);
document.getElementById("known").hidden = !has((row) => row.boxes.length);
document.getElementById("region").hidden = !has((row) => row.region);
for (const id of ["contours", "threshold"]) {
  document.getElementById(id).hidden = !has((row) => row.contour);
}
document.getElementById("scale").hidden = !data.are_probabilities;
controls.elements.scale.value = data.scale;

controls.addEventListener("input", (event) => {
  if (event.target.matches("[name=size], [name=fade], [name=scale], [type=checkbox]")) return restyle();
  limit = AT_ONCE;
  update();
});
controls.addEventListener("submit", (event) => event.preventDefault());
more.addEventListener("click", () => {
  const next = limit;
  limit += AT_ONCE;
  update();
  goTo(shown[next]);
});
document.addEventListener("keydown", onKey);
addEventListener("hashchange", goToHash);
restyle();
update();
goToHash();
