// Building elements (never from markup), colours, the tooltip, and texts as heat maps.

function el(tag, attributes = {}, ...children) {
  const made = tag.startsWith("svg:")
    ? document.createElementNS("http://www.w3.org/2000/svg", tag.slice(4))
    : document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || (value === false && !name.startsWith("aria-"))) continue;
    if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else if (name === "style") Object.assign(made.style, value);
    else if (name === "value") made.value = value;
    else made.setAttribute(name, value === true && !name.startsWith("aria-") ? "" : value);
  }
  made.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined && child !== false));
  return made;
}

const $ = (id) => document.getElementById(id);

let printing = false;
const dark = () => !printing && (state.theme === "dark" || (state.theme === "auto" && matchMedia("(prefers-color-scheme: dark)").matches));

function mix(stops, position) {
  const at = Math.min(Math.max(position, 0), 1) * (stops.length - 1);
  const low = Math.min(Math.floor(at), stops.length - 2);
  return stops[low].map((part, i) => Math.round(part + (stops[low + 1][i] - part) * (at - low)));
}

const css = (rgb) => `rgb(${rgb.join(",")})`;

// Background of a relevance as red, green and blue.
function shade(value, scale, signed, faded) {
  const stops = data.palette[dark() ? "dark" : "light"];
  const position = Math.min(Math.abs(value) / scale, 1) * (faded ? 0.5 : 1);
  if (signed) return mix(value < 0 ? stops.against : stops.for, position);
  return mix(stops.unsigned, value < 0 ? 0 : position);
}

// Dark or white text, whichever has more contrast as WCAG 2 defines it.
function ink(background) {
  const [red, green, blue] = background.map((part) => {
    const share = part / 255;
    return share <= 0.04045 ? share / 12.92 : ((share + 0.055) / 1.055) ** 2.4;
  });
  const luminance = 0.2126 * red + 0.7152 * green + 0.0722 * blue + 0.05;
  return luminance ** 2 > 1.05 * 0.0603 ? "#1a1a1a" : "#fff";
}

const gradient = (colours) => `linear-gradient(90deg, ${colours.map(css).join(", ")})`;

function legend(kinds, scales) {
  const stops = data.palette[dark() ? "dark" : "light"];
  const common = state.scale === "common";
  const label = (kind, sign) => (common ? `${sign}${minus(scales[kind].toPrecision(3))}` : "");
  const parts = [];
  if (kinds.has(true)) {
    parts.push(el("span", {}, `against ${label(true, "\u2212")}`),
      el("i", { style: { background: gradient([...[...stops.against].reverse(), ...stops.for.slice(1)]) } }),
      el("span", {}, `${label(true, "+")} for`));
  }
  if (kinds.has(false)) {
    parts.push(el("span", { class: "gap" }, "0"), el("i", { style: { background: gradient(stops.unsigned) } }),
      el("span", {}, `${label(false, "") || "largest"} (no sign)`));
  }
  parts.push(el("span", { class: "gap" }, common ? "one scale for all methods" : "each method on its own scale"));
  return el("div", { class: "legend" }, parts);
}

// One scale for all signed methods and one for the others, or one for each.
function commonScales(drawn) {
  const scales = {};
  for (const { method, scale } of drawn) scales[method.signed] = Math.max(scales[method.signed] || 0, scale);
  return scales;
}

// The tooltip: one heading, and the number of every method there, the pointed one in bold.

function showTip(target, heading, rows, method) {
  const tip = $("tip");
  tip.replaceChildren(
    el("strong", { dir: "auto" }, heading),
    el("table", {}, rows.map((row) => {
      const width = `${Math.min((100 * Math.abs(row.value)) / row.scale, 100)}%`;
      const colour = shade(row.value < 0 ? -0.8 : 0.8, 1, row.method.signed, false);
      return el("tr", { class: row.method === method ? "now" : null },
        el("th", { scope: "row" }, row.method.name),
        el("td", { class: "value" }, exact(row.value, row.method.signed)),
        el("td", { class: "meter" }, el("i", { style: { width, background: css(colour) } })));
    })));
  place(tip, target);
}

// Beside an element, or something that knows its place likewise.
let anchor = null;
function place(tip, target) {
  anchor = target;
  tip.hidden = false;
  const box = target.getBoundingClientRect();
  const left = Math.min(Math.max(box.left + box.width / 2 - tip.offsetWidth / 2, 8), innerWidth - tip.offsetWidth - 8);
  const above = box.top - tip.offsetHeight - 8;
  tip.style.left = `${Math.max(left, 8)}px`;
  tip.style.top = `${above >= 8 ? above : box.bottom + 8}px`;
}

// What is scrolled takes its tooltip along.
function followTip() {
  const tip = $("tip");
  if (tip.hidden) return;
  const box = anchor.getBoundingClientRect();
  if (anchor.isConnected && box.bottom > 0 && box.top < innerHeight) place(tip, anchor);
  else hideTip();
}

function hideTip() {
  $("tip").hidden = true;
  for (const marked of document.querySelectorAll(".marked")) marked.classList.remove("marked");
}

// Texts

function box(piece, method, scale) {
  const background = shade(piece.relevance, scale, method.signed, piece.special);
  return el("span", {
    class: piece.special ? "w special" : "w",
    style: { background: css(background), color: piece.special ? "" : ink(background) },
  }, piece.text);
}

// As the first letter of the text tells: [CLS] and [UNK] are Latin in every language.
function direction(example) {
  const letter = (example.text || example.words.map(([text]) => text).join(" ")).match(/\p{L}/u);
  return letter && /[\u0590-\u08FF\uFB1D-\uFDFF\uFE70-\uFEFF]/.test(letter[0]) ? "rtl" : "ltr";
}

function spaced(boxes, made) {
  return made.flatMap((word, i) => (boxes[i].space && i ? [" ", word] : [word]));
}

// A line for each method, and below what the colours mean.
function textRows(example, cls) {
  const words = state.pieces === "words";
  const found = shownMethods().map((method) => {
    if (!usable(method)) return { method, reason: method.error };
    const got = explanation(example, method, cls);
    if (got.error) return { method, reason: got.error };
    const boxes = pieces(example, got.values, words);
    const zero = isRounding(got, method, example, cls);
    return { method, got, boxes, scale: textScale(boxes), reason: zero ? "zero up to rounding" : "" };
  });
  const drawn = found.filter((row) => !row.reason);
  const scales = commonScales(drawn);
  const rows = found.map((row) => {
    const { method, got, boxes, reason } = row;
    const used = (row.used = (state.scale === "common" && scales[method.signed]) || row.scale);
    const line = reason
      ? el("span", { class: "reason" }, reason)
      : el("div", { class: "words", dir: direction(example), role: "group", tabindex: 0, "data-method": method.name,
          "aria-label": `Relevance by ${method.name}; left and right arrow move between words` },
        spaced(boxes, boxes.map((piece) => box(piece, method, used))));
    return methodRow(method, got, example, cls, line);
  });
  const pointed = (event) => event.target.closest && event.target.closest(".w");
  const tell = (word) => {
    const line = word.closest(".words");
    const method = methods.find((one) => one.name === line.dataset.method);
    pointAt(word, [...line.querySelectorAll(".w")].indexOf(word), method, found.filter((row) => row.boxes));
  };
  const table = el("table", {
    class: "methods",
    onpointerover: (event) => { const word = pointed(event); if (word) tell(word); else hideTip(); },
    onpointerleave: hideTip,
    onfocusout: hideTip,
    onclick: (event) => { const word = pointed(event); if (word) tell(word); },
    onkeydown: (event) => walkWords(event, tell),
  }, headRow(), el("tbody", {}, rows));
  return [table, legend(new Set(drawn.map((row) => row.method.signed)), scales), numbers(found)];
}

function pointAt(word, index, method, found) {
  hideTip();
  for (const line of document.querySelectorAll("#detail .words")) line.querySelectorAll(".w")[index].classList.add("marked");
  const piece = found[0].boxes[index];
  const which = piece.count > 1 ? `tokens ${piece.first + 1}\u2013${piece.first + piece.count}` : `token ${piece.first + 1}`;
  const rows = found.map((row) => ({ method: row.method, value: row.boxes[index].relevance, scale: row.reason ? Infinity : row.used }));
  showTip(word, `${piece.text} \u00b7 ${which}`, rows, method);
}

function walkWords(event, tell) {
  const line = event.target.closest(".words");
  const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
  if (!line || (!step && event.key !== "Escape")) return;
  event.preventDefault();
  event.stopPropagation();
  if (!step) return hideTip();
  const all = [...line.querySelectorAll(".w")];
  const now = all.findIndex((word) => word.classList.contains("marked"));
  const next = now < 0 ? (step > 0 ? 0 : all.length - 1) : Math.min(Math.max(now + step, 0), all.length - 1);
  tell(all[next]);
  const value = $("tip").querySelector(".now .value");
  $("live").textContent = `${all[next].textContent}: ${value ? value.textContent : ""}`;
}

const hasCurves = methods.some((method) => method.activation);

function headRow() {
  const heads = ["Sum", "Left out", ...(hasCurves ? ["AUAC", "AU-MSE"] : [])];
  return el("thead", {}, el("tr", {}, el("th", { scope: "col" }, "Method"), el("th", { scope: "col" }, "Relevance"),
    heads.map((name) => el("th", { scope: "col", class: "n", title: MEANING[name] }, name))));
}

const MEANING = {
  Sum: "Sum of all relevance",
  "Left out": "What the relevance leaves out of the explained output, or of its difference to the baseline's",
  AUAC: "Area under the activation curve of the predicted class: higher is better",
  "AU-MSE": "Area under the pruning curve: lower is better",
};

// The numbers of one explanation, with their names.
function figuresOf(method, got, example, cls) {
  const area = (curve) => (curve && cls === example.prediction ? short(curve.area[example.index], false) : "\u2013");
  return [["Sum", short(got.sum)], ["Left out", got.delta === null ? "\u2013" : short(got.delta)],
    ...(hasCurves ? [["AUAC", area(method.activation)], ["AU-MSE", area(method.pruning)]] : [])];
}

function methodRow(method, got, example, cls, line) {
  const cells = got && !got.error ? figuresOf(method, got, example, cls) : [];
  return el("tr", { "data-row": method.name },
    el("th", { scope: "row", title: method.about }, method.name),
    el("td", { class: "line", colspan: cells.length ? null : hasCurves ? 5 : 3 }, line),
    cells.map(([name, text]) => el("td", { class: "n", "data-name": name }, text)));
}

// The same as plain numbers, for those who do not see the colours and to copy.
function numbers(found) {
  const rows = found.filter((row) => row.boxes);
  if (!rows.length) return null;
  const fill = (details) => {
    if (details.querySelector("table")) return;
    details.append(el("div", { class: "scroll" }, el("table", { class: "numbers" },
      el("thead", {}, el("tr", {}, el("th", { scope: "col" }, state.pieces === "words" ? "Word" : "Token"),
        rows.map((row) => el("th", { scope: "col" }, row.method.name)))),
      el("tbody", {}, rows[0].boxes.map((piece, i) => el("tr", {}, el("th", { scope: "row", dir: "auto" }, piece.text),
        rows.map((row) => el("td", { class: "n" }, exact(row.boxes[i].relevance, row.method.signed)))))))));
  };
  return el("details", { ontoggle: (event) => fill(event.currentTarget) }, el("summary", {}, "All numbers as a table"));
}
