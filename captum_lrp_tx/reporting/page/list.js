// The list of examples with its filters, and the chosen example.

let listed = [];
const ROW = isText ? 76 : 64;

function mark(example) {
  if (example.correct === null) return null;
  const text = example.correct ? "correct" : "wrong";
  return el("span", { class: `mark ${text}`, role: "img", "aria-label": text, title: text }, example.correct ? "\u2713" : "\u2717");
}

function buildFilters() {
  const choose = (key, label, options) => el("label", { class: "field" }, el("span", {}, label),
    el("select", { "data-key": key, onchange: (event) => change({ [key]: event.target.value }) },
      options.map(([value, text]) => el("option", { value }, text))));
  const present = (of) => [["", "any"], ...[...new Set(examples.map(of))].filter((c) => c !== null).sort((a, b) => a - b).map((c) => [c, data.classes[c]])];
  const counts = { all: examples.length, correct: examples.filter((e) => e.correct === true).length, wrong: examples.filter((e) => e.correct === false).length };
  const between = (key, label) => el("input", { type: "number", min: 0, max: 100, step: 1, inputmode: "numeric", "data-key": key, "aria-label": label,
    onchange: (event) => change({ [key]: event.target.value === "" ? DEFAULTS[key] : Math.min(Math.max(Number(event.target.value), 0), 100) }) });
  $("filters").replaceChildren(...[
    el("input", { type: "search", id: "search", placeholder: isText ? "Search in the texts" : "Number of an image", "aria-label": "Search", "data-key": "q",
      oninput: (event) => change({ q: event.target.value }) }),
    hasLabels ? el("div", { class: "segments", role: "group", "aria-label": "Show" }, Object.entries(counts).map(([value, count]) =>
      el("button", { type: "button", "data-show": value, onclick: () => change({ show: value }) }, value, el("small", {}, count)))) : null,
    el("div", { class: "fields" },
      data.classes.length > 1 ? choose("predicted", "Predicted", present((e) => e.prediction)) : null,
      hasLabels ? choose("true", "True class", present((e) => e.label)) : null,
      hasProbabilities ? el("div", { class: "field", role: "group", "aria-label": "Confidence in percent" }, el("span", {}, "Confidence %"),
        el("span", { class: "range" }, between("from", "from percent"), "\u2013", between("to", "to percent"))) : null),
    el("div", { class: "fields" },
      choose("sort", "Sort", []),
      choose("lead", isText ? "Colours by" : "Map by", [])),
    el("p", { class: "count" }, el("span", { id: "count", role: "status" }),
      el("button", { type: "button", class: "quiet", id: "reset", onclick: reset }, "reset filters")),
  ].filter(Boolean));
}

const FILTERS = ["show", "predicted", "true", "from", "to", "q"];

function reset() {
  change(Object.fromEntries(FILTERS.map((key) => [key, DEFAULTS[key]])));
  $("search").focus();
}

function renderFilters() {
  const fill = (key, options) => document.querySelector(`select[data-key=${key}]`)
    .replaceChildren(...options.map(([value, text]) => el("option", { value }, text)));
  fill("sort", orders().map(([key, [text]]) => [key, text]));
  fill("lead", shownMethods().filter(usable).map((method) => [method.name, method.name]));
  for (const input of document.querySelectorAll("#filters [data-key]")) {
    const wanted = input.dataset.key === "lead" ? lead().name : String(state[input.dataset.key]);
    if (input.value !== wanted && input !== document.activeElement) input.value = wanted;
  }
  for (const button of document.querySelectorAll("[data-show]")) button.setAttribute("aria-pressed", button.dataset.show === state.show);
  $("count").textContent = listed.length === examples.length
    ? `${examples.length} ${isText ? "texts" : "images"}` : `${listed.length} of ${examples.length} ${isText ? "texts" : "images"}`;
  $("reset").hidden = FILTERS.every((key) => String(state[key]) === String(DEFAULTS[key]));
}

// Only the rows in sight exist.
function renderList(follow = false) {
  const list = $("list");
  if (!list.firstChild) list.append(el("div", { class: "spacer" }), el("p", { class: "note" }, "No example passes these filters."));
  const [spacer, nothing] = list.children;
  spacer.style.height = `${listed.length * ROW}px`;
  nothing.hidden = listed.length > 0;
  if (follow) bringIntoSight();
  const first = Math.max(Math.floor(list.scrollTop / ROW) - 6, 0);
  const last = Math.min(Math.ceil((list.scrollTop + list.clientHeight) / ROW) + 6, listed.length);
  const rows = [];
  for (let i = first; i < last; i++) rows.push(row(listed[i], i));
  spacer.replaceChildren(...rows);
  const chosen = listed.indexOf(current());
  if (chosen >= first && chosen < last) list.setAttribute("aria-activedescendant", `row-${current().index}`);
  else list.removeAttribute("aria-activedescendant");
}

function row(example, position) {
  const method = lead();
  const cls = classOf(example);
  const got = explanation(example, method, cls);
  const plain = got.error || isRounding(got, method, example, cls);
  let content;
  if (isText) {
    const boxes = pieces(example, plain ? null : got.values, true).filter((piece) => !piece.special);
    const scale = textScale(boxes);
    content = el("span", { class: "snippet", dir: "auto" }, spaced(boxes, boxes.map((piece) => (plain ? el("span", {}, piece.text) : box(piece, method, scale)))));
  }
  let small = null;
  if (!isText && !plain) {
    small = heat(got.values, got.shape, mapScale(got.values), method.signed);
    small.className = "small";
  }
  const said = data.classes[example.prediction];
  return el("div", {
    class: "row", role: "option", id: `row-${example.index}`, "data-ex": example.index + 1,
    "aria-selected": example === current(), "aria-posinset": position + 1, "aria-setsize": listed.length,
    style: { top: `${position * ROW}px`, height: `${ROW}px` }, onclick: () => change({ ex: example.index + 1 }),
  },
  isText ? null : el("img", { src: example.image.src, alt: "", class: example.image.width > 96 ? null : "coarse" }),
  isText ? null : small || el("span"),
  el("span", { class: "brief" }, el("span", { class: "number" }, example.index + 1), mark(example),
    el("span", { class: "said" }, data.classes.length === 1 ? short(example.output[0]) : said,
      example.correct === false ? el("span", { class: "instead" }, ` not ${data.classes[example.label]}`) : null),
    el("span", { class: "sure" }, example.probabilities ? percent(confidence(example)) : "")),
  content);
}

function bringIntoSight() {
  const list = $("list");
  const top = listed.indexOf(current()) * ROW;
  if (top < 0) return;
  if (top < list.scrollTop) list.scrollTop = top;
  else if (top + ROW > list.scrollTop + list.clientHeight) list.scrollTop = top + ROW - list.clientHeight;
}

function move(step) {
  if (!listed.length) return;
  const now = listed.indexOf(current());
  const next = now < 0 ? 0 : Math.min(Math.max(now + step, 0), listed.length - 1);
  change({ ex: listed[next].index + 1 });
  $("live").textContent = `${isText ? "Text" : "Image"} ${state.ex}, predicted ${data.classes[current().prediction]}`;
}

// The chosen example

function classButtons(example, cls) {
  if (data.classes.length === 1) return null;
  return el("div", { class: "classes", role: "group", "aria-label": "Explained class" },
    [...example.classes].sort((a, b) => example.probabilities[b] - example.probabilities[a] || a - b).map((c) =>
      el("button", { type: "button", "data-class": c, "aria-pressed": c === cls, onclick: () => change({ class: String(c) }),
        title: `Explain the output for ${data.classes[c]}: ${exact(example.output[c], true)}` },
      el("span", { class: "name" }, data.classes[c], c === example.label ? el("small", {}, " true") : null),
      el("span", { class: "meter" }, el("i", { style: { width: `${100 * example.probabilities[c]}%` } })),
      el("span", { class: "n" }, percent(example.probabilities[c])),
      el("span", { class: "n output" }, short(example.output[c])))));
}

function segments(key, label, options) {
  return el("div", { class: "segments", role: "group", "aria-label": label }, options.map(([value, text]) =>
    el("button", { type: "button", "data-option": value, "aria-pressed": state[key] === value, onclick: () => change({ [key]: value }) }, text)));
}

function renderDetail() {
  const example = current();
  const cls = classOf(example);
  const place = listed.indexOf(example);
  const named = (c) => data.classes[c];
  const modes = [["predicted", "Predicted"], ...(hasLabels ? [["true", "True"]] : [])];
  const explained = data.classes.length > 1 ? [el("span", {}, "Explained: the output for "), el("b", { id: "explained" }, named(cls)), ` (${short(example.output[cls])})`] : [`Explained: the output ${short(example.output[0])}`];
  const verdict = data.classes.length === 1 ? null : el("p", { class: "verdict" }, mark(example),
    el("span", {}, "predicted ", el("b", {}, named(example.prediction)), example.probabilities ? ` ${percent(confidence(example))}` : ""),
    example.label === null ? null : el("span", {}, "true class ", el("b", {}, named(example.label))));
  // what is opened stays open, and what has the focus keeps it
  const open = Boolean(document.querySelector("#detail details[open]"));
  const focused = document.activeElement && $("detail").contains(document.activeElement) ? focusKey(document.activeElement) : null;
  $("detail").replaceChildren(
    el("header", {},
      el("div", { class: "nav" },
        el("button", { type: "button", id: "previous", "aria-label": "Previous example", disabled: place === 0 || !listed.length, onclick: () => move(-1) }, "\u2039"),
        el("h2", {}, `${isText ? "Text" : "Image"} ${example.index + 1}`),
        el("button", { type: "button", id: "next", "aria-label": "Next example", disabled: place === listed.length - 1 || !listed.length, onclick: () => move(1) }, "\u203a"),
        verdict),
      isText && example.text ? el("p", { class: "plain", dir: "auto" }, example.text) : null),
    el("div", { class: "explain" }, el("div", { class: "explained" }, el("span", {}, explained),
      data.classes.length > 1 ? segments("class", "Class to explain", modes) : null), classButtons(example, cls)),
    el("div", { class: "options" },
      isText ? segments("pieces", "Boxes", [["words", "Words"], ["tokens", "Tokens"]]) : segments("image", "Drawn", [["overlay", "Overlay"], ["map", "Map alone"]]),
      segments("scale", "Colour scale", [["own", "Own scale"], ["common", "Common scale"]])),
    ...(isText ? textRows(example, cls) : imageTiles(example, cls)).filter(Boolean));
  const details = document.querySelector("#detail details");
  if (details && open) details.open = true;
  const again = focused && document.querySelector(focused);
  if (again) again.focus({ preventScroll: true });
}

function focusKey(element) {
  if (element.id) return `#${element.id}`;
  const found = ["class", "option", "method"].find((key) => element.dataset[key] !== undefined);
  return found ? `#detail [data-${found}="${CSS.escape(element.dataset[found])}"]` : null;
}
