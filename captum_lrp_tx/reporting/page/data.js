// What the page was given, and what is computed from it.

const data = JSON.parse(document.getElementById("data").textContent);
const isText = data.kind === "text";

function floats(text) {
  const bytes = Uint8Array.from(atob(text), (char) => char.charCodeAt(0));
  return new Float32Array(bytes.buffer);
}

const examples = data.examples.map((given, index) => ({
  ...given,
  index,
  output: floats(given.output),
  probabilities: given.probabilities && floats(given.probabilities),
  correct: given.label === null ? null : given.label === given.prediction,
}));
const methods = data.methods.map((given, index) => ({
  ...given,
  index,
  activation: curveOf(given.activation),
  pruning: curveOf(given.pruning),
}));
const hasLabels = examples.some((example) => example.label !== null);
const hasProbabilities = examples.some((example) => example.probabilities);

function curveOf(given) {
  return given && { fractions: given.fractions, values: floats(given.values), area: floats(given.area) };
}

function confidence(example) {
  return example.probabilities ? example.probabilities[example.prediction] : NaN;
}

// Relevance, its sum and what it leaves out; {error} if the method did not apply.
const decoded = new Map();
function explanation(example, method, cls) {
  const given = data.values[example.index][method.index];
  if (given.error !== undefined) return { error: given.error };
  const key = example.index * methods.length + method.index;
  if (!decoded.has(key)) {
    if (decoded.size > 4000) decoded.clear();
    decoded.set(key, floats(given.r));
  }
  const all = decoded.get(key);
  const place = method.usesTarget ? example.classes.indexOf(cls) : 0;
  const size = all.length / given.sum.length;
  return {
    values: all.subarray(place * size, (place + 1) * size),
    sum: given.sum[place],
    delta: given.delta ? given.delta[place] : null,
    absorbed: given.absorbed ? given.absorbed[place] : null,
    shape: given.shape,
  };
}

// Nothing but rounding errors, which colours would make look like more.
function isRounding(found, method, example, cls) {
  if (!method.conserves) return false;
  return largest(found.values) <= data.rounding * Math.abs(example.output[cls]);
}

function largest(values) {
  let most = 0;
  for (const value of values) most = Math.max(most, Math.abs(value));
  return most;
}

// The boxes of a text with their relevance: words, or single tokens.
function pieces(example, values, words) {
  let start = 0;
  return (words ? example.words : example.tokens).map(([text, flags, count]) => {
    let relevance = 0;
    for (let i = start; i < start + count; i++) relevance += values ? values[i] : 0;
    start += count;
    return { text, special: Boolean(flags & 1), space: Boolean(flags & 2), count, first: start - count, relevance };
  });
}

// Relevance at which the colours saturate; special tokens often collect more than any word.
function textScale(boxes) {
  const of = (list) => largest(list.map((box) => box.relevance));
  return of(boxes.filter((box) => !box.special)) || of(boxes) || 1;
}

// Single pixels that stand out would leave the rest pale, hence no maximum.
function mapScale(values) {
  const sizes = Float32Array.from(values, Math.abs).sort();
  return quantile(sizes, 0.995) || sizes[sizes.length - 1] || 1;
}

function quantile(sorted, part) {
  if (!sorted.length) return NaN;
  const at = (sorted.length - 1) * part;
  const low = Math.floor(at);
  const high = Math.min(low + 1, sorted.length - 1);
  return sorted[low] + (sorted[high] - sorted[low]) * (at - low);
}

function median(values) {
  return quantile(Float64Array.from(values).sort(), 0.5);
}

function mean(values) {
  return values.reduce((total, value) => total + value, 0) / values.length;
}

// Half the width of the 95 % interval of a mean.
function margin(values) {
  if (values.length < 2) return NaN;
  const centre = mean(values);
  const squares = values.reduce((total, value) => total + (value - centre) ** 2, 0);
  return (1.96 * Math.sqrt(squares / (values.length - 1))) / Math.sqrt(values.length);
}

function correlation(xs, ys) {
  const [a, b] = [mean(xs), mean(ys)];
  let [xy, xx, yy] = [0, 0, 0];
  xs.forEach((x, i) => {
    xy += (x - a) * (ys[i] - b);
    xx += (x - a) ** 2;
    yy += (ys[i] - b) ** 2;
  });
  return xx > 0 && yy > 0 ? xy / Math.sqrt(xx * yy) : NaN;
}

// Numbers as text: all digits that 32-bit floats have, or as many as a table has room for.

const minus = (text) => text.replace(/-/g, "\u2212");

function exact(value, signed) {
  const size = Math.abs(value);
  const text = size !== 0 && (size < 1e-4 || size >= 1e7) ? value.toExponential(5) : value.toPrecision(6);
  return minus(signed && value > 0 ? `+${text}` : text);
}

function short(value, signed = true) {
  if (!Number.isFinite(value)) return "\u2013";
  const size = Math.abs(value);
  const text = size !== 0 && (size < 5e-4 || size >= 1e5) ? value.toExponential(1) : value.toFixed(size >= 100 ? 1 : 3);
  return minus(signed && value > 0 ? `+${text}` : text);
}

function percent(part, digits = 1) {
  if (!Number.isFinite(part)) return "\u2013";
  // what is not certain is not shown as if it were
  const shown = part < 1 && part * 100 >= 100 - 0.5 * 10 ** -digits ? 100 - 10 ** -digits : part * 100;
  return `${shown.toFixed(digits)} %`;
}
