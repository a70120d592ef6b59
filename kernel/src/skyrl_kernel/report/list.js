"use strict";
// The list of trajectories with its filters, beside the one that is shown.

const PAGE = 100;

/** What can be sorted by: text, value, and whether the greatest comes first. */
const SORTS = {
  step: ["step", (one) => one.step],
  best: ["reward, best first", (one) => -(one.reward ?? -Infinity)],
  worst: ["reward, worst first", (one) => one.reward ?? Infinity],
  adv: ["advantage, greatest first", (one) => -(one.advantage ?? -Infinity)],
  low: ["advantage, least first", (one) => one.advantage ?? Infinity],
  long: ["longest", (one) => -one.tokens],
  short: ["shortest", (one) => one.tokens],
  slow: ["slowest", (one) => -(one.timings.total ?? -Infinity)],
  odd: ["least likely", (one) => one.logprob ?? Infinity],
  old: ["oldest weights", (one) => (one.versions ? one.versions[0] - one.step : Infinity)],
};

const FILTERS = {
  run: (one) => one.run.name,
  env: (one) => one.env,
  source: (one) => one.source ?? "none",
  stop: (one) => one.stop,
  picked: (one) => one.picked,
};

/** The trajectories that pass the filters, sorted. */
function filtered(params) {
  const words = (params.get("q") ?? "").toLowerCase().trim();
  const bounds = [
    ["min", "reward"],
    ["max", "reward"],
    ["from", "step"],
    ["to", "step"],
  ].filter(([key]) => params.get(key));
  const exact = Object.entries(FILTERS).filter(([key]) => params.get(`only_${key}`));
  const kept = report.all.filter(
    (one) =>
      exact.every(([key, value]) => value(one) === params.get(`only_${key}`)) &&
      bounds.every(
        ([key, field]) =>
          one[field] !== null &&
          (key === "min" || key === "from"
            ? one[field] >= Number(params.get(key))
            : one[field] <= Number(params.get(key))),
      ) &&
      (!words || searchable(one).includes(words)),
  );
  const [, value] = SORTS[params.get("sort")] ?? SORTS.step;
  return kept
    .map((one) => [value(one), one])
    .sort((a, b) => a[0] - b[0])
    .map(([, one]) => one);
}

function trajectoriesView(params) {
  const found = filtered(params);
  const current = named(params) ?? null;
  const missing = !current && params.has("sample");
  const shown =
    current ?? (!missing && matchMedia("(min-width: 900px)").matches ? (found[0] ?? null) : null);
  return [
    h(
      "div",
      { class: `split${current || missing ? " chosen" : ""}` },
      h(
        "section",
        { class: "list", "aria-label": "trajectories" },
        filters(params, found.length),
        list(found, shown),
      ),
      h(
        "section",
        { class: "detail", "aria-label": "trajectory" },
        shown
          ? detail(shown, params, found)
          : h(
              "p",
              { class: "empty" },
              missing
                ? `Sample ${params.get("sample")} of group ${params.get("group")} in step ${params.get("step")} of ${params.get("run")} is not on this page.`
                : report.all.length
                  ? "Choose a trajectory."
                  : "There are no trajectories on this page.",
            ),
      ),
    ),
  ];
}

function filters(params, count) {
  const select = (key, label) => {
    const values = [...new Set(report.all.map(FILTERS[key]))].sort();
    return (
      values.length > 1 &&
      h(
        "select",
        {
          id: `only_${key}`,
          "aria-label": label,
          onchange: (event) => change({ [`only_${key}`]: event.target.value }),
        },
        h("option", { value: "" }, `any ${label}`),
        values.map((value) =>
          h("option", { value, selected: params.get(`only_${key}`) === value }, value),
        ),
      )
    );
  };
  const number = (key, label) =>
    h("input", {
      id: key,
      type: "number",
      step: "any",
      placeholder: label,
      "aria-label": label,
      value: params.get(key) ?? "",
      oninput: (event) => change({ [key]: event.target.value }),
    });
  return h(
    "form",
    { class: "filters", onsubmit: (event) => event.preventDefault() },
    h("input", {
      id: "q",
      type: "search",
      placeholder: "search prompts, answers, ids  ( / )",
      "aria-label": "search",
      value: params.get("q") ?? "",
      oninput: (event) => change({ q: event.target.value }),
    }),
    h(
      "select",
      {
        id: "sort",
        "aria-label": "sort by",
        onchange: (event) => change({ sort: event.target.value }),
      },
      Object.entries(SORTS)
        .filter(([key]) => !["adv", "low"].includes(key) || available("advantages"))
        .map(([key, [text]]) =>
          h(
            "option",
            { value: key, selected: (params.get("sort") ?? "step") === key },
            `by ${text}`,
          ),
        ),
    ),
    select("run", "run"),
    select("env", "env"),
    select("source", "data source"),
    select("stop", "stop reason"),
    select("picked", "pick"),
    h("span", { class: "pair" }, number("min", "least reward"), number("max", "greatest reward")),
    h("span", { class: "pair" }, number("from", "from step"), number("to", "to step")),
    h(
      "p",
      { class: "count" },
      `${plural(count, "trajectory", "trajectories")} `,
      [...params.keys()].some(
        (key) => key.startsWith("only_") || ["q", "min", "max", "from", "to"].includes(key),
      ) &&
        h(
          "button",
          {
            type: "button",
            class: "link",
            onclick: () =>
              go("trajectories", { sort: params.get("sort"), color: params.get("color") }),
          },
          "show all",
        ),
    ),
  );
}

/** Rows of the list, a page at a time. */
function list(found, current) {
  const body = h("ol", { class: "rows" });
  let reached = 0;
  const more = h("button", { class: "more", onclick: () => extend() }, "more");
  const extend = (until = reached + PAGE) => {
    body.append(...found.slice(reached, until).map((one) => row(one, one === current)));
    reached = Math.min(found.length, until);
    more.hidden = reached >= found.length;
  };
  extend(Math.max(PAGE, found.indexOf(current) + 20));
  return h("div", { class: "scroller" }, body, more);
}

function row(one, isCurrent) {
  return h(
    "li",
    {},
    h(
      "a",
      {
        href: addressOf(one),
        "aria-current": isCurrent ? "true" : null,
        onclick: (event) => {
          event.preventDefault();
          change(naming(one), false);
        },
      },
      h(
        "span",
        { class: "line" },
        report.runs.length > 1 &&
          h("span", { class: "swatch", style: { background: one.run.color }, title: one.run.name }),
        h("b", {}, `step ${one.step}`),
        ` · ${one.uid}/${one.sample}`,
        one.picked !== "group" && h("em", {}, one.picked),
        h("span", { class: "gap" }),
        reward(one),
      ),
      h(
        "span",
        { class: "line soft" },
        h("span", { class: "snippet" }, snippet(one)),
        h("span", { class: "gap" }),
        `${one.tokens} tok`,
        one.stop !== "stop" && h("em", { class: "warn" }, one.stop),
      ),
    ),
  );
}

function snippet(one) {
  return lastUser(one).replace(/\s+/g, " ").slice(-160);
}

function lastUser(one) {
  const user = one.messages.filter((message) => message.role === "user");
  return (user[user.length - 1] ?? one.messages[one.messages.length - 1] ?? { content: "" })
    .content;
}

function reward(one) {
  if (one.reward === null) return h("span", { class: "reward" }, "not judged");
  const spread = one.rewards.map(([, value]) => value).filter((value) => typeof value === "number");
  const level =
    one.reward > 0 && one.reward >= Math.max(...spread) ? "high" : one.reward <= 0 ? "low" : "mid";
  return h(
    "span",
    { class: `reward ${level}` },
    `${level === "high" ? "▲" : level === "low" ? "▽" : "◆"} ${show(one.reward)}`,
  );
}

function addressOf(one) {
  const kept = Object.fromEntries(
    [...where().params].filter(
      ([key]) => key === "color" || key === "sort" || key === "q" || key.startsWith("only_"),
    ),
  );
  return address("trajectories", { ...kept, ...naming(one) });
}
