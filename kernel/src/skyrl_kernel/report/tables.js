"use strict";
// Lost trajectories, and how the runs were set up.

function failuresView(params) {
  const words = (params.get("q") ?? "").toLowerCase();
  const all = report.runs.flatMap((run) => run.failures.map((failure) => ({ ...failure, run })));
  const found = all.filter(
    (one) =>
      (!params.get("run") || one.run.name === params.get("run")) &&
      (!params.get("kind") || one.kind === params.get("kind")) &&
      (!words ||
        `${one.uid} ${one.plugin} ${one.message} ${one.step}`.toLowerCase().includes(words)),
  );
  const kinds = [...new Set(all.map((one) => one.kind))].sort();
  if (!all.length) return [h("p", { class: "empty" }, "No trajectory was lost.")];
  return [
    h(
      "p",
      { class: "note" },
      "A lost trajectory was not judged and not trained on; it counts in no other number. ",
      report.runs.map((run) =>
        run.failure_counts.map(([kind, plugin, count]) =>
          h(
            "span",
            { class: "chip" },
            `${report.runs.length > 1 ? `${run.name}: ` : ""}${show(count)} × ${kind}${plugin ? ` in ${plugin}` : ""}`,
          ),
        ),
      ),
    ),
    h(
      "div",
      { class: "controls" },
      h("input", {
        id: "q",
        type: "search",
        placeholder: "search messages, ids, plugins  ( / )",
        "aria-label": "search",
        value: params.get("q") ?? "",
        oninput: (event) => change({ q: event.target.value }),
      }),
      report.runs.length > 1 &&
        choice("run", "of", params.get("run") ?? "", [
          ["", "any run"],
          ...report.runs.map((run) => [run.name, run.name]),
        ]),
      kinds.length > 1 &&
        choice("kind", "kind", params.get("kind") ?? "", [
          ["", "any"],
          ...kinds.map((kind) => [kind, kind]),
        ]),
    ),
    h(
      "div",
      { class: "scroll" },
      h(
        "table",
        { class: "failures" },
        h(
          "thead",
          {},
          h(
            "tr",
            {},
            [
              report.runs.length > 1 && "run",
              "step",
              "prompt / sample",
              "kind",
              "plugin",
              "message",
            ]
              .filter(Boolean)
              .map((head) => h("th", {}, head)),
          ),
        ),
        h(
          "tbody",
          {},
          found.map((one) =>
            h(
              "tr",
              {},
              report.runs.length > 1 && h("td", {}, runLabel(one.run)),
              h("td", {}, show(one.step)),
              h("td", {}, `${one.uid}/${one.sample}`),
              h("td", {}, one.kind),
              h("td", {}, show(one.plugin)),
              h("td", { class: "message" }, one.message),
            ),
          ),
        ),
      ),
    ),
  ];
}

/** Settings: what differs between runs first, then what somebody set, then all. */
function settingsView(params) {
  const keys = [...new Set(report.runs.flatMap((run) => Object.keys(run.config)))].sort();
  const texts = (key) =>
    report.runs.map((run) => (key in run.config ? JSON.stringify(run.config[key]) : "–"));
  const differs = keys.filter((key) => new Set(texts(key)).size > 1);
  const isSet = (key) => report.runs.some((run) => (run.origins[key] ?? "default") !== "default");
  const rest = keys.filter((key) => !differs.includes(key) && isSet(key));
  const defaults = keys.filter((key) => !differs.includes(key) && !isSet(key));
  const words = (params.get("q") ?? "").toLowerCase();
  const line = (key) =>
    h(
      "tr",
      {},
      h("th", {}, key),
      report.runs.map((run, place) =>
        h(
          "td",
          {},
          h("code", {}, texts(key)[place]),
          run.origins[key] && run.origins[key] !== "default" && h("small", {}, run.origins[key]),
        ),
      ),
    );
  const block = (title, some, open) => {
    const kept = some.filter((key) => key.toLowerCase().includes(words));
    return (
      some.length > 0 &&
      h(
        "details",
        { class: "card", open: open || words !== "" },
        h("summary", {}, `${title} (${kept.length})`),
        h(
          "div",
          { class: "scroll" },
          h(
            "table",
            { class: "settings" },
            report.runs.length > 1 &&
              h(
                "thead",
                {},
                h(
                  "tr",
                  {},
                  h("th", {}, "key"),
                  report.runs.map((run) => h("th", {}, runLabel(run))),
                ),
              ),
            h("tbody", {}, kept.map(line)),
          ),
        ),
      )
    );
  };
  return [
    h(
      "div",
      { class: "controls" },
      h("input", {
        id: "q",
        type: "search",
        placeholder: "part of a key  ( / )",
        "aria-label": "search keys",
        value: params.get("q") ?? "",
        oninput: (event) => change({ q: event.target.value }),
      }),
    ),
    block("Differs between the runs", differs, true),
    block("Set by a preset, a file or the command line", rest, report.runs.length === 1),
    block("Defaults", defaults, false),
    h(
      "details",
      { class: "card" },
      h("summary", {}, "Plugins"),
      h(
        "div",
        { class: "scroll" },
        h(
          "table",
          {},
          h(
            "tbody",
            {},
            report.runs.map((run) =>
              run.plugins.map(([name, distribution, version]) =>
                h(
                  "tr",
                  {},
                  report.runs.length > 1 && h("td", {}, runLabel(run)),
                  h("th", {}, name),
                  h("td", {}, distribution),
                  h("td", {}, version),
                ),
              ),
            ),
          ),
        ),
      ),
    ),
    report.runs.map((run) => h("p", { class: "note" }, runLabel(run), " ", run.folder)),
  ];
}
