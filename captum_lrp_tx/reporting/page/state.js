// What is shown: kept in the address after the #, so that a view can be shared or bookmarked.

const DEFAULTS = {
  view: "examples", ex: 1, class: "predicted", hide: "", lead: "", pieces: "words", scale: "own",
  show: "all", predicted: "", true: "", from: 0, to: 100, q: "", sort: "given", theme: "auto", image: "overlay",
};
const ALLOWED = {
  view: ["examples", "conservation", "faithfulness", "about"],
  pieces: ["words", "tokens"],
  scale: ["own", "common"],
  show: ["all", "correct", "wrong"],
  theme: ["auto", "light", "dark"],
  image: ["overlay", "map"],
};
const state = { ...DEFAULTS };

function readAddress() {
  const given = new URLSearchParams(location.hash.slice(1));
  for (const [key, usual] of Object.entries(DEFAULTS)) {
    let value = given.has(key) ? given.get(key) : usual;
    if (typeof usual === "number") value = Number.isFinite(Number(value)) ? Number(value) : usual;
    if (ALLOWED[key] && !ALLOWED[key].includes(value)) value = usual;
    state[key] = value;
  }
  state.ex = Math.min(Math.max(Math.round(state.ex), 1), examples.length);
}

function writeAddress() {
  const kept = Object.entries(DEFAULTS).filter(([key, usual]) => String(state[key]) !== String(usual));
  const text = new URLSearchParams(kept.map(([key]) => [key, state[key]])).toString();
  const wanted = text ? `#${text}` : "";
  if (location.hash === wanted) return;
  try {
    history.replaceState(null, "", wanted || location.pathname + location.search);
  } catch {
    location.replace(wanted || "#"); // some browsers refuse it for files
  }
}

const current = () => examples[state.ex - 1];
const hidden = () => new Set(state.hide.split("~").filter(Boolean));
const shownMethods = () => methods.filter((method) => !hidden().has(method.name));
const usable = (method) => !method.error;

// The method that colours the list and that sorting speaks of.
function lead() {
  const shown = shownMethods().filter(usable);
  return shown.find((method) => method.name === state.lead) || shown[0] || methods.find(usable);
}

// The class that is explained of an example: the wanted one, or its prediction if that was left out.
function classOf(example) {
  if (state.class === "true" && example.label !== null && example.classes.includes(example.label)) return example.label;
  const fixed = /^\d+$/.test(state.class) ? Number(state.class) : -1;
  return example.classes.includes(fixed) ? fixed : example.prediction;
}

const ORDERS = {
  given: ["as given", null],
  sure: ["most confident first", (example) => -confidence(example)],
  unsure: ["least confident first", confidence],
  long: ["longest first", (example) => -example.tokens.length],
  leftout: ["most left out by the method", (example) => -leftOutShare(example, lead())],
  unfaithful: ["lowest AUAC of the method", (example) => lead().activation.area[example.index]],
};

function leftOutShare(example, method) {
  const cls = classOf(example);
  const found = explanation(example, method, cls);
  return found.delta === null || found.error ? NaN : Math.abs(found.delta) / Math.abs(example.output[cls]);
}

function orders() {
  const of = lead();
  return Object.entries(ORDERS).filter(([key]) =>
    (hasProbabilities || (key !== "sure" && key !== "unsure")) && (isText || key !== "long") &&
    (key !== "leftout" || of.conserves) && (key !== "unfaithful" || of.activation));
}

// The examples that pass the filters, in order; others are kept from the list and the figures.
function filtered() {
  const wanted = state.q.trim().toLocaleLowerCase();
  const found = examples.filter((example) => {
    if (state.show === "correct" && example.correct !== true) return false;
    if (state.show === "wrong" && example.correct !== false) return false;
    if (state.predicted !== "" && example.prediction !== Number(state.predicted)) return false;
    if (state.true !== "" && example.label !== Number(state.true)) return false;
    const sure = confidence(example) * 100;
    if ((state.from > 0 && !(sure >= state.from)) || (state.to < 100 && !(sure <= state.to))) return false;
    return !wanted || haystack(example).includes(wanted);
  });
  const entry = orders().find(([key]) => key === state.sort);
  const key = entry && entry[1][1];
  if (!key) return found;
  const keys = new Map(found.map((example) => [example, key(example)]));
  const last = (value) => (Number.isNaN(value) ? Infinity : value); // what is not known comes last
  return found.sort((a, b) => last(keys.get(a)) - last(keys.get(b)) || a.index - b.index);
}

function haystack(example) {
  example.haystack ??= (example.text || (isText ? example.words.map(([text]) => text).join(" ") : `${example.index + 1}`)).toLocaleLowerCase();
  return example.haystack;
}
