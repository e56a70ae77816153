// How relevance adds up and how faithful it is, over the examples that pass the filters.

// Each method has the colour that it has in all figures, lighter on dark pages.
const tone = (method) => `color-mix(in oklab, ${method.colour}, white var(--lift))`;

function ticks(low, high) {
  const rough = (high - low) / 5;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((n) => n * power).find((n) => n >= rough * 0.999);
  const found = [];
  for (let i = Math.ceil(low / step - 1e-9); i * step <= high + step * 1e-9; i++) found.push(i * step);
  return { found, digits: Math.max(0, -Math.floor(Math.log10(step) + 1e-9)) };
}

// A frame with axes; returns where numbers go.
function axes({ width, height, x, y, labels, name }) {
  const [left, right, top, bottom] = [46, 10, 10, 38];
  const at = {
    x: (value) => left + ((value - x[0]) / (x[1] - x[0])) * (width - left - right),
    y: (value) => height - bottom - ((value - y[0]) / (y[1] - y[0])) * (height - top - bottom),
  };
  const drawn = el("svg:svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": name, class: "chart" });
  const [across, up] = [ticks(...x), ticks(...y)];
  const written = (value, digits) => minus((Math.abs(value) < 1e-12 ? 0 : value).toFixed(digits));
  for (const value of across.found) {
    drawn.append(el("svg:line", { class: "grid", x1: at.x(value), x2: at.x(value), y1: top, y2: height - bottom }),
      el("svg:text", { x: at.x(value), y: height - bottom + 14, "text-anchor": "middle" }, written(value, across.digits)));
  }
  for (const value of up.found) {
    drawn.append(el("svg:line", { class: "grid", x1: left, x2: width - right, y1: at.y(value), y2: at.y(value) }),
      el("svg:text", { x: left - 6, y: at.y(value) + 3.5, "text-anchor": "end" }, written(value, up.digits)));
  }
  drawn.append(el("svg:text", { class: "axis", x: (left + width - right) / 2, y: height - 6, "text-anchor": "middle" }, labels[0]),
    el("svg:text", { class: "axis", transform: `translate(11 ${(top + height - bottom) / 2}) rotate(-90)`, "text-anchor": "middle" }, labels[1]));
  return { drawn, at };
}

function intro(title, text, more = null) {
  const what = isText ? "texts" : "images";
  const count = listed.length === examples.length ? `all ${examples.length} ${what}` : `${listed.length} of ${examples.length} ${what}: those that pass the filters`;
  return el("div", { class: "intro" }, el("h2", {}, title), el("p", {}, text), el("p", { class: "count" }, `Shown: ${count}.`), more);
}

function padded(low, high, part) {
  const space = (high - low || Math.abs(high) || 1) * part;
  return [low - space, high + space];
}

// Sum of relevance, with and without what constants took, against the explained output.
function renderConservation() {
  const panel = $("panel-conservation");
  const text = "Each point is an example: its explained output, and the sum of its relevance by the method. Of gradient \u00d7 input and LRP that is a pale ring, and the full point adds what biases and other constants of the model took, which audit.explainability names. On the line, everything is accounted for. All methods have the same axes. Integrated gradients and GradientShap add up to the difference to the baseline's output instead.";
  const whose = data.classes.length === 1 ? "the only output" : /^\d+$/.test(state.class)
    ? `${data.classes[state.class]}, or the predicted one where that was not explained` : `the ${state.class} one`;
  const points = listed.map((example) => ({ example, cls: classOf(example) })).map((p) => ({ ...p, x: p.example.output[p.cls] }));
  const range = points.length ? padded(Math.min(0, ...points.map((p) => p.x)), Math.max(0, ...points.map((p) => p.x)), 0.08) : [-1, 1];
  const drawn = shownMethods().filter((method) => method.conserves);
  const tiles = drawn.map((method) => scatter(method, points, range, heights(drawn, points, range)));
  const others = shownMethods().filter((method) => !method.conserves && usable(method)).map((method) => method.name);
  panel.replaceChildren(
    intro("Does the relevance add up?", text, el("p", { class: "legend" }, `Explained class: ${whose}.`,
      hasLabels ? [el("i", { class: "dot" }), "correct", el("i", { class: "dot wrong" }), "wrong"] : null)),
    tiles.length && points.length ? el("div", { class: "charts" }, tiles) : el("p", { class: "note" }, points.length ? "None of the methods shown is meant to add up." : "No example passes the filters."),
    others.length ? el("p", { class: "note" }, `Not drawn, for their relevance is not meant to sum to anything: ${others.join(", ")}.`) : "");
}

// One vertical range for all methods: nearly all points, but not at the price of seeing nothing.
function heights(drawn, points, [low, high]) {
  const sums = Float64Array.from(drawn.flatMap((method) => points
    .map((point) => explanation(point.example, method, point.cls)).filter((got) => !got.error).flatMap((got) => [got.sum, got.sum + (got.absorbed || 0)]))).sort();
  const most = 3 * (high - low);
  return padded(Math.max(Math.min(quantile(sums, 0.02), low), low - most), Math.min(Math.max(quantile(sums, 0.98), high), high + most), 0.06);
}

function scatter(method, points, x, y) {
  const found = points.map((point) => ({ ...point, got: explanation(point.example, method, point.cls) }))
    .filter((point) => !point.got.error).map((point) => ({ ...point, y: point.got.sum + (point.got.absorbed || 0) })).sort((a, b) => a.x - b.x);
  const books = found.some((point) => point.got.absorbed !== null);
  const { drawn, at } = axes({ width: 300, height: 270, x, y, labels: ["explained output", "sum of relevance"], name: `${method.name}: sum of relevance against the explained output of ${found.length} examples` });
  drawn.append(el("svg:line", { class: "ideal", x1: at.x(x[0]), y1: at.y(x[0]), x2: at.x(x[1]), y2: at.y(x[1]) }));
  let outside = 0;
  for (const { example, got, x: across } of books ? found : []) {
    if (got.sum >= y[0] && got.sum <= y[1]) drawn.append(el("svg:circle", { cx: at.x(across), cy: at.y(got.sum), r: 3.2, class: `ring ${example.correct === false ? "wrong" : "right"}` }));
  }
  for (const point of found) {
    point.out = point.y < y[0] || point.y > y[1];
    outside += point.out;
    const up = point.y > y[1] ? -1 : 1;
    const [cx, cy] = [at.x(point.x), at.y(Math.min(Math.max(point.y, y[0]), y[1])) - (point.out ? 6 * up : 0)];
    const kind = point.example.correct === false ? "wrong" : "right";
    const shape = point.out
      ? el("svg:path", { d: `M${cx - 4} ${cy - 3 * up}h8l-4 ${6 * up}z`, class: `point ${kind}` })
      : el("svg:circle", { cx, cy, r: 3.2, class: `point ${kind}` });
    Object.assign(point, { cx, cy, shape });
    drawn.append(shape);
  }
  pointers(drawn, found, method);
  const missing = (taken) => percent(median(found.filter((p) => p.x !== 0).map((p) => Math.abs(p.got.delta - taken(p.got)) / Math.abs(p.x))));
  const sums = found.map((p) => p.got.sum);
  const r = largest(sums) <= data.rounding * largest(found.map((p) => p.x)) ? NaN : correlation(found.map((p) => p.x), sums);
  const facts = [["left out, median", missing(() => 0)], ...(books ? [["with constants", missing((got) => got.absorbed)]] : []), ["correlation", short(r, false)], ...(outside ? [["outside the frame", outside]] : [])];
  return el("figure", { class: "chart-tile", "data-row": method.name }, el("figcaption", {}, el("b", {}, method.name), el("span", {}, method.about)), drawn,
    el("dl", {}, facts.map(([name, value]) => [el("dt", {}, name), el("dd", {}, value)])));
}

// The nearest point tells its numbers; a click or Enter opens its example.
function pointers(drawn, found, method) {
  let chosen = -1;
  const tell = (i) => {
    found[chosen]?.shape.classList.remove("on");
    chosen = i;
    if (i < 0) return hideTip();
    const { example, cls, got, shape } = found[i];
    shape.classList.add("on");
    const tip = $("tip");
    const facts = [["output", exact(example.output[cls], true)], ["sum", exact(got.sum, true)], ["left out", exact(got.delta, true)]];
    if (got.absorbed !== null) facts.push(["by constants", exact(got.absorbed, true)], ["unaccounted", exact(got.delta - got.absorbed, true)]);
    const title = isText ? example.text || example.words.map(([text]) => text).join(" ") : `Image ${example.index + 1}`;
    tip.replaceChildren(el("strong", { dir: "auto", class: "clamp" }, `${example.index + 1}. ${title}`),
      el("table", {}, facts.map(([name, value]) => el("tr", { class: name === "sum" ? "now" : null }, el("th", { scope: "row" }, name), el("td", { class: "value" }, value)))));
    place(tip, shape);
  };
  drawn.setAttribute("tabindex", 0);
  drawn.setAttribute("data-method", method.name);
  drawn.addEventListener("pointermove", (event) => {
    const area = drawn.getBoundingClientRect();
    const [px, py] = [((event.clientX - area.left) * 300) / area.width, ((event.clientY - area.top) * 270) / area.height];
    let [best, nearest] = [-1, 16];
    found.forEach((p, i) => {
      const far = Math.hypot(p.cx - px, p.cy - py);
      if (far < nearest) [best, nearest] = [i, far];
    });
    if (best !== chosen) tell(best);
    drawn.style.cursor = best < 0 ? "" : "pointer";
  });
  drawn.addEventListener("pointerleave", () => tell(-1));
  drawn.addEventListener("blur", () => tell(-1));
  const open = () => chosen >= 0 && change({ view: "examples", ex: found[chosen].example.index + 1 });
  drawn.addEventListener("click", open);
  drawn.addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (step) {
      event.preventDefault();
      tell(Math.min(Math.max(chosen + step, 0), found.length - 1));
    } else if (event.key === "Enter") open();
  });
}

// Curves of the mean, and a table of the areas under them.
function renderFaithfulness() {
  const panel = $("panel-faithfulness");
  const what = isText ? "tokens" : "patches";
  const text = `Does the model react to what a method calls relevant? ${data.masking ? `Hidden: ${data.masking}. ` : ""}Always for the predicted class of each example.`;
  const found = shownMethods().filter((method) => method.activation).map((method) => {
    const kept = listed.map((example) => example.index).filter((i) => Number.isFinite(method.activation.area[i]) && Number.isFinite(method.pruning.area[i]));
    return { method, kept, auac: kept.map((i) => method.activation.area[i]), aumse: kept.map((i) => method.pruning.area[i]) };
  }).filter((row) => row.kept.length);
  const missing = shownMethods().filter((method) => !method.activation && method.unmeasured);
  const reasons = [...new Set(missing.map((method) => method.unmeasured))];
  if (!found.length) {
    const why = !listed.length ? "No example passes the filters." : reasons.length ? `Not measured: ${reasons.join("; ")}.` : "Faithfulness was not measured for this report.";
    panel.replaceChildren(intro("Is the relevance faithful?", text), el("p", { class: "note" }, why));
    return;
  }
  const first = `share of ${what} inserted`;
  const second = `share of ${what} removed`;
  panel.replaceChildren(
    intro("Is the relevance faithful?", text),
    el("div", { class: "charts two" },
      curves("Activation", `${what} inserted, most relevant first: the sooner the class is back, the better`, found, "activation", [first, "probability of the class"], true),
      curves("Pruning", `${what} removed, least relevant first: the longer the logits stay, the better`, found, "pruning", [second, "squared change of the logits"], false)),
    areas(found),
    missing.length ? el("p", { class: "note" }, missing.map((method) => `${method.name}: ${method.unmeasured}`).join(". ")) : "");
}

function curves(title, text, found, key, labels, bounded) {
  const lines = found.map(({ method, kept }) => {
    const { fractions, values } = method[key];
    const steps = fractions.length;
    return { method, fractions, means: fractions.map((_, s) => mean(kept.map((i) => values[i * steps + s]))), ends: fractions.map((_, s) => margin(kept.map((i) => values[i * steps + s])) || 0) };
  });
  const top = Math.max(...lines.flatMap((line) => line.means.map((value, s) => value + line.ends[s])));
  const { drawn, at } = axes({ width: 520, height: 330, x: [0, 1], y: bounded ? [0, 1] : [0, top * 1.02 || 1], labels, name: `${title} curves` });
  for (const { method, fractions, means, ends } of lines) {
    const path = (of) => fractions.map((x, s) => `${at.x(x).toFixed(1)} ${at.y(of(s)).toFixed(1)}`);
    const clip = (value) => Math.min(Math.max(value, 0), bounded ? 1 : Infinity);
    const band = [...path((s) => clip(means[s] + ends[s])), ...path((s) => clip(means[s] - ends[s])).reverse()];
    const group = el("svg:g", { class: "curve", "data-method": method.name, style: { color: tone(method) } },
      el("svg:path", { class: "band", d: `M${band.join("L")}z` }),
      el("svg:path", { class: "hit", d: `M${path((s) => means[s]).join("L")}` }),
      el("svg:path", { class: "mean", d: `M${path((s) => means[s]).join("L")}`, "stroke-dasharray": method.dashes }));
    drawn.append(group);
  }
  drawn.addEventListener("pointermove", (event) => {
    const area = drawn.getBoundingClientRect();
    const [px, py] = [((event.clientX - area.left) * 520) / area.width, ((event.clientY - area.top) * 330) / area.height];
    const step = lines[0].fractions.reduce((best, x, s, all) => (Math.abs(at.x(x) - px) < Math.abs(at.x(all[best]) - px) ? s : best), 0);
    const near = lines.reduce((a, b) => (Math.abs(at.y(b.means[step]) - py) < Math.abs(at.y(a.means[step]) - py) ? b : a));
    emphasise(near.method.name);
    const tip = $("tip");
    const sorted = [...lines].sort((a, b) => (b.means[step] - a.means[step]) * (bounded ? 1 : -1));
    tip.replaceChildren(el("strong", {}, `${percent(lines[0].fractions[step], 0)} ${bounded ? "inserted" : "removed"}`),
      el("table", {}, sorted.map((line) => el("tr", { class: line === near ? "now" : null },
        el("th", { scope: "row" }, el("i", { class: "key", style: { background: tone(line.method) } }), line.method.name), el("td", { class: "value" }, exact(line.means[step], false))))));
    place(tip, { getBoundingClientRect: () => ({ left: event.clientX, top: event.clientY - 6, bottom: event.clientY + 6, width: 0 }) });
  });
  drawn.addEventListener("pointerleave", () => { emphasise(null); hideTip(); });
  return el("figure", { class: "chart-tile" }, el("figcaption", {}, el("b", {}, title), el("span", {}, text)), drawn);
}

function emphasise(name) {
  for (const group of document.querySelectorAll("#panel-faithfulness [data-method]")) {
    group.classList.toggle("faint", name !== null && group.dataset.method !== name);
    group.classList.toggle("strong", group.dataset.method === name);
  }
}

function areas(found) {
  const rows = found.map((row) => ({ ...row, up: mean(row.auac), down: mean(row.aumse) })).sort((a, b) => b.up - a.up);
  const most = Math.max(...rows.map((row) => row.down));
  const best = { up: Math.max(...rows.map((row) => row.up)), down: Math.min(...rows.map((row) => row.down)) };
  const cell = (name, value, end, width, isBest) => el("td", { class: isBest ? "n best" : "n", "data-name": name },
    el("span", { class: "bar-cell" }, el("i", { style: { width: `${100 * width}%` } })), el("span", {}, short(value, false)), el("small", {}, Number.isFinite(end) ? ` \u00b1 ${short(end, false)}` : ""));
  return el("div", { class: "scroll" }, el("table", { class: "areas" },
    el("caption", {}, "Area under the curves: mean over the examples \u00b1 1.96 standard errors. Best first by AUAC; bold is best."),
    el("thead", {}, el("tr", {}, el("th", { scope: "col" }, "Method"), el("th", { scope: "col", class: "n" }, "AUAC \u2191"), el("th", { scope: "col", class: "n" }, "AU-MSE \u2193"), el("th", { scope: "col", class: "n" }, "Examples"))),
    el("tbody", {}, rows.map((row) => el("tr", { "data-method": row.method.name, onpointerenter: () => emphasise(row.method.name), onpointerleave: () => emphasise(null) },
      el("th", { scope: "row" }, el("i", { class: "key", style: { background: tone(row.method) } }), row.method.name),
      cell("AUAC", row.up, margin(row.auac), row.up, row.up === best.up),
      cell("AU-MSE", row.down, margin(row.aumse), most ? row.down / most : 0, row.down === best.down),
      el("td", { class: "n" }, row.kept.length))))));
}
