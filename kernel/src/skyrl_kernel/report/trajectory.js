"use strict";
// One trajectory: what is known of it as a whole, then its messages and turns.

function detail(one, params, found) {
  const place = found.indexOf(one);
  const step = one.run.steps.find((each) => each.step === one.step);
  const neighbour = (shift) => found[place + shift];
  const jump = (shift, label, key) =>
    h(
      "button",
      { disabled: !neighbour(shift), title: key, onclick: () => change(naming(neighbour(shift))) },
      label,
    );
  return h(
    "article",
    { "data-id": one.id },
    h(
      "nav",
      { class: "crumbs", "aria-label": "where" },
      h(
        "button",
        {
          class: "back",
          onclick: () => change({ run: "", step: "", group: "", sample: "" }, false),
        },
        "← list",
      ),
      runLabel(one.run),
      " › ",
      stepPicker(one),
      " › ",
      h(
        "a",
        {
          href: address("side", {
            run: one.run.name,
            step: one.step,
            group: one.group,
            color: params.get("color"),
          }),
        },
        `group ${one.group}`,
      ),
      ` › sample ${one.sample}`,
      h("span", { class: "gap" }),
      jump(-1, "previous", "k"),
      jump(1, "next", "j"),
      copier(one),
    ),
    facts(one),
    step &&
      h(
        "details",
        { class: "step" },
        h(
          "summary",
          {},
          `All ${plural(step.trajectories, "trajectory", "trajectories")} of step ${one.step}`,
        ),
        h(
          "div",
          { class: "pairs" },
          h(
            "div",
            {},
            h("small", {}, "reward"),
            bars(step.rewards, one.reward, "rewards of the step"),
          ),
          h(
            "div",
            {},
            h("small", {}, "tokens"),
            bars(step.tokens, one.tokens, "lengths of the step"),
          ),
        ),
      ),
    siblings(one),
    colorBar(params),
    one.messages.map((message) => said(message.role, message.content, message.role !== "user")),
    one.blocks.map((block) => blockView(one, block, params)),
  );
}

/** Steps that have trajectories on the page; the same prompt where it is there. */
function stepPicker(one) {
  const steps = [...new Set(one.run.trajectories.map((other) => other.step))];
  return h(
    "select",
    {
      id: "step",
      "aria-label": "step",
      onchange: (event) => change(naming(inStep(one, Number(event.target.value))), false),
    },
    steps.map((step) => h("option", { value: step, selected: step === one.step }, `step ${step}`)),
  );
}

function inStep(one, step) {
  const all = one.run.trajectories.filter((other) => other.step === step);
  return all.find((other) => other.uid === one.uid) ?? all[0];
}

function facts(one) {
  const fact = (label, ...value) =>
    h("div", { class: "fact" }, h("small", {}, label), h("span", {}, value));
  const versions =
    one.versions &&
    (one.versions[0] === one.versions[1]
      ? one.versions[0]
      : `${one.versions[0]}–${one.versions[1]}`);
  const parts = Object.entries(one.components);
  return h(
    "div",
    { class: "facts" },
    fact("reward", reward(one)),
    (parts.length > 1 || (parts.length === 1 && parts[0][1] !== one.reward)) &&
      fact("made of", parts.map(([name, value]) => `${name} ${show(value)}`).join(" + ")),
    fact("advantage", show(one.advantage)),
    fact("tokens", show(one.tokens)),
    fact("turns", show(one.turns.length)),
    one.segments > 1 && fact("token rows", show(one.segments)),
    fact("ended by", h("span", { class: one.stop === "stop" ? null : "warn" }, one.stop)),
    one.logprob !== null && fact("mean log-prob", show(one.logprob)),
    fact("env", one.env),
    one.source && fact("data source", one.source),
    versions !== null && fact("policy version", show(versions)),
    Object.entries(one.env_metrics).map(([name, value]) => fact(name, show(value))),
    timing(one),
  );
}

/** Where the seconds of an episode went. */
function timing(one) {
  const total = one.timings.total;
  if (!total) return null;
  const parts = Object.entries(one.timings).filter(([name]) => name !== "total");
  const rest = total - parts.reduce((sum, [, value]) => sum + value, 0);
  const all = [...parts, ...(rest > 0.005 * total ? [["waiting", rest]] : [])];
  return h(
    "div",
    { class: "fact wide" },
    h(
      "small",
      {},
      `${seconds(total)}: ${all.map(([name, value]) => `${name} ${seconds(value)}`).join(", ")}`,
    ),
    h(
      "span",
      { class: "stretch", "aria-hidden": "true" },
      all.map(([, value], place) =>
        h("i", { style: { width: `${(100 * value) / total}%`, background: `var(--run${place})` } }),
      ),
    ),
  );
}

/** The other trajectories of the group, those that are on the page as links; lost ones. */
function siblings(one) {
  const here = new Map(
    one.run.trajectories
      .filter((other) => other.step === one.step && other.group === one.group)
      .map((other) => [other.sample, other]),
  );
  const lost = one.run.failures.filter(
    (failure) => failure.step === one.step && failure.uid === one.uid,
  );
  const same = report.all.filter(
    (other) => other.uid === one.uid && !(other.run === one.run && other.step === one.step),
  );
  return h(
    "p",
    { class: "siblings" },
    `Rewards of the group: `,
    one.rewards.map(([sample, value]) =>
      here.has(sample)
        ? h(
            "a",
            {
              class: "cell",
              href: addressOf(here.get(sample)),
              "aria-current": sample === one.sample ? "true" : null,
              title: `sample ${sample}`,
            },
            show(value),
          )
        : h(
            "span",
            { class: "cell absent", title: `sample ${sample} is not on this page` },
            show(value),
          ),
    ),
    lost.map((failure) =>
      h(
        "a",
        {
          class: "cell lost",
          href: address("failures", { q: failure.uid }),
          title: failure.message,
        },
        `lost: ${failure.kind}`,
      ),
    ),
    " ",
    h(
      "a",
      {
        href: address("side", {
          run: one.run.name,
          step: one.step,
          group: one.group,
          color: where().params.get("color"),
        }),
      },
      "side by side",
    ),
    same.length > 0 && [
      " · ",
      h(
        "a",
        { href: address("side", { uid: one.uid, color: where().params.get("color") }) },
        `the same prompt ${plural(same.length, "more time")}, in ${report.runs.length > 1 ? "all runs" : "other steps"}`,
      ),
    ],
  );
}

function copier(one) {
  const button = h(
    "button",
    {
      title: "y",
      class: "copy",
      onclick: async () => {
        await copy(JSON.stringify(exported(one), null, 1));
        button.textContent = "copied";
        setTimeout(() => (button.textContent = "copy JSON"), 1500);
      },
    },
    "copy JSON",
  );
  return button;
}

/** A trajectory as it is on the page, with the text of each block. */
function exported(one) {
  const { run, in: _, search: __, id: ___, blocks, ...rest } = one;
  return {
    run: run.name,
    ...rest,
    blocks: blocks.map((block) => ({ ...block, text: textOf(run, block) })),
  };
}

async function copy(text) {
  if (navigator.clipboard) return navigator.clipboard.writeText(text).catch(() => copyOld(text));
  return copyOld(text);
}

function copyOld(text) {
  const area = h("textarea", { value: text });
  document.body.append(area);
  area.select();
  document.execCommand("copy");
  area.remove();
}

function expand() {
  const folded = [...document.querySelectorAll(".detail details, .side details")];
  const open = folded.some((one) => !one.open);
  folded.forEach((one) => (one.open = open));
}

/** A message, or a stretch of tokens, with a head that can be folded. */
function said(role, body, isFolded, facts = [], kind = role, summary = body) {
  const text = typeof body === "string" ? h("div", { class: "text" }, body) : body;
  const preview =
    typeof summary === "string" ? summary.replace(/\s+/g, " ").trim().slice(0, 90) : null;
  return h(
    "details",
    { class: `said ${kind}`, open: !isFolded },
    h(
      "summary",
      {},
      h("b", {}, role),
      facts.map((fact) => h("span", { class: "chip" }, fact)),
      preview && h("small", { class: "preview" }, preview),
    ),
    text,
  );
}

function blockView(one, block, params) {
  if (block.kind === "again")
    return h(
      "p",
      { class: "note" },
      `A new token row, which begins with the ${plural(block.count, "token")} so far.`,
    );
  const count = block.tokens.length + (block.cut?.[1] ?? 0);
  const body = tokensOf(one, block, params);
  if (block.kind === "completion") {
    const turn = one.turns[block.turn];
    const facts = [
      one.turns.length > 1 || turn.reward !== one.reward
        ? `reward ${show(turn.judged ?? turn.reward)}`
        : null,
      turn.judged !== null && turn.judged !== turn.reward ? `env gave ${show(turn.reward)}` : null,
      plural(count, "token"),
      block.mask ? null : "not trained",
    ].filter(Boolean);
    const extra =
      turn.metadata !== "{}" &&
      h(
        "details",
        { class: "metadata" },
        h("summary", {}, "what the env said of it"),
        h("pre", {}, pretty(turn.metadata)),
      );
    const seen =
      block.action !== undefined &&
      one.run.vocabulary &&
      h(
        "details",
        { class: "metadata" },
        h("summary", {}, "the text that the env was given"),
        h("pre", {}, block.action),
      );
    return said(
      `turn ${block.turn + 1}`,
      h("div", {}, body, seen, extra),
      false,
      facts,
      "assistant turn",
    );
  }
  const names = { prompt: "prompt as tokens", reply: "reply of the env", target: "target" };
  return said(
    names[block.kind],
    body,
    block.kind === "prompt" || (block.kind === "reply" && count > 60),
    [plural(count, "token"), block.mask ? "trained" : null].filter(Boolean),
    block.kind,
    block.kind === "reply" ? textOf(one.run, block) : null,
  );
}

function pretty(text) {
  try {
    return JSON.stringify(JSON.parse(text), null, 1);
  } catch {
    return text;
  }
}
