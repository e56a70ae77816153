// Images with their relevance on top, drawn from the numbers.

const pictures = new Map();
function picture(example) {
  if (!pictures.has(example)) {
    const image = new Image();
    image.src = example.image.src;
    pictures.set(example, image);
  }
  return pictures.get(example);
}

// Relevance as an image of one pixel for each cell.
function heat(values, [rows, columns], scale, signed) {
  const canvas = el("canvas", { width: columns, height: rows });
  const context = canvas.getContext("2d");
  const drawn = context.createImageData(columns, rows);
  values.forEach((value, i) => drawn.data.set([...shade(value, scale, signed, false), 255], i * 4));
  context.putImageData(drawn, 0, 0);
  return canvas;
}

// The image in pale grey, to lay over the colours; inverted if it would cover them, as a white
// digit on black does on a light page.
function pale(image) {
  const canvas = el("canvas", { width: image.naturalWidth, height: image.naturalHeight });
  const context = canvas.getContext("2d");
  context.drawImage(image, 0, 0);
  const drawn = context.getImageData(0, 0, canvas.width, canvas.height);
  const grey = new Float32Array(drawn.data.length / 4);
  grey.forEach((_, i) => {
    const [red, green, blue] = drawn.data.subarray(i * 4, i * 4 + 3);
    grey[i] = (0.2126 * red + 0.7152 * green + 0.0722 * blue) / 255;
  });
  const inverted = dark() ? mean(grey) > 0.6 : mean(grey) < 0.4;
  grey.forEach((value, i) => {
    const shown = inverted ? 1 - value : value;
    const level = Math.round(255 * (dark() ? 0.36 * shown : 0.64 + 0.36 * shown));
    drawn.data.set([level, level, level, 255], i * 4);
  });
  context.putImageData(drawn, 0, 0);
  return canvas;
}

const SIDE = 448;

function paint(canvas, example, layer) {
  const context = canvas.getContext("2d");
  const image = picture(example);
  if (!image.complete) {
    image.addEventListener("load", () => paint(canvas, example, layer), { once: true });
    return;
  }
  context.globalCompositeOperation = "copy";
  context.imageSmoothingEnabled = !layer && example.image.width > 96;
  context.drawImage(layer || image, 0, 0, canvas.width, canvas.height);
  if (!layer || state.image === "map") return;
  context.imageSmoothingEnabled = example.image.width > 96;
  context.globalCompositeOperation = dark() ? "screen" : "multiply";
  context.drawImage(pale(image), 0, 0, canvas.width, canvas.height);
}

function imageTiles(example, cls) {
  const found = shownMethods().map((method) => {
    if (!usable(method)) return { method, reason: method.error };
    const got = explanation(example, method, cls);
    if (got.error) return { method, reason: got.error };
    const zero = isRounding(got, method, example, cls);
    return { method, got, scale: mapScale(got.values), reason: zero ? "zero up to rounding" : "" };
  });
  const drawn = found.filter((tile) => !tile.reason);
  const scales = commonScales(drawn);
  const { width, height } = example.image;
  const size = { width: SIDE, height: Math.max(Math.round((SIDE * height) / width), 1) };
  const base = el("canvas", { ...size, role: "img", "aria-label": "The image" });
  paint(base, example, null);
  const tiles = [el("figure", { class: "tile" }, el("div", { class: "frame" }, base), el("figcaption", {}, el("b", {}, "Image")))];
  const canvases = [];
  const notes = [];
  for (const { method, got, scale, reason } of found) {
    const caption = [el("b", { title: method.about }, method.name)];
    if (reason && !usable(method)) {
      notes.push(el("p", { class: "note", "data-row": method.name }, el("b", {}, method.name), `: ${reason}`));
      continue;
    }
    if (reason) {
      tiles.push(el("figure", { class: "tile", "data-row": method.name }, el("div", { class: "frame empty" }, el("span", { class: "reason" }, reason)), el("figcaption", {}, caption)));
      continue;
    }
    const used = state.scale === "common" ? scales[method.signed] : scale;
    drawn.find((tile) => tile.method === method).used = used;
    const canvas = el("canvas", { ...size, tabindex: 0, role: "img", "data-method": method.name,
      "aria-label": `Relevance by ${method.name}; arrow keys move between its cells` });
    paint(canvas, example, heat(got.values, got.shape, used, method.signed));
    canvases.push(canvas);
    caption.push(...figuresOf(method, got, example, cls).filter(([, text]) => text !== "\u2013").map(([name, text]) => el("span", {}, `${name} ${text}`)));
    tiles.push(el("figure", { class: "tile", "data-row": method.name },
      el("div", { class: "frame" }, canvas, el("u", { class: "spot", hidden: true })), el("figcaption", {}, caption)));
  }
  const grid = el("div", { class: "tiles", onpointerleave: hideSpot, onfocusout: hideSpot }, tiles);
  // where the pointer is, as parts of the image, so that patches and pixels meet
  const tell = (canvas, x, y) => {
    const rows = drawn.map(({ method, got, used }) => {
      const [down, across] = got.shape;
      return { method, scale: used, value: got.values[Math.floor(y * down) * across + Math.floor(x * across)] };
    });
    const own = drawn.find((tile) => tile.method.name === canvas.dataset.method);
    for (const other of canvases) spot(other, drawn.find((tile) => tile.method.name === other.dataset.method).got.shape, x, y);
    showTip(canvas.nextSibling, where(own.got.shape, x, y, example), rows, own.method);
    canvas.dataset.x = x;
    canvas.dataset.y = y;
  };
  for (const canvas of canvases) {
    canvas.addEventListener("pointermove", (event) => {
      const area = canvas.getBoundingClientRect();
      const inside = (part) => Math.min(Math.max(part, 0), 0.99999);
      tell(canvas, inside((event.clientX - area.left) / area.width), inside((event.clientY - area.top) / area.height));
    });
    canvas.addEventListener("keydown", (event) => {
      const step = { ArrowRight: [1, 0], ArrowLeft: [-1, 0], ArrowDown: [0, 1], ArrowUp: [0, -1] }[event.key];
      if (!step) return;
      event.preventDefault();
      event.stopPropagation();
      const [down, across] = drawn.find((tile) => tile.method.name === canvas.dataset.method).got.shape;
      const at = (now, count, by) => (Math.min(Math.max(Math.floor(now * count) + by, 0), count - 1) + 0.5) / count;
      tell(canvas, at(Number(canvas.dataset.x ?? 0.5), across, step[0]), at(Number(canvas.dataset.y ?? 0.5), down, step[1]));
      $("live").textContent = $("tip").querySelector(".now .value").textContent;
    });
  }
  return [grid, legend(new Set(drawn.map((tile) => tile.method.signed)), scales), ...notes];
}

function where([down, across, factor], x, y, example) {
  const [row, column] = [Math.floor(y * down), Math.floor(x * across)];
  const kind = down === example.image.height ? "pixel" : factor > 1 ? `block of ${factor} \u00d7 ${factor} pixels` : "patch";
  return `${kind} in row ${row + 1}, column ${column + 1}`;
}

function spot(canvas, [down, across], x, y) {
  const mark = canvas.nextSibling;
  mark.hidden = false;
  Object.assign(mark.style, {
    left: `${(100 * Math.floor(x * across)) / across}%`, top: `${(100 * Math.floor(y * down)) / down}%`,
    width: `${100 / across}%`, height: `${100 / down}%`,
  });
}

function hideSpot() {
  hideTip();
  for (const mark of document.querySelectorAll(".spot")) mark.hidden = true;
}
