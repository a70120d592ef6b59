"use strict";
// Tokens, and the numbers that colour them.

/** How tokens can be coloured: text, what it needs, value of a token, and what the colours mean. */
const COLORS = {
  logprob: {
    name: "log-prob",
    needs: "logprobs",
    value: (block, at) => sampledOnly(block, at, block.logprobs?.[at]),
    kind: "surprise",
    says: "how unlikely the sampler held the token",
  },
  advantage: {
    name: "advantage",
    needs: "advantages",
    value: (block, at) => (trained(block, at) ? block.advantages?.[at] : null),
    kind: "signed",
    says: "what the loss multiplies: more of it, or less",
  },
  mask: {
    name: "trained or masked",
    needs: null,
    value: (block, at) => (trained(block, at) ? 1 : null),
    kind: "flag",
    says: "tokens that contribute to the loss",
  },
  mismatch: {
    name: "trainer against sampler",
    needs: "mismatch",
    value: (block, at) => block.mismatch?.[at] ?? null,
    kind: "signed",
    says: "log of the mismatch ratio: old − sampler log-prob",
  },
  reference: {
    name: "policy against reference",
    needs: "reference",
    value: (block, at) => block.reference?.[at] ?? null,
    kind: "signed",
    says: "log of the ratio: policy − reference log-prob",
  },
  value: {
    name: "value",
    needs: "values",
    value: (block, at) => block.values?.[at] ?? null,
    kind: "signed",
    says: "the value model's estimate of the return",
  },
  none: { name: "no colour", needs: null, value: () => null, kind: "flag", says: "" },
};

function trained(block, at) {
  return block.mask === "all" || block.mask?.[at] === "1";
}

function sampledOnly(block, at, value) {
  return block.kind === "completion" && typeof value === "number" ? value : null;
}

function available(needs) {
  return !needs || report.all.some((one) => one.blocks.some((block) => block[needs]));
}

function coloring(params) {
  const wanted = params.get("color") ?? "logprob";
  return wanted in COLORS && available(COLORS[wanted].needs) ? wanted : "mask";
}

function colorBar(params) {
  const current = coloring(params);
  const option = ([key, { name, needs }]) =>
    h(
      "option",
      { value: key, selected: key === current, disabled: !available(needs) },
      available(needs) ? name : `${name} (none here)`,
    );
  return h(
    "div",
    { class: "colorbar" },
    h(
      "label",
      {},
      "colour ",
      h(
        "select",
        {
          id: "color",
          "aria-label": "colour of tokens",
          onchange: (event) => change({ color: event.target.value }),
        },
        Object.entries(COLORS).map(option),
      ),
    ),
    scaleOf(current),
    h("button", { class: "link", onclick: expand }, "unfold all"),
  );
}

/** What the colours mean. */
function scaleOf(current) {
  const { kind, says } = COLORS[current];
  const swatches = {
    surprise: [
      ["certain", "plain"],
      ["p < 0.1", "warm3"],
      ["p < 0.01", "warm5"],
    ],
    signed: [
      ["less", "warm5"],
      ["0", "plain"],
      ["more", "cool5"],
    ],
    flag:
      current === "mask"
        ? [
            ["trained", "cool3"],
            ["masked", "masked"],
          ]
        : [],
  }[kind];
  return h(
    "span",
    { class: "scale" },
    swatches.map(([text, name]) => h("span", { class: `token ${name}` }, text)),
    h("small", {}, says),
  );
}

/** The tokens of a block as spans; without a tokenizer its text. */
function tokensOf(one, block, params) {
  if (!one.run.vocabulary) {
    return h(
      "div",
      { class: "text" },
      block.action ??
        h("i", {}, `${plural(block.tokens.length, "token")}; the run's tokenizer was not at hand`),
    );
  }
  const { value, kind } = COLORS[coloring(params)];
  const scale = kind === "signed" ? greatest(one, value) : 1;
  const texts = pieces(one.run, block);
  const spans = texts.map((text, at) =>
    token(one, block, at, text, shade(kind, value(block, at), scale)),
  );
  if (block.cut)
    spans.splice(
      block.cut[0],
      0,
      h("span", { class: "omitted" }, ` … ${plural(block.cut[1], "token")} left out … `),
    );
  const holder = h("div", { class: "text tokens" }, spans);
  holder.about = { one, block };
  return holder;
}

function token(one, block, at, text, look) {
  const special = text === "" && !block.joined?.some(([place]) => place === at);
  const name = special
    ? one.run.ends.has(block.tokens[at])
      ? "⟨end⟩"
      : `⟨${block.tokens[at]}⟩`
    : visible(text);
  return h("span", { class: `token ${look}${special ? " special" : ""}`, "data-at": at }, name);
}

/** Line ends and control characters as signs. */
function visible(text) {
  return text
    .replaceAll("\n", "↵\n")
    .replace(
      /[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u200e\u200f\u202a-\u202e\u2066-\u2069]/g,
      (sign) => `\\x${sign.codePointAt(0).toString(16).padStart(2, "0")}`,
    );
}

/** A class from the value of a token: five shades each way. */
function shade(kind, value, scale) {
  if (value === null || value === undefined) return kind === "flag" ? "masked" : "plain";
  if (typeof value !== "number") return "broken";
  if (kind === "flag") return "cool3";
  if (kind === "surprise")
    return value > -0.1 ? "plain" : `warm${Math.min(5, Math.ceil(Math.sqrt(-value / 5) * 5))}`;
  const level = Math.min(5, Math.round((Math.abs(value) / scale) * 5));
  return level === 0 ? "plain" : `${value > 0 ? "cool" : "warm"}${level}`;
}

/** The greatest size of a value in the run: the end of its colour scale. */
function greatest(one, value) {
  one.run.greatest ??= new Map();
  if (!one.run.greatest.has(value)) {
    let most = 0.01;
    for (const other of one.run.trajectories)
      for (const block of other.blocks)
        for (let at = 0; at < block.tokens.length; at++) {
          const size = Math.abs(value(block, at) ?? 0);
          if (size > most) most = size;
        }
    one.run.greatest.set(value, most);
  }
  return one.run.greatest.get(value);
}

/** Everything about one token, in words. */
function aboutToken(block, at, run) {
  const place = block.start + at + (block.cut && at >= block.cut[0] ? block.cut[1] : 0);
  const logprob = block.logprobs?.[at];
  const signed = (value) =>
    typeof value === "number" && value > 0 ? `+${show(value)}` : show(value);
  return [
    `token ${place}`,
    `id ${block.tokens[at]}`,
    JSON.stringify(pieces(run, block)[at]),
    typeof logprob === "number" && block.kind === "completion"
      ? `p ${show(Math.exp(logprob))} (log ${show(logprob)})`
      : null,
    block.advantages && trained(block, at) ? `advantage ${signed(block.advantages[at])}` : null,
    block.values ? `value ${show(block.values[at])}` : null,
    block.mismatch ? `trainer − sampler ${signed(block.mismatch[at])}` : null,
    block.reference ? `policy − reference ${signed(block.reference[at])}` : null,
    trained(block, at) ? "trained" : "not trained",
  ]
    .filter(Boolean)
    .join(" · ");
}

/** Shows what is known about the token under the pointer or the arrow keys. */
function point(span) {
  document.querySelectorAll(".token.here").forEach((one) => one.classList.remove("here"));
  let bar = document.getElementById("token");
  if (!span) return bar?.remove();
  span.classList.add("here");
  const { one, block } = span.closest(".tokens").about;
  bar ??= document.body.appendChild(h("output", { id: "token" }));
  bar.textContent = aboutToken(block, Number(span.dataset.at), one.run);
}

function moveToken(shift) {
  const all = [
    ...document.querySelectorAll(".detail .token[data-at], .side .token[data-at]"),
  ].filter((span) => span.checkVisibility?.() ?? true);
  const at = all.findIndex((span) => span.classList.contains("here"));
  const next =
    all[
      at === -1
        ? all.findIndex((span) => span.closest(".assistant"))
        : Math.max(0, Math.min(all.length - 1, at + shift))
    ];
  if (next) {
    point(next);
    next.scrollIntoView({ block: "nearest" });
  }
}
