// The annotation page: unknown images in groups, a selection, and decisions that are sent until they are stored.

const RETRY_SECONDS = [1, 2, 4, 8];
const WATCH_SECONDS = 4;
const DRAG_PIXELS = 6;
const FEWEST_IMAGES = 2;

const $ = (id) => document.getElementById(id);
const count = (number, noun) => `${number} ${noun}${number === 1 ? "" : noun.endsWith("s") ? "es" : "s"}`;
const fold = (name) => name.toLowerCase();

function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

// ---------------------------------------------------------------------------------------------------------- state
// An image's label is null (undecided), "" (dismissed) or its name.

let set; // what never changes: id (digest of the images), title, height, width, known, groups
let base = { revision: -1, labels: [], canUndo: false, finished: false }; // what the server has stored
let labels = []; // what is shown: base, and what waits to be stored
let waiting = []; // decisions that are not stored yet, oldest first
let order = []; // images in the order of the page
const place = new Map(); // image -> its place in order
const groupOf = new Map(); // image -> its group
const tiles = new Map(); // image -> its element
const selected = new Set();
const hues = new Map(); // name -> hue, in the order of first use
let current = 0; // the image that the keyboard is at
let anchor = 0; // where a selection with Shift starts
let show = "all";
let byKeyboard = true; // what was used last, keyboard or pointer

const stateOf = (image) => (labels[image] === null ? "undecided" : labels[image] === "" ? "dismissed" : "named");
const visible = (image) => show === "all" || stateOf(image) === show;
const isKnown = (name) => set.known.some((other) => fold(other) === fold(name));

function classes() {
  const found = new Map();
  for (const image of order) {
    if (!labels[image]) continue;
    if (!found.has(labels[image])) found.set(labels[image], []);
    found.get(labels[image]).push(image);
  }
  return new Map([...found].sort(([one], [other]) => one.localeCompare(other)));
}

const tooSmall = () => [...classes()].filter(([name, images]) => !isKnown(name) && images.length < FEWEST_IMAGES);

// What will hold once everything that waits is stored, as far as this page can know.
function foresee() {
  const standing = [];
  for (const decision of waiting) {
    if (decision.verdict === "undone") standing.pop();
    else if (decision.verdict !== "finished") standing.push(decision);
  }
  const next = base.labels.slice();
  for (const { verdict, images, name } of standing) {
    for (const image of images) next[image] = verdict === "named" ? name : verdict === "dismissed" ? "" : null;
  }
  return next;
}

function refresh() {
  const before = labels;
  labels = foresee();
  for (const image of order) if (labels[image] !== before[image]) paintTile(image);
  paintCounts();
  paintSelection();
  paintStored();
}

// ------------------------------------------------------------------------------------------------------- decisions

function spelling(name) {
  return [...set.known, ...classes().keys()].find((other) => fold(other) === fold(name)) ?? name;
}

function decide(verdict, images = [], name = undefined) {
  const decision = { id: crypto.randomUUID(), verdict };
  if (images.length) decision.images = images;
  if (name !== undefined) decision.name = spelling(name);
  waiting.push(decision);
  keep(decision);
  refresh();
  send();
}

// Kept by the browser until stored, for these images: a tab that is closed while the server is away loses nothing, and
// the page of the server's next start, at another address of the same port, sends it.
const kept = (key = "") => `annotate:${set.id}:${key}`;

function keep(decision) {
  try {
    localStorage.setItem(kept(decision.id), JSON.stringify({ at: performance.timeOrigin + performance.now(), decision }));
  } catch { /* a browser that keeps nothing still has it in this tab */ }
}

function forget(decision) {
  try { localStorage.removeItem(kept(decision.id)); } catch { /* it was not kept */ }
}

function recall() {
  try {
    return Object.keys(localStorage)
      .filter((key) => key.startsWith(kept()))
      .map((key) => JSON.parse(localStorage.getItem(key)))
      .sort((one, other) => one.at - other.at)
      .map(({ decision }) => decision);
  } catch {
    return [];
  }
}

let sending = false;
let wake = () => {};

async function send() {
  if (sending) return;
  sending = true;
  let tries = 0;
  while (waiting.length) {
    const decision = waiting[0];
    paintStored();
    const { answer, fault, refused } = await post(decision);
    if (fault) {
      const seconds = RETRY_SECONDS[Math.min(tries++, RETRY_SECONDS.length - 1)];
      complain(fault);
      await new Promise((resolve) => { wake = resolve; setTimeout(resolve, seconds * 1000); });
      continue;
    }
    tries = 0;
    waiting.shift();
    forget(decision);
    if (refused) complain(`Not possible: ${refused}.`, false);
    else {
      calm();
      accept(answer);
      said = sentence(decision);
      announce(`${said}, stored`);
    }
    refresh();
  }
  sending = false;
  paintStored();
  if (base.finished) finished();
}

async function post(decision) {
  let response;
  try {
    response = await fetch("decisions", {
      method: "POST",
      headers: { "Content-Type": "application/json" },
      body: JSON.stringify(decision),
      signal: AbortSignal.timeout(15000),
    });
    if (response.ok) return { answer: await response.json() };
    if (lost(response)) return { fault: LOST };
    const { error } = await response.json();
    return response.status < 500 ? { refused: error } : { fault: `Not stored: ${error}. It is tried again.` };
  } catch {
    return { fault: response && response.status >= 500 ? "Not stored: the server failed. It is tried again." : AWAY };
  }
}

const AWAY = "The server does not answer. Is “collective-node annotate” still running? What you decide is kept by this browser. Once the command is started again, open its new address here, and it is sent.";
// 403: the cookie is unknown; 404: the server was started again, and its page has another address.
const lost = (response) => response.status === 403 || response.status === 404;
const LOST = "This tab may no longer write. Press Enter in the terminal of “collective-node annotate”, and open the new address; what waits here is sent from there.";

function accept(answer) {
  if (answer.revision <= base.revision) return;
  base = answer;
  answer.names.forEach(hue);
}

// Another tab may have decided something, or the server may have gone.
async function watch() {
  if (sending || document.hidden || base.finished) return;
  try {
    const response = await fetch(`labels?since=${base.revision}`, { signal: AbortSignal.timeout(15000) });
    if (lost(response)) return complain(LOST);
    if (response.status === 200) {
      accept(await response.json());
      refresh();
    }
    calm();
  } catch {
    complain(AWAY);
  }
  paintStored();
}

function sentence({ verdict, images = [], name }) {
  const what = count(images.length, "image");
  if (verdict === "named") return `${what} named ${name}`;
  return { dismissed: `${what} dismissed`, cleared: `${what} cleared`, undone: "Undone", finished: "Finished" }[verdict];
}

// -------------------------------------------------------------------------------------------------------- painting

let said = "";
let complaint = false;

function complain(text, lasting = true) {
  complaint = lasting;
  if ($("alert-text").textContent !== text || $("alert").hidden) {
    $("alert").hidden = false;
    $("alert-text").textContent = text;
  }
  $("again").textContent = lasting ? "Try now" : "Close";
  paintStored();
}

// Ends a complaint about the server; one about a decision stays until it was read.
function calm() {
  if (!complaint) return;
  complaint = false;
  $("alert").hidden = true;
}

function announce(text) {
  $("live").textContent = text;
}

function paintStored() {
  const state = complaint ? "waiting" : waiting.length ? "storing" : "stored";
  $("stored").dataset.state = state;
  const decisions = count(waiting.length, "decision");
  $("stored-text").textContent = {
    waiting: waiting.length ? `${decisions} not stored yet` : "No connection",
    storing: "Storing…",
    stored: said ? `Stored: ${said}` : "Every label is stored at once",
  }[state];
  $("finish-now").disabled = waiting.length > 0 || tooSmall().length > 0;
}

function hue(name) {
  // By the golden angle, so that neighbours differ.
  if (!hues.has(name)) hues.set(name, (230 + hues.size * 137.508) % 360);
  return hues.get(name);
}

function paintTile(image) {
  const tile = tiles.get(image);
  const state = stateOf(image);
  tile.dataset.state = state;
  const caption = { undecided: "", dismissed: "dismissed", named: labels[image] }[state];
  tile.lastChild.textContent = caption;
  tile.title = state === "named" ? caption : "";
  if (state === "named") tile.style.setProperty("--hue", hue(caption));
  tile.setAttribute("aria-label", `Image ${image + 1}, ${state === "named" ? `named ${caption}` : state}`);
}

function paintCounts() {
  const named = order.filter((image) => stateOf(image) === "named").length;
  const dismissed = order.filter((image) => stateOf(image) === "dismissed").length;
  const share = (part) => part / order.length;
  $("progress").style.setProperty("--named", share(named));
  $("progress").style.setProperty("--dismissed", share(dismissed));
  $("progress").setAttribute("aria-valuenow", named + dismissed);
  $("progress-text").textContent = `${named + dismissed} of ${order.length}: ${named} named, ${dismissed} dismissed`;
  const shown = set.groups.map((group) => {
    const undecided = group.images.filter((image) => stateOf(image) === "undecided").length;
    group.note.textContent = undecided === 0 ? "done" : undecided < group.images.length ? `${undecided} undecided` : "";
    group.element.hidden = !group.images.some(visible);
    return !group.element.hidden;
  });
  $("nothing").hidden = shown.includes(true);
  $("nothing").textContent = `No image is ${show}.`;
  $("undo").disabled = !base.canUndo && !waiting.length;
  paintClasses();
}

function paintClasses() {
  const rows = [...classes()].map(([name, images]) => {
    const colour = make("span", { class: "colour", "aria-hidden": "true" });
    colour.style.setProperty("--hue", hue(name));
    const button = make("button", { type: "button", title: "Select its images" }, colour, name);
    button.append(make("span", { class: "number" }, String(images.length)));
    if (isKnown(name)) button.append(make("small", {}, "known already: not new"));
    else if (images.length < FEWEST_IMAGES) button.append(make("small", { class: "few" }, "needs one image more"));
    button.addEventListener("click", () => {
      if (show !== "all" && show !== "named") choose("all");
      select(images);
      go(images[0]);
      tiles.get(images[0]).scrollIntoView({ block: "nearest" });
    });
    return make("li", {}, button);
  });
  $("classes").replaceChildren(...rows);
  $("no-classes").hidden = rows.length > 0;
}

function paintSelection() {
  for (const [image, tile] of tiles) {
    const on = selected.has(image);
    if ((tile.getAttribute("aria-selected") === "true") !== on) tile.setAttribute("aria-selected", on);
  }
  $("actions").classList.toggle("idle", selected.size === 0);
  if (selected.size) $("count").textContent = `${count(selected.size, "image")} selected`;
  const names = recent();
  if ($("recent").dataset.names !== JSON.stringify(names)) {
    $("recent").dataset.names = JSON.stringify(names);
    $("recent").replaceChildren(...names.map((name, index) => {
      const chip = make("button", { type: "button", class: "colour", tabindex: "-1" }, make("kbd", {}, String(index + 1)), name);
      chip.style.setProperty("--hue", hue(name));
      chip.addEventListener("click", () => apply("named", name));
      return chip;
    }));
  }
}

// Names for the number keys: in the order of first use, so that a key keeps its name.
function recent() {
  const used = new Set(classes().keys());
  return [...hues.keys()].filter((name) => used.has(name)).slice(0, 9);
}

// ------------------------------------------------------------------------------------------------------- selection

function select(images, on = true) {
  for (const image of images) {
    if (on) selected.add(image);
    else selected.delete(image);
  }
  paintSelection();
}

function deselect() {
  selected.clear();
  $("name").value = "";
  paintSelection();
}

const between = (one, other) => {
  const [first, last] = [place.get(one), place.get(other)].sort((a, b) => a - b);
  return order.slice(first, last + 1).filter(visible);
};

// Move the keyboard and the focus to an image; the page follows the keyboard, but does not move under a mouse.
function go(image) {
  tiles.get(current).tabIndex = -1;
  current = image;
  const tile = tiles.get(image);
  tile.tabIndex = 0;
  tile.focus({ preventScroll: true });
  if (byKeyboard) tile.scrollIntoView({ block: "nearest" });
}

function columns(group) {
  return getComputedStyle(group.list).gridTemplateColumns.split(" ").length;
}

// The image that a key leads to from the current one; the same where there is none.
function target(key) {
  const flat = order.filter(visible);
  if (!flat.length) return current;
  if (!visible(current)) return flat.find((image) => place.get(image) > place.get(current)) ?? flat.at(-1);
  const at = flat.indexOf(current);
  if (key === "ArrowLeft") return flat[Math.max(0, at - 1)];
  if (key === "ArrowRight") return flat[Math.min(flat.length - 1, at + 1)];
  const groups = set.groups.filter((group) => group.images.some(visible));
  const number = groups.indexOf(groupOf.get(current));
  const own = groups[number].images.filter(visible);
  const neighbour = (step) => groups[number + step]?.images.filter(visible);
  if (key === "PageDown") return (neighbour(1) ?? [own.at(-1)])[0];
  if (key === "PageUp") return own[0] === current ? (neighbour(-1) ?? own)[0] : own[0];
  if (key === "Home") return flat[0];
  if (key === "End") return flat.at(-1);
  const width = columns(groups[number]);
  const index = own.indexOf(current);
  const column = index % width;
  if (key === "ArrowDown") {
    if (index + width < own.length) return own[index + width];
    if (Math.floor(index / width) < Math.floor((own.length - 1) / width)) return own.at(-1);
    const below = neighbour(1);
    return below ? below[Math.min(column, below.length - 1)] : current;
  }
  if (index >= width) return own[index - width];
  const above = neighbour(-1);
  if (!above) return current;
  const row = above.length - 1 - ((above.length - 1) % width);
  return above[Math.min(row + column, above.length - 1)];
}

function nextUndecided(after) {
  const open = order.filter((image) => stateOf(image) === "undecided");
  return open.find((image) => place.get(image) > after) ?? open[0];
}

// The images that a decision is about: the selected ones, else the one that the keyboard is at.
function chosen() {
  return selected.size ? order.filter((image) => selected.has(image)) : visible(current) ? [current] : [];
}

function apply(verdict, name = undefined) {
  const images = chosen();
  if (!images.length || base.finished) return;
  selected.clear();
  decide(verdict, images, name);
  const next = nextUndecided(place.get(images.at(-1)));
  go(next ?? images.at(-1));
  anchor = current;
}

function undo() {
  if (!$("undo").disabled) decide("undone");
}

// ---------------------------------------------------------------------------------------------------- naming field

let option = -1; // the highlighted suggestion

function suggestions() {
  const typed = fold($("name").value.trim());
  const used = classes();
  const names = [
    ...[...used].map(([name, images]) => ({ name, note: isKnown(name) ? "known: not new" : count(images.length, "image") })),
    ...(typed ? set.known.filter((name) => !used.has(name)).map((name) => ({ name, note: "known: not new" })) : []),
  ];
  const rank = (name) => (fold(name).startsWith(typed) ? 0 : 1);
  return names.filter(({ name }) => fold(name).includes(typed)).sort((a, b) => rank(a.name) - rank(b.name)).slice(0, 8);
}

function paintSuggestions() {
  const open = document.activeElement === $("name");
  const found = open ? suggestions() : [];
  option = Math.min(option, found.length - 1);
  $("suggestions").replaceChildren(...found.map(({ name, note }, index) => {
    const item = make("li", { role: "option", id: `suggestion-${index}`, "aria-selected": index === option }, name, make("small", {}, note));
    // Before the field loses the focus.
    item.addEventListener("pointerdown", (event) => {
      event.preventDefault();
      nameThem(name);
    });
    return item;
  }));
  $("suggestions").hidden = !found.length;
  $("name").setAttribute("aria-expanded", found.length > 0);
  if (option >= 0) {
    $("name").setAttribute("aria-activedescendant", `suggestion-${option}`);
    $(`suggestion-${option}`).scrollIntoView({ block: "nearest" });
  } else $("name").removeAttribute("aria-activedescendant");
}

function nameThem(text) {
  const name = text.normalize("NFC").trim().replace(/\s+/gu, " ");
  if (!name) return;
  apply("named", name);
  $("name").value = "";
  option = -1;
  paintSuggestions();
}

function startNaming() {
  if (!selected.size && visible(current)) select([current]);
  if (!selected.size) return;
  $("name").focus();
  $("name").select();
}

$("naming").addEventListener("submit", (event) => {
  event.preventDefault();
  nameThem(option >= 0 ? suggestions()[option].name : $("name").value);
});
$("name").addEventListener("input", () => { option = -1; paintSuggestions(); });
$("name").addEventListener("focus", paintSuggestions);
$("name").addEventListener("blur", () => { option = -1; paintSuggestions(); });
$("name").addEventListener("keydown", (event) => {
  const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
  if (step) {
    const length = suggestions().length;
    option = ((option + step + 1 + (length + 1)) % (length + 1)) - 1;
    paintSuggestions();
    event.preventDefault();
  } else if (event.key === "Escape") {
    event.stopPropagation();
    go(current);
  }
});

// -------------------------------------------------------------------------------------------------------- keyboard

const MOVES = ["ArrowLeft", "ArrowRight", "ArrowUp", "ArrowDown", "Home", "End", "PageUp", "PageDown"];

function move(key, extend) {
  const next = target(key);
  if (extend) {
    if (!selected.size) anchor = current;
    select(between(anchor, next));
  } else anchor = next;
  go(next);
}

function selectGroup(group) {
  const shown = group.images.filter(visible);
  const open = shown.filter((image) => stateOf(image) === "undecided");
  const images = open.length ? open : shown;
  select(images, !images.every((image) => selected.has(image)));
}

function toggle(image) {
  anchor = image;
  select([image], !selected.has(image));
}

const LETTERS = {
  a: () => selectGroup(groupOf.get(current)),
  c: () => apply("cleared"),
  d: () => apply("dismissed"),
  u: undo,
  n: () => {
    const next = nextUndecided(place.get(current));
    if (next === undefined) return;
    if (show !== "all" && show !== "undecided") choose("all");
    go(next);
    anchor = current;
  },
  "?": () => $("help").showModal(),
  "+": () => resize(1),
  "=": () => resize(1),
  "-": () => resize(-1),
};

document.addEventListener("keydown", (event) => {
  const active = document.activeElement;
  if (!set || base.finished || document.querySelector("dialog[open]") || active.matches("#name")) return;
  const onTile = active.matches(".tile") || active === document.body;
  let handled = true;
  if ((event.ctrlKey || event.metaKey) && fold(event.key) === "z") undo();
  else if (event.ctrlKey || event.metaKey || event.altKey) handled = false;
  else if (onTile && MOVES.includes(event.key)) move(event.key, event.shiftKey);
  else if (onTile && event.key === " ") toggle(current);
  else if (onTile && event.key === "Enter") startNaming();
  else if (event.key === "Escape") deselect();
  else if (/^[1-9]$/.test(event.key) && !active.matches("input")) {
    const name = recent()[event.key - 1];
    if (name !== undefined) apply("named", name);
  } else if (LETTERS[fold(event.key)]) LETTERS[fold(event.key)]();
  else handled = false;
  if (handled) event.preventDefault();
});

// ----------------------------------------------------------------------------------------------------------- mouse

for (const [kind, keyboard] of [["keydown", true], ["pointerdown", false]]) {
  document.addEventListener(kind, () => { byKeyboard = keyboard; }, true);
}

let drag = null;
let dragged = false; // the click that ends a drag selects nothing

$("groups").addEventListener("click", (event) => {
  if (dragged) return;
  const tile = event.target.closest(".tile");
  if (!tile) return;
  const image = Number(tile.dataset.image);
  if (event.shiftKey) select(between(anchor, image));
  else toggle(image);
  go(image);
});

document.querySelector("main").addEventListener("pointerdown", (event) => {
  dragged = false;
  if (event.button !== 0 || event.pointerType === "touch" || event.target.closest("button, aside")) return;
  if (event.shiftKey) event.preventDefault(); // no text selection
  drag = { x: event.pageX, y: event.pageY, pointer: event.pointerId, before: new Set(selected), off: event.altKey, frame: null };
});

document.addEventListener("pointermove", (event) => {
  if (!drag) return;
  drag.clientX = event.clientX;
  drag.clientY = event.clientY;
  if (!drag.frame) {
    if (Math.hypot(event.pageX - drag.x, event.pageY - drag.y) < DRAG_PIXELS) return;
    drag.frame = document.body.appendChild(make("div", { id: "frame" }));
    document.body.classList.add("dragging");
    document.querySelector("main").setPointerCapture(drag.pointer);
    getSelection().removeAllRanges();
    requestAnimationFrame(scrollWhileDragging);
  }
  stretch();
});

// Select what the frame touches, on top of what was selected before.
function stretch() {
  const x = drag.clientX + scrollX;
  const y = drag.clientY + scrollY;
  const box = { left: Math.min(x, drag.x), right: Math.max(x, drag.x), top: Math.min(y, drag.y), bottom: Math.max(y, drag.y) };
  const style = drag.frame.style;
  style.left = `${box.left}px`;
  style.top = `${box.top}px`;
  style.width = `${box.right - box.left}px`;
  style.height = `${box.bottom - box.top}px`;
  const touches = (element) => {
    const rect = element.getBoundingClientRect();
    return rect.width > 0 && rect.left + scrollX < box.right && rect.right + scrollX > box.left &&
      rect.top + scrollY < box.bottom && rect.bottom + scrollY > box.top;
  };
  selected.clear();
  for (const image of drag.before) selected.add(image);
  for (const group of set.groups) {
    if (group.element.hidden || !touches(group.element)) continue;
    for (const image of group.images) {
      if (!visible(image) || !touches(tiles.get(image))) continue;
      if (drag.off) selected.delete(image);
      else selected.add(image);
    }
  }
  paintSelection();
}

function scrollWhileDragging() {
  if (!drag?.frame) return;
  const [top, bottom] = [$("top").getBoundingClientRect().bottom, $("actions").getBoundingClientRect().top];
  const over = drag.clientY < top + 30 ? drag.clientY - top - 30 : Math.max(0, drag.clientY - bottom + 30);
  if (over) {
    scrollBy(0, over / 4);
    stretch();
  }
  requestAnimationFrame(scrollWhileDragging);
}

function release() {
  if (drag?.frame) {
    drag.frame.remove();
    document.body.classList.remove("dragging");
    dragged = true;
  }
  drag = null;
}
document.addEventListener("pointerup", release);
document.addEventListener("pointercancel", release);

// --------------------------------------------------------------------------------------------------------- controls

function choose(value) {
  show = value;
  document.querySelector(`input[name="show"][value="${value}"]`).checked = true;
  $("groups").dataset.show = value;
  for (const image of [...selected]) if (!visible(image)) selected.delete(image);
  paintCounts();
  paintSelection();
}

for (const input of document.querySelectorAll('input[name="show"]')) {
  input.addEventListener("change", () => choose(input.value));
}

function resize(steps = 0) {
  const size = $("size");
  size.stepUp(steps);
  document.documentElement.style.setProperty("--size", `${size.value}px`);
  const smallest = Math.min(set.height, set.width);
  document.body.classList.toggle("pixelated", size.value >= 1.5 * smallest);
  try { localStorage.setItem("annotate-size", size.value); } catch { /* it is only a convenience */ }
}

$("size").addEventListener("input", () => resize());
$("undo").addEventListener("click", undo);
$("dismiss").addEventListener("click", () => apply("dismissed"));
$("clear").addEventListener("click", () => apply("cleared"));
$("deselect").addEventListener("click", deselect);
$("help-button").addEventListener("click", () => $("help").showModal());
$("again").addEventListener("click", () => {
  if (!complaint) $("alert").hidden = true;
  else if (sending) wake();
  else watch();
});

// Keep the keyboard among the images: a button that is clicked does not take the focus from them.
for (const element of [$("actions"), $("top")]) {
  element.addEventListener("pointerdown", (event) => {
    if (event.target.closest("button")) event.preventDefault();
  });
}

// ----------------------------------------------------------------------------------------------------------- finish

$("finish-button").addEventListener("click", () => {
  const found = [...classes()];
  const left = order.filter((image) => stateOf(image) === "undecided").length;
  const gone = order.filter((image) => stateOf(image) === "dismissed").length;
  const row = (text, number) => make("li", {}, make("span", {}, text), make("span", {}, String(number)));
  $("summary").replaceChildren(
    ...found.map(([name, images]) => row(isKnown(name) ? `${name} (known already, not learned)` : name, images.length)),
    row("dismissed", gone),
    row("undecided, left out", left),
  );
  const few = tooSmall().map(([name]) => name);
  const fresh = found.filter(([name]) => !isKnown(name)).length;
  $("obstacle").hidden = !few.length && fresh > 0;
  $("obstacle").textContent = few.length
    ? `${few.join(", ")}: a class needs ${FEWEST_IMAGES} images. Name another one like it, or clear the one.`
    : "No new class has a name: the collective learns none.";
  paintStored();
  $("finish").returnValue = "";
  $("finish").showModal();
});

$("finish").addEventListener("close", () => {
  if ($("finish").returnValue === "finish" && !$("finish-now").disabled) decide("finished");
});

function finished() {
  const fresh = [...classes()].filter(([name]) => !isKnown(name));
  const images = fresh.reduce((sum, [, members]) => sum + members.length, 0);
  $("done-text").textContent = fresh.length
    ? `You named ${count(images, "image")} of ${count(fresh.length, "new class")}.`
    : "You named no new class.";
  for (const element of document.querySelectorAll("body > :not(#done, #live)")) element.hidden = true;
  $("done").hidden = false;
  $("done").focus();
}

// ------------------------------------------------------------------------------------------------------------ start

function build() {
  set.groups.forEach((group, index) => {
    const title = `group-${index}`;
    const confidence = make("span", { class: "confidence", "aria-hidden": "true" }, make("span"));
    confidence.style.setProperty("--confidence", group.confidence);
    const all = make("button", { type: "button", class: "quiet", tabindex: "-1" }, "Select group ", make("kbd", {}, "A"));
    all.addEventListener("click", () => {
      selectGroup(group);
      go(group.images.find(visible));
    });
    group.note = make("p");
    group.list = make("div", { class: "tiles", role: "listbox", "aria-multiselectable": "true", "aria-labelledby": title });
    for (const image of group.images) {
      const picture = make("img", { src: `images/${image}.png`, alt: "", loading: "lazy", decoding: "async", draggable: "false" });
      const tile = make("div", { class: "tile", role: "option", tabindex: "-1", "aria-selected": "false", "data-image": image }, picture, make("span"));
      group.list.append(tile);
      tiles.set(image, tile);
      place.set(image, order.length);
      groupOf.set(image, group);
      order.push(image);
    }
    group.element = make("section", { class: "group", "aria-labelledby": title },
      make("header", {},
        make("h2", { id: title }, `Group ${index + 1}`),
        make("p", {}, count(group.images.length, "image")),
        make("p", { title: "How unknown its images look, times how much they look alike" }, confidence, `confidence ${group.confidence.toFixed(2)}`),
        group.note, all),
      group.list);
    $("groups").append(group.element);
  });
  $("progress").setAttribute("aria-valuemax", order.length);
  $("title").textContent = set.title;
  $("known-note").textContent = `The collective knows ${count(set.known.length, "class")}. An image of one of them is not new: give it the known name, or dismiss it.`;
}

async function start() {
  const [fixed, stored] = await Promise.all(["set", "labels"].map(async (path) => {
    const response = await fetch(path);
    if (!response.ok) throw new Error(await response.text());
    return response.json();
  }));
  set = fixed;
  build();
  accept(stored);
  labels = order.map(() => undefined);
  waiting = recall();
  try { $("size").value = localStorage.getItem("annotate-size") ?? $("size").value; } catch { /* the default */ }
  resize();
  current = anchor = order[0];
  refresh();
  go(nextUndecided(-1) ?? order[0]);
  anchor = current;
  send();
  setInterval(watch, WATCH_SECONDS * 1000);
  document.addEventListener("visibilitychange", watch);
}

addEventListener("beforeunload", (event) => {
  if (waiting.length) event.preventDefault();
});

start().catch((error) => complain(`The page could not be loaded: ${error.message}`));
