"use strict";
// Line charts and stacked areas as SVG. The legend shows the values under the
// cursor, which the pointer or the arrow keys move; without one, the last values.

const WIDTH = 480,
  HEIGHT = 220,
  LEFT = 46,
  RIGHT = 16,
  TOP = 8,
  BOTTOM = 26;
const DASHES = ["", "6 4", "2 3", "8 3 2 3", "1 4"];

/**
 * A figure with a chart.
 * series: {name, color, dash, points: [[x, y, step]], band: [[x, low, high]]}
 */
function chart({ title, about, series, axis, smoothing = 0, log = false, stacked = false }) {
  series = series.filter((one) => one.points.length);
  const lines = series.map((one) => ({
    ...one,
    shown: stacked ? one.points : smooth(one.points, smoothing),
  }));
  if (stacked) stack(lines);
  const xs = [...new Set(lines.flatMap((one) => one.points.map(([x]) => x)))].sort((a, b) => a - b);
  const scale = scales(lines, xs, log, stacked);
  const root = svg("svg", {
    viewBox: `0 0 ${WIDTH} ${HEIGHT}`,
    role: "img",
    tabindex: 0,
    "aria-label": spoken(title, series),
  });
  root.append(...grid(scale, axis));
  for (const line of lines)
    root.append(...(stacked ? area(line, scale) : drawn(line, scale, smoothing)));
  const cursor = svg("g", { class: "cursor" });
  root.append(cursor);
  const values = lines.map(() => h("b"));
  const at = h("span", { class: "at" });
  const legend = h(
    "ul",
    { class: "legend" },
    lines.map((line, place) =>
      h(
        "li",
        {},
        stacked ? h("span", { class: "swatch", style: { background: line.color } }) : sample(line),
        line.name,
        " ",
        values[place],
      ),
    ),
  );
  let place = null;
  const point = (next) => {
    place = next;
    const x = place === null ? null : xs[place];
    const found = lines.map((line) =>
      x === null ? line.points[line.points.length - 1] : line.points.find(([own]) => own === x),
    );
    values.forEach((element, index) => (element.textContent = show(found[index]?.[1])));
    const step = found.find((one) => one)?.[2];
    at.textContent = x === null ? "" : `step ${step}`;
    cursor.replaceChildren(
      ...(x === null
        ? []
        : [
            svg("line", { x1: scale.x(x), x2: scale.x(x), y1: TOP, y2: HEIGHT - BOTTOM }),
            ...lines
              .map((line, index) =>
                Number.isFinite(found[index]?.[1])
                  ? svg("circle", {
                      cx: scale.x(x),
                      cy: scale.y(stacked ? line.tops.get(x) : found[index][1]),
                      r: 3.5,
                      style: { fill: line.color },
                    })
                  : null,
              )
              .filter(Boolean),
          ]),
    );
  };
  point(null);
  const nearest = (event) => {
    const box = root.getBoundingClientRect();
    const x = ((event.clientX - box.left) / box.width) * WIDTH;
    return xs.reduce(
      (best, one, index) =>
        Math.abs(scale.x(one) - x) < Math.abs(scale.x(xs[best]) - x) ? index : best,
      0,
    );
  };
  root.addEventListener("pointermove", (event) => point(nearest(event)));
  root.addEventListener("pointerdown", (event) => point(nearest(event)));
  root.addEventListener("pointerleave", () => point(null));
  root.addEventListener("blur", () => point(null));
  root.addEventListener("keydown", (event) => {
    const moves = { ArrowLeft: -1, ArrowRight: 1, Home: -xs.length, End: xs.length };
    if (!(event.key in moves)) return;
    event.preventDefault();
    event.stopPropagation();
    point(
      Math.max(
        0,
        Math.min(
          xs.length - 1,
          (place ?? (moves[event.key] < 0 ? xs.length : -1)) + moves[event.key],
        ),
      ),
    );
  });
  return h(
    "figure",
    { class: "chart" },
    h("figcaption", {}, h("h3", { title: about }, title), at),
    root,
    legend,
  );
}

/** Exponential moving average, corrected for its start; gaps and non-finite values pass through. */
function smooth(pairs, weight) {
  if (!weight) return pairs;
  let sum = 0,
    total = 0;
  return pairs.map(([x, y, step]) => {
    if (!Number.isFinite(y)) return [x, y, step];
    sum = sum * weight + y * (1 - weight);
    total = total * weight + (1 - weight);
    return [x, sum / total, step];
  });
}

/** Heaps each series on those before it. */
function stack(lines) {
  const heights = new Map();
  for (const line of lines) {
    line.bottoms = new Map();
    line.tops = new Map();
    for (const [x, y] of line.points) {
      line.bottoms.set(x, heights.get(x) ?? 0);
      heights.set(x, (heights.get(x) ?? 0) + (Number.isFinite(y) ? y : 0));
      line.tops.set(x, heights.get(x));
    }
  }
}

function scales(lines, xs, log, stacked) {
  const ys = lines
    .flatMap((line) => [
      ...(stacked ? [0, ...line.tops.values()] : line.points.map(([, y]) => y)),
      ...(line.band ?? []).flatMap(([, low, high]) => [low, high]),
    ])
    .filter((y) => Number.isFinite(y));
  let low = Math.min(...ys),
    high = Math.max(...ys);
  if (!ys.length) [low, high] = [0, 1];
  const isLog = log && low > 0;
  if (!isLog && low > 0 && low < 0.5 * high) low = 0;
  if (high === low)
    [low, high] = isLog
      ? [low / 2, high * 2]
      : [low - (Math.abs(low) || 1) * 0.1, high + (Math.abs(high) || 1) * 0.1];
  const ticks = isLog ? decades(low, high) : steps(low, high, 4);
  if (!isLog) [low, high] = [Math.min(low, ticks[0]), Math.max(high, ticks[ticks.length - 1])];
  const [first, last] = [xs[0] ?? 0, xs[xs.length - 1] ?? 1];
  const place = isLog
    ? (y) => Math.log(y / low) / Math.log(high / low)
    : (y) => (y - low) / (high - low);
  return {
    x: (x) => LEFT + (last === first ? 0.5 : (x - first) / (last - first)) * (WIDTH - LEFT - RIGHT),
    y: (y) => HEIGHT - BOTTOM - place(y) * (HEIGHT - TOP - BOTTOM),
    ticks,
    marks: steps(first, last, 5).filter((x) => x >= first && x <= last),
  };
}

/** Round numbers between two values. */
function steps(low, high, count) {
  const raw = (high - low) / count || 1;
  const unit = 10 ** Math.floor(Math.log10(raw));
  const size = unit * ([1, 2, 5, 10].find((one) => one * unit >= raw) ?? 10);
  const start = Math.floor(low / size + 1e-9),
    stop = Math.ceil(high / size - 1e-9);
  return Array.from({ length: stop - start + 1 }, (_, place) =>
    Number(((start + place) * size).toPrecision(12)),
  );
}

function decades(low, high) {
  const start = Math.floor(Math.log10(low)),
    stop = Math.ceil(Math.log10(high));
  const all = Array.from({ length: stop - start + 1 }, (_, place) => 10 ** (start + place)).filter(
    (one) => one >= low && one <= high,
  );
  return all.length > 1 ? all : [low, high];
}

function grid(scale, axis) {
  const tick = (value) =>
    Number.isInteger(value) && Math.abs(value) < 1e5
      ? String(value)
      : Math.abs(value) >= 1e5 || (value && Math.abs(value) < 1e-3)
        ? value.toExponential(0)
        : String(Number(value.toPrecision(3)));
  return [
    ...scale.ticks.flatMap((y) => [
      svg("line", { class: "grid", x1: LEFT, x2: WIDTH - RIGHT, y1: scale.y(y), y2: scale.y(y) }),
      svg("text", { x: LEFT - 6, y: scale.y(y) + 4, "text-anchor": "end" }, tick(y)),
    ]),
    ...scale.marks.map((x) =>
      svg("text", { x: scale.x(x), y: HEIGHT - 8, "text-anchor": "middle" }, tick(x)),
    ),
    svg("text", { x: LEFT - 12, y: HEIGHT - 8, "text-anchor": "end" }, axis),
  ];
}

/** A line; behind a smoothed one the values as they are; crosses where a value is not finite. */
function drawn(line, scale, smoothing) {
  const style = { stroke: line.color };
  const path = (pairs) => {
    let pen = "M";
    return pairs
      .map(([x, y]) => {
        if (!Number.isFinite(y)) {
          pen = "M";
          return "";
        }
        const part = `${pen}${scale.x(x).toFixed(1)},${scale.y(y).toFixed(1)}`;
        pen = "L";
        return part;
      })
      .join("");
  };
  const band = line.band?.filter((one) => one.every(Number.isFinite)) ?? [];
  const outline = [
    ...band.map(([x, low]) => [x, low]),
    ...band.map(([x, , high]) => [x, high]).reverse(),
  ];
  return [
    band.length > 1
      ? svg("path", { class: "band", d: `${path(outline)}Z`, style: { fill: line.color } })
      : null,
    smoothing ? svg("path", { class: "raw", d: path(line.points), style }) : null,
    svg("path", { class: "line", d: path(line.shown), "stroke-dasharray": line.dash, style }),
    ...(line.points.length <= 25
      ? line.points
          .filter(([, y]) => Number.isFinite(y))
          .map(([x, y]) =>
            svg("circle", { cx: scale.x(x), cy: scale.y(y), r: 2.2, style: { fill: line.color } }),
          )
      : []),
    ...line.points
      .filter(([, y]) => !Number.isFinite(y))
      .map(([x, y]) =>
        svg(
          "text",
          { class: "broken", x: scale.x(x), y: HEIGHT - BOTTOM - 4, "text-anchor": "middle" },
          "✕",
          svg("title", {}, `${line.name} is ${y}`),
        ),
      ),
  ].filter(Boolean);
}

function area(line, scale) {
  const over = [...line.tops].map(([x, y]) => `${scale.x(x).toFixed(1)},${scale.y(y).toFixed(1)}`);
  const under = [...line.bottoms]
    .map(([x, y]) => `${scale.x(x).toFixed(1)},${scale.y(y).toFixed(1)}`)
    .reverse();
  return [
    svg("path", {
      class: "area",
      d: `M${[...over, ...under].join("L")}Z`,
      style: { fill: line.color, stroke: line.color },
    }),
  ];
}

function sample(line) {
  return svg(
    "svg",
    { class: "sample", viewBox: "0 0 26 10" },
    svg("line", {
      x1: 1,
      x2: 25,
      y1: 5,
      y2: 5,
      "stroke-dasharray": line.dash,
      style: { stroke: line.color },
    }),
  );
}

/** The chart in words. */
function spoken(title, series) {
  const said = series.map(({ name, points }) => {
    const [first, last] = [points[0], points[points.length - 1]];
    return `${name}: ${show(first[1])} at step ${first[2]}, ${show(last[1])} at step ${last[2]}`;
  });
  return `${title}. ${said.join("; ")}. Arrow keys move through the steps.`;
}

/** Bars of a histogram: [[low, high, count]]; `mark` is pointed out. */
function bars(bins, mark, about) {
  const most = Math.max(...bins.map(([, , count]) => count), 1);
  const holds = ([low, high], place) =>
    mark !== null &&
    mark !== undefined &&
    mark >= low &&
    (mark < high || low === high || place === bins.length - 1) &&
    mark <= high;
  return h(
    "ul",
    { class: "bars", "aria-label": about },
    bins.map((bin, place) =>
      h(
        "li",
        {
          class: holds(bin, place) ? "here" : null,
          title: `${bin[2]} of ${bin[0] === bin[1] ? show(bin[0]) : `${show(bin[0])} to ${show(bin[1])}`}`,
        },
        h("span", { class: "bar", style: { height: `${Math.max(2, (bin[2] / most) * 34)}px` } }),
        h("small", {}, show(bin[0])),
      ),
    ),
  );
}
