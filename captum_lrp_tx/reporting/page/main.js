// Putting it together: views, methods, keys, theme, print.

const VIEWS = [["examples", "Examples"], ["conservation", "Conservation"], ["faithfulness", "Faithfulness"], ["about", "About"]];

function change(wanted) {
  Object.assign(state, wanted);
  if (FILTERS.some((key) => key in wanted)) chooseListed();
  render();
}

// An example that the filters leave out is not the chosen one.
function chooseListed() {
  const found = filtered();
  if (found.length && !found.includes(current())) state.ex = found[0].index + 1;
}

function render() {
  readable();
  hideTip();
  listed = filtered();
  renderTop();
  renderFilters();
  for (const [name] of VIEWS) $(`panel-${name}`).hidden = state.view !== name && !printing;
  if (state.view === "examples" || printing) {
    renderList(true);
    renderDetail();
  }
  if (state.view === "conservation" || printing) renderConservation();
  if (state.view === "faithfulness" || printing) renderFaithfulness();
  if (state.view === "about" || printing) renderAbout();
  writeAddress();
}

// What the address asked for may be no longer there.
function readable() {
  document.documentElement.dataset.theme = dark() ? "dark" : "light";
  const off = hidden();
  if (methods.filter(usable).every((method) => off.has(method.name))) state.hide = "";
}

function renderTop() {
  for (const tab of document.querySelectorAll("[role=tab]")) {
    const chosen = tab.dataset.view === state.view;
    tab.setAttribute("aria-selected", chosen);
    tab.tabIndex = chosen ? 0 : -1;
  }
  $("theme").textContent = { auto: "\u25d0 Auto", light: "\u2600 Light", dark: "\u263e Dark" }[state.theme];
  $("theme").setAttribute("aria-label", `Colours: ${state.theme}; change`);
  const off = hidden();
  for (const chip of document.querySelectorAll("#methods button")) chip.setAttribute("aria-pressed", !off.has(chip.dataset.method) && !chip.disabled);
}

function buildTop() {
  const accuracy = examples.filter((e) => e.correct).length / examples.filter((e) => e.correct !== null).length;
  const wrong = examples.filter((e) => e.correct === false).length;
  const facts = [
    ...data.facts.map(([name, text]) => `${name} ${text}`),
    `${examples.length} ${isText ? "texts" : "images"}`,
    data.classes.length > 1 ? `${data.classes.length} classes` : null,
    hasLabels ? `accuracy ${percent(accuracy)} (${wrong} wrong)` : null,
  ];
  $("facts").replaceChildren(...facts.filter(Boolean).map((fact) => el("span", {}, fact)));
  $("tabs").replaceChildren(...VIEWS.map(([view, name]) => el("button", { type: "button", role: "tab", id: `tab-${view}`, "data-view": view, "aria-controls": `panel-${view}`, onclick: () => change({ view }) }, name)));
  $("tabs").addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (!step) return;
    event.preventDefault();
    event.stopPropagation();
    const next = VIEWS[(VIEWS.findIndex(([view]) => view === state.view) + step + VIEWS.length) % VIEWS.length][0];
    change({ view: next });
    $(`tab-${next}`).focus();
  });
  $("theme").addEventListener("click", () => change({ theme: ALLOWED.theme[(ALLOWED.theme.indexOf(state.theme) + 1) % 3] }));
  $("methods").replaceChildren(el("span", { class: "label" }, "Methods"), ...methods.map((method) => el("button", {
    type: "button", class: "chip", "data-method": method.name, disabled: !usable(method), title: method.error || method.about,
    onclick: () => toggle(method),
  }, el("i", { class: "key", style: { background: tone(method) } }), method.name, usable(method) ? null : el("small", {}, " does not apply"))));
}

function toggle(method) {
  const off = hidden();
  if (!off.delete(method.name)) off.add(method.name);
  change({ hide: [...off].join("~") });
}

function renderAbout() {
  const list = (pairs) => el("dl", { class: "about" }, pairs.map(([name, text]) => [el("dt", {}, name), el("dd", {}, text)]));
  const keys = [
    ["\u2191 \u2193  or  j k", "next and previous example"], ["c", "next class to explain"],
    ["w", isText ? "words or tokens" : "overlay or map"], ["s", "own or common scale"], ["/", "search"],
    ["\u2190 \u2192 \u2191 \u2193 in a heat map", "from word to word, or cell to cell, with its numbers"],
  ];
  const stops = "Red is relevance for the explained class, blue is relevance against it, on a scale that is symmetric around zero. Methods without a sign are purple: they do not say what speaks for and what against the class. Paler boxes in dashes are special tokens; they do not count for the scale.";
  $("panel-about").replaceChildren(
    el("div", { class: "intro" }, el("h2", {}, "How to read this page"), el("p", {}, stops),
      el("p", {}, "On its own scale, the largest relevance of each method has the full colour; on the common scale, equal colours are equal numbers. Sum is the sum of all relevance of the example. Left out is what it lacks to the explained output: what biases and other constants have absorbed, or what the method does not conserve."),
      el("p", {}, "An explanation says what the model uses, not what is true, and it depends on the method. The view is part of the address of this page, so a link or a bookmark leads back to it.")),
    el("h2", {}, "Methods"),
    list(methods.map((method) => [method.name, [method.about, method.error ? el("em", {}, `${method.about ? ". " : ""}Does not apply: ${method.error}`) : ""]])),
    el("h2", {}, "Data"),
    list([...data.facts, ["examples", examples.length], ["classes", data.classes.length > 30 ? data.classes.length : data.classes.join(", ")],
      ...(data.baseline ? [["baseline of integrated gradients", data.baseline]] : []),
      ...(data.masking ? [["hidden for the curves", data.masking]] : []), ["made by", `captum_lrp_tx ${data.version}`]]),
    el("h2", {}, "Keys"), list(keys));
}

document.addEventListener("keydown", (event) => {
  if (event.key === "Escape") hideTip();
  if (event.target.matches("input, select, textarea") || event.ctrlKey || event.metaKey || event.altKey) return;
  const next = (key, values) => change({ [key]: values[(values.indexOf(state[key]) + 1) % values.length] });
  const page = Math.max(Math.floor($("list").clientHeight / ROW) - 1, 1);
  const inList = event.target.id === "list";
  const steps = { j: 1, k: -1, ArrowDown: 1, ArrowUp: -1, ArrowRight: 1, ArrowLeft: -1,
    ...(inList ? { PageDown: page, PageUp: -page, Home: -Infinity, End: Infinity } : {}) };
  if (event.key === "/") {
    change({ view: "examples" });
    $("search").focus();
  } else if (state.view !== "examples") return;
  else if (event.key in steps) move(steps[event.key]);
  else if (event.key === "c" && data.classes.length > 1) {
    const order = [...current().classes].sort((a, b) => a - b);
    change({ class: String(order[(order.indexOf(classOf(current())) + 1) % order.length]) });
  } else if (event.key === "w") isText ? next("pieces", ALLOWED.pieces) : next("image", ALLOWED.image);
  else if (event.key === "s") next("scale", ALLOWED.scale);
  else return;
  event.preventDefault();
});

let waiting = false;
$("list").addEventListener("scroll", () => {
  if (waiting) return;
  waiting = true;
  requestAnimationFrame(() => { waiting = false; renderList(); });
});
addEventListener("resize", () => { if (state.view === "examples") renderList(); });
document.addEventListener("scroll", followTip, { passive: true, capture: true });
addEventListener("hashchange", () => { readAddress(); render(); });
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", render);
addEventListener("beforeprint", () => { printing = true; render(); });
addEventListener("afterprint", () => { printing = false; render(); });

readAddress();
if (!/[#&]ex=/.test(location.hash)) chooseListed();
buildTop();
buildFilters();
render();
