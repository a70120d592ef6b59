"use strict";
// The frame: tabs, drawing, and the keyboard.

const VIEWS = {
  overview: ["Curves", overview],
  trajectories: ["Trajectories", trajectoriesView],
  side: ["Side by side", sideView],
  failures: ["Failures", failuresView],
  settings: ["Settings", settingsView],
};

const KEYS = [
  ["1 2 3 4", "curves, trajectories, failures, settings"],
  ["j k", "next and previous trajectory of the list"],
  ["s S", "next and previous step"],
  ["r R", "next and previous run"],
  ["g", "the group side by side; again: back to one"],
  ["t T", "next and previous turn"],
  ["← →", "token by token; in a chart, step by step"],
  ["c", "next colouring"],
  ["e", "unfold or fold everything"],
  ["y", "copy the trajectory as JSON"],
  ["/", "search"],
  ["?", "these keys"],
];

/** Draws what the address says, and gives the focus back to the control that had it. */
function draw() {
  const { view, params } = where();
  const active = document.activeElement?.id ? document.activeElement : null;
  const caret = active?.selectionStart;
  const scroll = document.querySelector(".scroller")?.scrollTop;
  point(null);
  const [, make] = VIEWS[view] ?? VIEWS.overview;
  document.getElementById("top").replaceChildren(...frame(view));
  document.getElementById("main").replaceChildren(...make(params).flat(Infinity).filter(Boolean));
  document.getElementById("main").className = view;
  const scroller = document.querySelector(".scroller");
  if (scroller && scroll !== undefined) scroller.scrollTop = scroll;
  document.querySelector(".rows [aria-current]")?.scrollIntoView({ block: "nearest" });
  const again = active && document.getElementById(active.id);
  if (again && again !== document.activeElement) {
    again.focus({ preventScroll: true });
    if (caret !== undefined && caret !== null && again.type !== "number")
      again.setSelectionRange?.(caret, caret);
  }
}

function frame(view) {
  const lost = report.runs.reduce(
    (sum, run) => sum + run.failure_counts.reduce((all, [, , count]) => all + count, 0),
    0,
  );
  const tab = (key, number) =>
    h(
      "a",
      {
        href: address(key),
        "aria-current": view === key || (view === "side" && key === "trajectories") ? "page" : null,
        title: String(number),
      },
      VIEWS[key][0],
      key === "failures" && lost > 0 && h("span", { class: "badge" }, show(lost)),
    );
  return [
    h("h1", { title: report.runs.map((run) => run.folder).join("\n") }, report.runs.map(runLabel)),
    h(
      "nav",
      { "aria-label": "views" },
      ["overview", "trajectories", "failures", "settings"].map((key, place) => tab(key, place + 1)),
    ),
    h("button", { class: "keys", title: "keys", "aria-label": "keys", onclick: help }, "?"),
  ];
}

function help() {
  const dialog = document.getElementById("help");
  dialog.replaceChildren(
    h("h2", {}, "Keys"),
    h(
      "table",
      {},
      h(
        "tbody",
        {},
        KEYS.map(([keys, what]) =>
          h(
            "tr",
            {},
            h(
              "th",
              {},
              keys.split(" ").map((key) => h("kbd", {}, key)),
            ),
            h("td", {}, what),
          ),
        ),
      ),
    ),
    h("button", { onclick: () => dialog.close() }, "close"),
  );
  dialog.showModal();
}

/** The trajectory that is shown. */
function current() {
  const id = document.querySelector(".detail article")?.dataset.id;
  return report.all.find((one) => one.id === id) ?? null;
}

const ACTIONS = {
  1: () => go("overview"),
  2: () => go("trajectories"),
  3: () => go("failures"),
  4: () => go("settings"),
  j: () => move(1),
  k: () => move(-1),
  s: () => moveStep(1),
  S: () => moveStep(-1),
  r: () => moveRun(1),
  R: () => moveRun(-1),
  g: toggleGroup,
  t: () => moveTurn(1),
  T: () => moveTurn(-1),
  c: nextColor,
  e: expand,
  ArrowRight: () => moveToken(1),
  ArrowLeft: () => moveToken(-1),
  y: () => document.querySelector(".detail .copy")?.click(),
  "/": () => document.querySelector("#q")?.focus(),
  "?": help,
};

function move(shift) {
  const found = filtered(where().params);
  const next = found[found.indexOf(current()) + shift];
  if (where().view === "trajectories" && next) change(naming(next));
}

function moveStep(shift) {
  const one = current();
  if (!one) return;
  const steps = [...new Set(one.run.trajectories.map((other) => other.step))];
  const step = steps[steps.indexOf(one.step) + shift];
  if (step !== undefined) change(naming(inStep(one, step)));
}

/** The same step and prompt in another run, as far as there is one. */
function moveRun(shift) {
  const one = current();
  const run =
    one &&
    report.runs[(report.runs.indexOf(one.run) + shift + report.runs.length) % report.runs.length];
  if (!run?.trajectories.length || run === one.run) return;
  const near = [...run.trajectories].sort(
    (a, b) =>
      Math.abs(a.step - one.step) - Math.abs(b.step - one.step) ||
      (b.uid === one.uid) - (a.uid === one.uid),
  );
  change(naming(near[0]));
}

function toggleGroup() {
  const { view, params } = where();
  const one = current();
  if (view === "side") history.back();
  else if (one)
    go("side", { run: one.run.name, step: one.step, group: one.group, color: params.get("color") });
}

function moveTurn(shift) {
  const turns = [...document.querySelectorAll(".detail .turn")];
  const at = turns.findIndex((turn) => turn.querySelector("summary") === document.activeElement);
  const next = turns[Math.max(0, Math.min(turns.length - 1, at + shift))];
  next?.querySelector("summary").focus();
  next?.scrollIntoView({ block: "nearest" });
}

function nextColor() {
  const usable = Object.keys(COLORS).filter((key) => available(COLORS[key].needs));
  change({ color: usable[(usable.indexOf(coloring(where().params)) + 1) % usable.length] });
}

document.addEventListener("keydown", (event) => {
  const typing = event.target.matches?.(
    "input:not([type=checkbox]):not([type=range]), select, textarea",
  );
  if (event.key === "Escape" && typing) return event.target.blur();
  if (
    typing ||
    event.ctrlKey ||
    event.metaKey ||
    event.altKey ||
    document.getElementById("help").open
  )
    return;
  const action = ACTIONS[event.key];
  if (!action || (event.key.startsWith("Arrow") && event.target.matches?.("input"))) return;
  event.preventDefault();
  action();
});
for (const kind of ["pointerover", "click"]) {
  document.addEventListener(kind, (event) => {
    const span = event.target.closest?.(".token[data-at]");
    if (span || kind === "click") point(span);
  });
}
addEventListener("hashchange", draw);
addEventListener("popstate", draw);

unpack().then(
  (data) => {
    load(data);
    draw();
    document.body.dataset.ready = "true";
  },
  (error) => {
    document
      .getElementById("main")
      .replaceChildren(
        h(
          "p",
          { class: "empty" },
          `The data of this page could not be unpacked (${error.message}); a browser of 2023 or later can.`,
        ),
      );
  },
);
