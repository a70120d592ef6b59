"use strict";
// Curves of all runs, and every number there is.

/** Which metrics stand together, by the run's own names. `stacked` charts are drawn once per run. */
const PANELS = [
  {
    title: "Reward",
    about:
      "mean reward of the trajectories trained on, and the share of groups with a rewarded one",
    metrics: [/^reward\/avg_raw_reward$/, /^reward\/avg_pass_at_\d+$/],
  },
  {
    title: "Held-out score",
    about: "mean reward on data that is never trained on",
    metrics: [/^eval\/[^/]+\/avg_score$/, /^eval\/all\/pass_at_\d+$/],
  },
  {
    title: "Completion length",
    about: "tokens sampled for a trajectory: mean, shortest and longest",
    metrics: [/^generate\/avg_num_tokens$/],
    band: ["generate/min_num_tokens", "generate/max_num_tokens"],
  },
  {
    title: "Seconds per stage",
    about: "wall-clock seconds of a step",
    metrics: [
      /^timing\/(generate|fwd_logprobs_values_reward|compute_advantages_and_returns|critic_train|policy_train|sync_weights)$/,
    ],
    stacked: true,
  },
  {
    title: "Seconds per step",
    about: "wall-clock seconds, evaluations apart",
    metrics: [/^timing\/step$/],
    severalRuns: true,
  },
  {
    title: "KL",
    about: "how far the policy is from the reference, or from the policy that sampled, nats",
    metrics: [/^policy\/policy_kl$/, /kl$/],
  },
  {
    title: "Entropy",
    about: "of the policy at trained tokens, nats; near 0, exploration has ended",
    metrics: [/^policy\/policy_entropy$/],
  },
  {
    title: "Objective",
    about: "the policy term, and all terms together",
    metrics: [/^policy\/policy_loss$/, /^policy\/final_loss$/],
  },
  {
    title: "Gradient norm",
    about: "before clipping",
    metrics: [/^policy\/grad_norm$/, /^policy\/raw_grad_norm$/],
  },
  {
    title: "Ratio to the old policy",
    about: "exp(current − old log-prob): mean and greatest",
    metrics: [/ratio_mean$/, /ratio_max$/],
  },
  {
    title: "Clipped",
    about: "share of trained tokens whose gradient the clip removed",
    metrics: [/clip_ratio/],
    named: true,
  },
  {
    title: "Trainer against sampler",
    about: "mean absolute difference of the log-probs of sampled tokens; 0 where both are one",
    metrics: [/logprobs_abs_diff_mean$/],
    onlyIf: (value) => value !== 0,
  },
  {
    title: "Size of the advantages",
    about: "mean absolute advantage; 0 is a step without signal",
    metrics: [/^loss\/avg_raw_advantages_abs$/],
  },
  {
    title: "Groups without signal",
    about: "share of groups whose rewards are all equal",
    metrics: [/^reward\/zero_variance_groups_frac$/],
  },
  {
    title: "How trajectories ended",
    about: "share by stop reason",
    metrics: [/^generate\/stop_\w+_frac$/],
    named: true,
  },
  {
    title: "Lost trajectories",
    about: "failures by kind; they count nowhere else",
    metrics: [/^failures\//],
    named: true,
    onlyIf: (value) => value !== 0,
  },
  {
    title: "Staleness",
    about: "policy versions between sampling and training",
    metrics: [/^async\/staleness_(mean|max)$/],
    onlyIf: (value) => value !== 0,
  },
  { title: "Learning rate", about: "of the policy's optimizer", metrics: [/^policy\/policy_lr$/] },
];

const hidden = new Set();

function overview(params) {
  const axis = params.get("axis") ?? "step";
  const count = Math.max(...report.runs.map((run) => run.metrics.steps.length));
  const smoothing = Number(params.get("smooth") ?? (count > 40 ? 0.6 : 0));
  const log = params.get("log") === "1";
  const runs = report.runs.filter((run) => !hidden.has(run.name));
  const options = { axis: axis === "time" ? "hours" : "step", smoothing, log };
  const pinned = params
    .getAll("pin")
    .flatMap((list) => list.split(","))
    .filter(Boolean);
  const panels = [
    ...pinned.map((name) => ({ title: name, metrics: [name], pinned: true })),
    ...PANELS,
  ];
  const figures = panels.flatMap((panel) => figuresOf(panel, runs, axis, options));
  return [
    runTable(),
    ...notes(),
    h(
      "div",
      { class: "controls" },
      choice("axis", "across", axis, [
        ["step", "steps"],
        ["time", "hours of training"],
      ]),
      h(
        "label",
        {},
        "smoothing ",
        h("input", {
          type: "range",
          min: 0,
          max: 0.95,
          step: 0.05,
          value: smoothing,
          onchange: (event) => change({ smooth: event.target.value }),
        }),
      ),
      h(
        "label",
        {},
        h("input", {
          type: "checkbox",
          checked: log,
          onchange: (event) => change({ log: event.target.checked ? 1 : "" }),
        }),
        " logarithmic",
      ),
    ),
    figures.length
      ? h("div", { class: "charts" }, figures)
      : h("p", { class: "empty" }, "No step was finished."),
    numbers(pinned),
  ];
}

function figuresOf(panel, runs, axis, options) {
  const known = [...new Set(report.runs.flatMap((run) => Object.keys(run.metrics.columns)))];
  const found = panel.pinned
    ? panel.metrics
    : [...new Set(panel.metrics.flatMap((one) => known.filter((name) => one.test(name))))].filter(
        onlySource(known),
      );
  const names = found.filter((name) => runs.some((run) => points(run, name).length));
  if (panel.severalRuns && report.runs.length < 2) return [];
  if (
    panel.onlyIf &&
    !runs.some((run) =>
      names.some((name) => points(run, name).some(([, value]) => panel.onlyIf(value))),
    )
  )
    return [];
  const series = (run, name, place, alone) => ({
    name:
      report.runs.length > 1 && !alone
        ? `${run.name}${names.length > 1 || panel.named ? ` ${short(name)}` : ""}`
        : short(name),
    color: report.runs.length > 1 && !alone ? run.color : `var(--run${place % 6})`,
    dash: DASHES[place % DASHES.length],
    points: points(run, name, axis),
    band: panel.band && bandOf(run, panel.band, axis),
  });
  const made = panel.stacked
    ? runs.map((run) => ({
        title: report.runs.length > 1 ? `${panel.title}: ${run.name}` : panel.title,
        series: [
          ...byTime(names, runs[0]).map((name, place) => series(run, name, place, true)),
          rest(names, run, axis),
        ],
      }))
    : [
        {
          title: panel.title,
          series: runs.flatMap((run) => names.map((name, place) => series(run, name, place))),
        },
      ];
  return made
    .filter((one) => one.series.some(({ points }) => points.length))
    .map((one) =>
      chart({
        ...options,
        ...one,
        about: panel.about,
        stacked: panel.stacked,
        log: options.log && !panel.stacked,
      }),
    );
}

/** With a single data source, `eval/all` says it. */
function onlySource(known) {
  const sources = new Set(
    known.filter((name) => name.startsWith("eval/")).map((name) => name.split("/")[1]),
  );
  return (name) => !name.startsWith("eval/") || sources.size > 2 || name.startsWith("eval/all/");
}

/** Stages, the longest first. */
function byTime(names, run) {
  const total = (name) => mean(points(run, name).map(([, value]) => value)) ?? 0;
  return names.filter((name) => total(name) > 0).sort((a, b) => total(b) - total(a));
}

/** What a step took beside its stages. */
function rest(names, run, axis) {
  const parts = names.map(
    (name) => new Map(points(run, name, axis).map(([x, value]) => [x, value])),
  );
  const left = points(run, "timing/step", axis).map(([x, total, step]) => [
    x,
    Math.max(
      0,
      parts.reduce((sum, part) => sum - (part.get(x) ?? 0), total),
    ),
    step,
  ]);
  const matters = left.some(
    ([x, value]) => value > 0.01 * parts.reduce((sum, part) => sum + (part.get(x) ?? 0), value),
  );
  return { name: "other", color: "var(--soft)", points: matters ? left : [] };
}

function bandOf(run, [low, high], axis) {
  const highs = new Map(points(run, high, axis).map(([x, value]) => [x, value]));
  return points(run, low, axis).map(([x, value]) => [x, value, highs.get(x)]);
}

function short(name) {
  return name.startsWith("eval/") && !name.startsWith("eval/all/")
    ? name.slice(5)
    : name.split("/").pop();
}

/** One line per run: where it began, where it ended. */
function runTable() {
  const fromTo = (run, name) => {
    const found = ends(run, name);
    return found ? `${show(found[0])} → ${show(found[1])}` : "–";
  };
  const several = report.runs.length > 1;
  const heads = [
    "run",
    "steps",
    "reward",
    "held-out score",
    "seconds per step",
    "lost",
    "model",
    "algorithm",
  ];
  return h(
    "div",
    { class: "scroll" },
    h(
      "table",
      { class: "runs" },
      h(
        "thead",
        {},
        h(
          "tr",
          {},
          heads.map((head) => h("th", {}, head)),
        ),
      ),
      h(
        "tbody",
        {},
        report.runs.map((run) => {
          const times = points(run, "timing/step")
            .map(([, value]) => value)
            .filter(Number.isFinite);
          const lost = run.failure_counts.reduce((sum, [, , count]) => sum + count, 0);
          const toggle =
            several &&
            h("input", {
              type: "checkbox",
              checked: !hidden.has(run.name),
              "aria-label": `show ${run.name}`,
              onchange: () => {
                hidden.has(run.name) ? hidden.delete(run.name) : hidden.add(run.name);
                draw();
              },
            });
          return h(
            "tr",
            {},
            h("th", { title: run.folder }, h("label", {}, toggle, runLabel(run))),
            h("td", {}, show(run.metrics.steps[run.metrics.steps.length - 1])),
            h("td", {}, fromTo(run, "reward/avg_raw_reward")),
            h("td", {}, fromTo(run, "eval/all/avg_score")),
            h("td", {}, seconds(mean(times))),
            h(
              "td",
              {},
              lost
                ? h(
                    "a",
                    { class: "lost", href: address("failures", { run: run.name }) },
                    show(lost),
                  )
                : "0",
            ),
            h("td", {}, run.config["trainer.policy.model.path"]),
            h("td", {}, run.config["trainer.algorithm.advantage_estimator"]),
          );
        }),
      ),
    ),
  );
}

/** What is on the page and what is not. */
function notes() {
  const shown = report.runs.map((run) => {
    const all = run.steps.reduce((sum, step) => sum + step.trajectories, 0);
    return `${show(run.trajectories.length)} of ${plural(all, "trajectory", "trajectories")}${report.runs.length > 1 ? ` of ${run.name}` : ""}`;
  });
  const some = report.runs.some(
    (run) => run.trajectories.length < run.steps.reduce((sum, step) => sum + step.trajectories, 0),
  );
  const how = some
    ? ": of each step the best, the worst, the middle one and a random one, and whole groups, as far as there is room"
    : "";
  return [
    h("p", { class: "note" }, `On this page: ${shown.join(", ")}${how}. Curves count all of them.`),
    ...[...new Set(report.runs.flatMap((run) => run.notes))].map((note) => {
      const those = report.runs.filter((run) => run.notes.includes(note));
      return h(
        "p",
        { class: "note" },
        those.length < report.runs.length
          ? `${those.map((run) => run.name).join(", ")}: ${note}`
          : note,
      );
    }),
  ];
}

/** Every metric: first, last, least and greatest; a click draws it. */
function numbers(pinned) {
  const known = [...new Set(report.runs.flatMap((run) => Object.keys(run.metrics.columns)))].sort();
  const rows = known.map((name) =>
    h(
      "tr",
      { "data-name": name },
      h(
        "th",
        {},
        h(
          "button",
          {
            class: "link",
            "aria-pressed": String(pinned.includes(name)),
            onclick: () => pin(name, pinned),
          },
          name,
        ),
      ),
      report.runs.map((run) => {
        const values = points(run, name).map(([, value]) => value);
        const finite = values.filter(Number.isFinite);
        return [
          values[0],
          values[values.length - 1],
          finite.length ? Math.min(...finite) : null,
          finite.length ? Math.max(...finite) : null,
        ].map((value) => h("td", {}, show(value)));
      }),
    ),
  );
  const filter = (event) =>
    rows.forEach(
      (row) => (row.hidden = !row.dataset.name.includes(event.target.value.trim().toLowerCase())),
    );
  return h(
    "details",
    { class: "card numbers", open: pinned.length > 0 },
    h("summary", {}, `All numbers (${known.length})`),
    h(
      "p",
      { class: "controls" },
      h("input", {
        type: "search",
        placeholder: "part of a name",
        "aria-label": "filter metrics",
        oninput: filter,
      }),
      h("small", {}, "A click on a name draws its chart at the top."),
    ),
    h(
      "div",
      { class: "scroll" },
      h(
        "table",
        {},
        h(
          "thead",
          {},
          report.runs.length > 1 &&
            h(
              "tr",
              {},
              h("th"),
              report.runs.map((run) => h("th", { colspan: 4 }, runLabel(run))),
            ),
          h(
            "tr",
            {},
            h("th", {}, "metric"),
            report.runs.map(() =>
              ["first", "last", "least", "greatest"].map((head) => h("th", {}, head)),
            ),
          ),
        ),
        h("tbody", {}, rows),
      ),
    ),
  );
}

function pin(name, pinned) {
  const next = pinned.includes(name) ? pinned.filter((one) => one !== name) : [...pinned, name];
  change({ pin: next.join(",") });
  scrollTo({ top: 0, behavior: "smooth" });
}

function choice(key, label, value, options) {
  return h(
    "label",
    {},
    `${label} `,
    h(
      "select",
      { "aria-label": label, onchange: (event) => change({ [key]: event.target.value }) },
      options.map(([one, text]) => h("option", { value: one, selected: one === value }, text)),
    ),
  );
}
