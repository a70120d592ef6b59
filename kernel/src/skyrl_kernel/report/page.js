"use strict";
// What the rest builds on: making elements, numbers as text, the data, and the
// address (`#view?key=value`) that says what is shown. Text from a run reaches
// the document through text nodes only, never as HTML.

/** An element: properties, listeners (`onclick`), attributes, then children. */
function h(tag, props = {}, ...children) {
  return fill(document.createElement(tag), props, children);
}

/** The same for SVG. */
function svg(tag, props = {}, ...children) {
  return fill(document.createElementNS("http://www.w3.org/2000/svg", tag), props, children);
}

function fill(element, props, children) {
  for (const [key, value] of Object.entries(props ?? {})) {
    if (value === undefined || value === null || value === false) continue;
    if (key.startsWith("on")) element.addEventListener(key.slice(2), value);
    else if (key === "style")
      for (const [name, one] of Object.entries(value)) element.style.setProperty(name, one);
    else if (key === "value" || key === "checked") element[key] = value;
    else element.setAttribute(key, value === true ? "" : value);
  }
  element.append(
    ...children
      .flat(Infinity)
      .filter((child) => child !== null && child !== undefined && child !== false),
  );
  return element;
}

/** Three or four significant digits. */
function show(value) {
  if (value === null || value === undefined) return "–";
  if (typeof value !== "number") return String(value);
  if (Number.isInteger(value)) return value.toLocaleString("en");
  const size = Math.abs(value);
  if (size < 5e-4 || size >= 1e6)
    return value.toExponential(1).replace("-", "−").replace("e−", "e-");
  return value.toFixed(size < 1 ? 3 : size < 10 ? 2 : size < 1000 ? 1 : 0).replace("-", "−");
}

function seconds(value) {
  if (typeof value !== "number") return "–";
  if (value !== 0 && value < 0.1) return `${show(value * 1000)} ms`;
  return value >= 3600
    ? `${show(value / 3600)} h`
    : value >= 120
      ? `${show(value / 60)} min`
      : `${show(value)} s`;
}

function plural(count, one, many = `${one}s`) {
  return `${show(count)} ${count === 1 ? one : many}`;
}

function mean(values) {
  return values.length ? values.reduce((a, b) => a + b, 0) / values.length : null;
}

// --- data ------------------------------------------------------------------------------

/** Unpacks the data block: base64 of deflated JSON. */
async function unpack() {
  const packed = Uint8Array.from(atob(document.getElementById("data").textContent), (c) =>
    c.charCodeAt(0),
  );
  const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("deflate"));
  return JSON.parse(await new Response(stream).text());
}

const report = { runs: [], all: [] };

/** Gives every trajectory its run, group, number and text. */
function load(data) {
  report.runs = data.runs;
  data.runs.forEach((run, index) => {
    run.color = `var(--run${index % 6})`;
    run.texts = new Map(
      run.vocabulary?.ids.map((id, place) => [id, run.vocabulary.texts[place]]) ?? [],
    );
    run.ends = new Set(run.vocabulary?.end ?? []);
    run.trajectories.forEach((one) => {
      one.run = run;
      Object.assign(
        one,
        Object.fromEntries(Object.entries(run.groups[one.in]).filter(([key]) => key !== "prompt")),
      );
      one.id = `${run.name} ${one.step} ${one.group} ${one.sample}`;
      for (const block of one.blocks) block.tokens ??= run.groups[one.in].prompt;
    });
  });
  report.all = data.runs.flatMap((run) => run.trajectories);
}

/** What each token of a block says. */
function pieces(run, block) {
  const joined = new Map(block.joined ?? []);
  return block.tokens.map((id, place) => joined.get(place) ?? run.texts.get(id) ?? "");
}

/** A block as text: from its tokens, or what the env was given. */
function textOf(run, block) {
  return run.vocabulary ? pieces(run, block).join("") : (block.action ?? "");
}

/** Everything in a trajectory that can be searched, in lower case. */
function searchable(one) {
  one.search ??= [
    one.uid,
    one.env,
    one.source,
    one.stop,
    ...one.messages.map((message) => message.content),
    ...one.blocks
      .filter((block) => block.kind !== "prompt")
      .flatMap((block) => [textOf(one.run, block), block.action]),
    ...one.turns.map((turn) => turn.metadata),
  ]
    .join("\n")
    .toLowerCase();
  return one.search;
}

/** The metrics of a run as [x, value] pairs; what a step lacks is left out. */
function points(run, name, axis = "step") {
  const column = run.metrics.columns[name] ?? [];
  const xs = axis === "time" ? clock(run) : run.metrics.steps;
  return column.flatMap((value, place) =>
    value === null ? [] : [[xs[place], value, run.metrics.steps[place]]],
  );
}

/** Hours of training at each line: seconds of steps and evaluations, added up. */
function clock(run) {
  const { steps, columns } = run.metrics;
  let total = 0;
  let before = 0;
  return steps.map((step, place) => {
    const spent =
      (columns["timing/step"]?.[place] ?? 0) * Math.max(1, step - before) +
      (columns["timing/eval"]?.[place] ?? 0);
    before = step;
    total += typeof spent === "number" && Number.isFinite(spent) ? spent / 3600 : 0;
    return total;
  });
}

/** First and last value of a metric. */
function ends(run, name) {
  const values = points(run, name).map(([, value]) => value);
  return values.length ? [values[0], values[values.length - 1]] : null;
}

// --- the address -----------------------------------------------------------------------

/** `{view, params}` from the address. */
function where() {
  const [view, query] = decodeURI(location.hash.slice(1)).split(/\?(.*)/s);
  return { view: view || "overview", params: new URLSearchParams(query ?? "") };
}

/** The address of a view; empty values are left out. */
function address(view, params = {}) {
  const kept = Object.entries(params).filter(
    ([, value]) => value !== undefined && value !== null && value !== "",
  );
  return `#${view}${kept.length ? `?${new URLSearchParams(kept)}` : ""}`;
}

/** Shows a view; `replace` leaves no step behind for the back button. */
function go(view, params = {}, replace = false) {
  const target = address(view, params);
  if (replace) history.replaceState(null, "", target);
  else history.pushState(null, "", target);
  draw();
}

/** Changes some of the parameters of the present view. */
function change(changes, replace = true) {
  const { view, params } = where();
  go(view, { ...Object.fromEntries(params), ...changes }, replace);
}

/** The parameters that name a trajectory. */
function naming(one) {
  return { run: one.run.name, step: one.step, group: one.group, sample: one.sample };
}

function named(params) {
  return report.all.find((one) =>
    Object.entries(naming(one)).every(([key, value]) => params.get(key) === String(value)),
  );
}

function runLabel(run) {
  return h(
    "span",
    { class: "run" },
    h("span", { class: "swatch", style: { background: run.color } }),
    run.name,
  );
}
