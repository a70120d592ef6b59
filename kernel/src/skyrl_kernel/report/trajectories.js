"use strict";
// The list of trajectories with its filters, one trajectory turn by turn, and
// several beside each other.

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

/** How tokens can be coloured: text, what it needs, value of a token, and what the colours mean. */
const COLORS = {
  logprob: { name: "log-prob", needs: "logprobs", value: (block, at) => sampledOnly(block, at, block.logprobs?.[at]), kind: "surprise", says: "how unlikely the sampler held the token" },
  advantage: { name: "advantage", needs: "advantages", value: (block, at) => (trained(block, at) ? block.advantages?.[at] : null), kind: "signed", says: "what the loss multiplies: more of it, or less" },
  mask: { name: "trained or masked", needs: null, value: (block, at) => (trained(block, at) ? 1 : null), kind: "flag", says: "tokens that contribute to the loss" },
  mismatch: { name: "trainer against sampler", needs: "mismatch", value: (block, at) => block.mismatch?.[at] ?? null, kind: "signed", says: "log of the mismatch ratio: old − sampler log-prob" },
  reference: { name: "policy against reference", needs: "reference", value: (block, at) => block.reference?.[at] ?? null, kind: "signed", says: "log of the ratio: policy − reference log-prob" },
  value: { name: "value", needs: "values", value: (block, at) => block.values?.[at] ?? null, kind: "signed", says: "the value model's estimate of the return" },
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

// --- the list --------------------------------------------------------------------------

const FILTERS = { run: (one) => one.run.name, env: (one) => one.env, source: (one) => one.source ?? "none", stop: (one) => one.stop, picked: (one) => one.picked };

/** The trajectories that pass the filters, sorted. */
function filtered(params) {
  const words = (params.get("q") ?? "").toLowerCase().trim();
  const bounds = [["min", "reward"], ["max", "reward"], ["from", "step"], ["to", "step"]].filter(([key]) => params.get(key));
  const exact = Object.entries(FILTERS).filter(([key]) => params.get(`only_${key}`));
  const kept = report.all.filter((one) =>
    exact.every(([key, value]) => value(one) === params.get(`only_${key}`))
    && bounds.every(([key, field]) => one[field] !== null && (key === "min" || key === "from" ? one[field] >= Number(params.get(key)) : one[field] <= Number(params.get(key))))
    && (!words || searchable(one).includes(words)));
  const [, value] = SORTS[params.get("sort")] ?? SORTS.step;
  return kept.map((one) => [value(one), one]).sort((a, b) => a[0] - b[0]).map(([, one]) => one);
}

function trajectoriesView(params) {
  const found = filtered(params);
  const current = named(params) ?? null;
  const missing = !current && params.has("sample");
  const shown = current ?? (!missing && matchMedia("(min-width: 900px)").matches ? found[0] ?? null : null);
  return [h("div", { class: `split${current || missing ? " chosen" : ""}` },
    h("section", { class: "list", "aria-label": "trajectories" }, filters(params, found.length), list(found, shown)),
    h("section", { class: "detail", "aria-label": "trajectory" }, shown ? detail(shown, params, found) : h("p", { class: "empty" }, missing ? `Sample ${params.get("sample")} of group ${params.get("group")} in step ${params.get("step")} of ${params.get("run")} is not on this page.` : report.all.length ? "Choose a trajectory." : "There are no trajectories on this page.")))];
}

function filters(params, count) {
  const select = (key, label) => {
    const values = [...new Set(report.all.map(FILTERS[key]))].sort();
    return values.length > 1 && h("select", { id: `only_${key}`, "aria-label": label, onchange: (event) => change({ [`only_${key}`]: event.target.value }) },
      h("option", { value: "" }, `any ${label}`), values.map((value) => h("option", { value, selected: params.get(`only_${key}`) === value }, value)));
  };
  const number = (key, label) => h("input", { id: key, type: "number", step: "any", placeholder: label, "aria-label": label, value: params.get(key) ?? "", oninput: (event) => change({ [key]: event.target.value }) });
  return h("form", { class: "filters", onsubmit: (event) => event.preventDefault() },
    h("input", { id: "q", type: "search", placeholder: "search prompts, answers, ids  ( / )", "aria-label": "search", value: params.get("q") ?? "", oninput: (event) => change({ q: event.target.value }) }),
    h("select", { id: "sort", "aria-label": "sort by", onchange: (event) => change({ sort: event.target.value }) },
      Object.entries(SORTS).filter(([key]) => !["adv", "low"].includes(key) || available("advantages")).map(([key, [text]]) => h("option", { value: key, selected: (params.get("sort") ?? "step") === key }, `by ${text}`))),
    select("run", "run"), select("env", "env"), select("source", "data source"), select("stop", "stop reason"), select("picked", "pick"),
    h("span", { class: "pair" }, number("min", "least reward"), number("max", "greatest reward")),
    h("span", { class: "pair" }, number("from", "from step"), number("to", "to step")),
    h("p", { class: "count" }, `${plural(count, "trajectory", "trajectories")} `,
      [...params.keys()].some((key) => key.startsWith("only_") || ["q", "min", "max", "from", "to"].includes(key))
        && h("button", { type: "button", class: "link", onclick: () => go("trajectories", { sort: params.get("sort"), color: params.get("color") }) }, "show all")));
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
  return h("li", {}, h("a", { href: addressOf(one), "aria-current": isCurrent ? "true" : null, onclick: (event) => { event.preventDefault(); change(naming(one), false); } },
    h("span", { class: "line" }, report.runs.length > 1 && h("span", { class: "swatch", style: { background: one.run.color }, title: one.run.name }),
      h("b", {}, `step ${one.step}`), ` · ${one.uid}/${one.sample}`, one.picked !== "group" && h("em", {}, one.picked), h("span", { class: "gap" }), reward(one)),
    h("span", { class: "line soft" }, h("span", { class: "snippet" }, snippet(one)), h("span", { class: "gap" }), `${one.tokens} tok`, one.stop !== "stop" && h("em", { class: "warn" }, one.stop))));
}

function snippet(one) {
  return lastUser(one).replace(/\s+/g, " ").slice(-160);
}

function lastUser(one) {
  const user = one.messages.filter((message) => message.role === "user");
  return (user[user.length - 1] ?? one.messages[one.messages.length - 1] ?? { content: "" }).content;
}

function reward(one) {
  if (one.reward === null) return h("span", { class: "reward" }, "not judged");
  const spread = one.rewards.map(([, value]) => value).filter((value) => typeof value === "number");
  const level = one.reward > 0 && one.reward >= Math.max(...spread) ? "high" : one.reward <= 0 ? "low" : "mid";
  return h("span", { class: `reward ${level}` }, `${level === "high" ? "▲" : level === "low" ? "▽" : "◆"} ${show(one.reward)}`);
}

function addressOf(one) {
  const kept = Object.fromEntries([...where().params].filter(([key]) => key === "color" || key === "sort" || key === "q" || key.startsWith("only_")));
  return address("trajectories", { ...kept, ...naming(one) });
}

// --- one trajectory --------------------------------------------------------------------

function detail(one, params, found) {
  const place = found.indexOf(one);
  const step = one.run.steps.find((each) => each.step === one.step);
  const neighbour = (shift) => found[place + shift];
  const jump = (shift, label, key) => h("button", { disabled: !neighbour(shift), title: key, onclick: () => change(naming(neighbour(shift))) }, label);
  return h("article", { "data-id": one.id },
    h("nav", { class: "crumbs", "aria-label": "where" },
      h("button", { class: "back", onclick: () => change({ run: "", step: "", group: "", sample: "" }, false) }, "← list"),
      runLabel(one.run), " › ", stepPicker(one), " › ", h("a", { href: address("side", { run: one.run.name, step: one.step, group: one.group, color: params.get("color") }) }, `group ${one.group}`), ` › sample ${one.sample}`,
      h("span", { class: "gap" }), jump(-1, "previous", "k"), jump(1, "next", "j"), copier(one)),
    facts(one),
    step && h("details", { class: "step" }, h("summary", {}, `All ${plural(step.trajectories, "trajectory", "trajectories")} of step ${one.step}`),
      h("div", { class: "pairs" }, h("div", {}, h("small", {}, "reward"), bars(step.rewards, one.reward, "rewards of the step")), h("div", {}, h("small", {}, "tokens"), bars(step.tokens, one.tokens, "lengths of the step")))),
    siblings(one),
    colorBar(params),
    one.messages.map((message) => said(message.role, message.content, message.role !== "user")),
    one.blocks.map((block) => blockView(one, block, params)));
}

/** Steps that have trajectories on the page; the same prompt where it is there. */
function stepPicker(one) {
  const steps = [...new Set(one.run.trajectories.map((other) => other.step))];
  return h("select", { id: "step", "aria-label": "step", onchange: (event) => change(naming(inStep(one, Number(event.target.value))), false) },
    steps.map((step) => h("option", { value: step, selected: step === one.step }, `step ${step}`)));
}

function inStep(one, step) {
  const all = one.run.trajectories.filter((other) => other.step === step);
  return all.find((other) => other.uid === one.uid) ?? all[0];
}

function facts(one) {
  const fact = (label, ...value) => h("div", { class: "fact" }, h("small", {}, label), h("span", {}, value));
  const versions = one.versions && (one.versions[0] === one.versions[1] ? one.versions[0] : `${one.versions[0]}–${one.versions[1]}`);
  const parts = Object.entries(one.components);
  return h("div", { class: "facts" },
    fact("reward", reward(one)),
    (parts.length > 1 || (parts.length === 1 && parts[0][1] !== one.reward)) && fact("made of", parts.map(([name, value]) => `${name} ${show(value)}`).join(" + ")),
    fact("advantage", show(one.advantage)),
    fact("tokens", show(one.tokens)), fact("turns", show(one.turns.length)), one.segments > 1 && fact("token rows", show(one.segments)),
    fact("ended by", h("span", { class: one.stop === "stop" ? null : "warn" }, one.stop)),
    one.logprob !== null && fact("mean log-prob", show(one.logprob)),
    fact("env", one.env), one.source && fact("data source", one.source),
    versions !== null && fact("policy version", show(versions)),
    Object.entries(one.env_metrics).map(([name, value]) => fact(name, show(value))),
    timing(one));
}

/** Where the seconds of an episode went. */
function timing(one) {
  const total = one.timings.total;
  if (!total) return null;
  const parts = Object.entries(one.timings).filter(([name]) => name !== "total");
  const rest = total - parts.reduce((sum, [, value]) => sum + value, 0);
  const all = [...parts, ...(rest > 0.005 * total ? [["waiting", rest]] : [])];
  return h("div", { class: "fact wide" }, h("small", {}, `${seconds(total)}: ${all.map(([name, value]) => `${name} ${seconds(value)}`).join(", ")}`),
    h("span", { class: "stretch", "aria-hidden": "true" }, all.map(([, value], place) => h("i", { style: { width: `${(100 * value) / total}%`, background: `var(--run${place})` } }))));
}

/** The other trajectories of the group, those that are on the page as links; lost ones. */
function siblings(one) {
  const here = new Map(one.run.trajectories.filter((other) => other.step === one.step && other.group === one.group).map((other) => [other.sample, other]));
  const lost = one.run.failures.filter((failure) => failure.step === one.step && failure.uid === one.uid);
  const same = report.all.filter((other) => other.uid === one.uid && !(other.run === one.run && other.step === one.step));
  return h("p", { class: "siblings" }, `Rewards of the group: `,
    one.rewards.map(([sample, value]) => (here.has(sample)
      ? h("a", { class: "cell", href: addressOf(here.get(sample)), "aria-current": sample === one.sample ? "true" : null, title: `sample ${sample}` }, show(value))
      : h("span", { class: "cell absent", title: `sample ${sample} is not on this page` }, show(value)))),
    lost.map((failure) => h("a", { class: "cell lost", href: address("failures", { q: failure.uid }), title: failure.message }, `lost: ${failure.kind}`)),
    " ", h("a", { href: address("side", { run: one.run.name, step: one.step, group: one.group, color: where().params.get("color") }) }, "side by side"),
    same.length > 0 && [" · ", h("a", { href: address("side", { uid: one.uid, color: where().params.get("color") }) }, `the same prompt ${plural(same.length, "more time")}, in ${report.runs.length > 1 ? "all runs" : "other steps"}`)]);
}

function copier(one) {
  const button = h("button", { title: "y", class: "copy", onclick: async () => {
    await copy(JSON.stringify(exported(one), null, 1));
    button.textContent = "copied";
    setTimeout(() => (button.textContent = "copy JSON"), 1500);
  } }, "copy JSON");
  return button;
}

/** A trajectory as it is on the page, with the text of each block. */
function exported(one) {
  const { run, in: _, search: __, id: ___, blocks, ...rest } = one;
  return { run: run.name, ...rest, blocks: blocks.map((block) => ({ ...block, text: textOf(run, block) })) };
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

// --- text and tokens -------------------------------------------------------------------

function colorBar(params) {
  const current = coloring(params);
  const option = ([key, { name, needs }]) => h("option", { value: key, selected: key === current, disabled: !available(needs) }, available(needs) ? name : `${name} (none here)`);
  return h("div", { class: "colorbar" },
    h("label", {}, "colour ", h("select", { id: "color", "aria-label": "colour of tokens", onchange: (event) => change({ color: event.target.value }) }, Object.entries(COLORS).map(option))),
    scaleOf(current),
    h("button", { class: "link", onclick: expand }, "unfold all"));
}

/** What the colours mean. */
function scaleOf(current) {
  const { kind, says } = COLORS[current];
  const swatches = { surprise: [["certain", "plain"], ["p < 0.1", "warm3"], ["p < 0.01", "warm5"]], signed: [["less", "warm5"], ["0", "plain"], ["more", "cool5"]], flag: current === "mask" ? [["trained", "cool3"], ["masked", "masked"]] : [] }[kind];
  return h("span", { class: "scale" }, swatches.map(([text, name]) => h("span", { class: `token ${name}` }, text)), h("small", {}, says));
}

/** True of a reply that is more than the ends of a chat template. */
function says(run, block) {
  return block.kind === "reply" && textOf(run, block).trim() !== "";
}

function expand() {
  const folded = [...document.querySelectorAll(".detail details, .side details")];
  const open = folded.some((one) => !one.open);
  folded.forEach((one) => (one.open = open));
}

/** A message, or a stretch of tokens, with a head that can be folded. */
function said(role, body, isFolded, facts = [], kind = role, summary = body) {
  const text = typeof body === "string" ? h("div", { class: "text" }, body) : body;
  const preview = typeof summary === "string" ? summary.replace(/\s+/g, " ").trim().slice(0, 90) : null;
  return h("details", { class: `said ${kind}`, open: !isFolded }, h("summary", {}, h("b", {}, role), facts.map((fact) => h("span", { class: "chip" }, fact)), preview && h("small", { class: "preview" }, preview)), text);
}

function blockView(one, block, params) {
  if (block.kind === "again") return h("p", { class: "note" }, `A new token row, which begins with the ${plural(block.count, "token")} so far.`);
  const count = block.tokens.length + (block.cut?.[1] ?? 0);
  const body = tokensOf(one, block, params);
  if (block.kind === "completion") {
    const turn = one.turns[block.turn];
    const facts = [
      one.turns.length > 1 || turn.reward !== one.reward ? `reward ${show(turn.judged ?? turn.reward)}` : null,
      turn.judged !== null && turn.judged !== turn.reward ? `env gave ${show(turn.reward)}` : null,
      plural(count, "token"),
      block.mask ? null : "not trained",
    ].filter(Boolean);
    const extra = turn.metadata !== "{}" && h("details", { class: "metadata" }, h("summary", {}, "what the env said of it"), h("pre", {}, pretty(turn.metadata)));
    const seen = block.action !== undefined && one.run.vocabulary && h("details", { class: "metadata" }, h("summary", {}, "the text that the env was given"), h("pre", {}, block.action));
    return said(`turn ${block.turn + 1}`, h("div", {}, body, seen, extra), false, facts, "assistant turn");
  }
  const names = { prompt: "prompt as tokens", reply: "reply of the env", target: "target" };
  return said(names[block.kind], body, block.kind === "prompt" || (block.kind === "reply" && count > 60), [plural(count, "token"), block.mask ? "trained" : null].filter(Boolean), block.kind, block.kind === "reply" ? textOf(one.run, block) : null);
}

function pretty(text) {
  try {
    return JSON.stringify(JSON.parse(text), null, 1);
  } catch {
    return text;
  }
}

/** The tokens of a block as spans; without a tokenizer its text. */
function tokensOf(one, block, params) {
  if (!one.run.vocabulary) {
    return h("div", { class: "text" }, block.action ?? h("i", {}, `${plural(block.tokens.length, "token")}; the run's tokenizer was not at hand`));
  }
  const { value, kind } = COLORS[coloring(params)];
  const scale = kind === "signed" ? greatest(one, value) : 1;
  const texts = pieces(one.run, block);
  const spans = texts.map((text, at) => token(one, block, at, text, shade(kind, value(block, at), scale)));
  if (block.cut) spans.splice(block.cut[0], 0, h("span", { class: "omitted" }, ` … ${plural(block.cut[1], "token")} left out … `));
  const holder = h("div", { class: "text tokens" }, spans);
  holder.about = { one, block };
  return holder;
}

function token(one, block, at, text, look) {
  const special = text === "" && !block.joined?.some(([place]) => place === at);
  const name = special ? (one.run.ends.has(block.tokens[at]) ? "⟨end⟩" : `⟨${block.tokens[at]}⟩`) : visible(text);
  return h("span", { class: `token ${look}${special ? " special" : ""}`, "data-at": at }, name);
}

/** Line ends and control characters as signs. */
function visible(text) {
  return text.replaceAll("\n", "↵\n").replace(/[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u200e\u200f\u202a-\u202e\u2066-\u2069]/g, (sign) => `\\x${sign.codePointAt(0).toString(16).padStart(2, "0")}`);
}

/** A class from the value of a token: five shades each way. */
function shade(kind, value, scale) {
  if (value === null || value === undefined) return kind === "flag" ? "masked" : "plain";
  if (typeof value !== "number") return "broken";
  if (kind === "flag") return "cool3";
  if (kind === "surprise") return value > -0.1 ? "plain" : `warm${Math.min(5, Math.ceil(Math.sqrt(-value / 5) * 5))}`;
  const level = Math.min(5, Math.round((Math.abs(value) / scale) * 5));
  return level === 0 ? "plain" : `${value > 0 ? "cool" : "warm"}${level}`;
}

/** The greatest size of a value in the run: the end of its colour scale. */
function greatest(one, value) {
  one.run.greatest ??= new Map();
  if (!one.run.greatest.has(value)) {
    let most = 0.01;
    for (const other of one.run.trajectories) for (const block of other.blocks) for (let at = 0; at < block.tokens.length; at++) {
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
  const signed = (value) => (typeof value === "number" && value > 0 ? `+${show(value)}` : show(value));
  return [
    `token ${place}`, `id ${block.tokens[at]}`, JSON.stringify(pieces(run, block)[at]),
    typeof logprob === "number" && block.kind === "completion" ? `p ${show(Math.exp(logprob))} (log ${show(logprob)})` : null,
    block.advantages && trained(block, at) ? `advantage ${signed(block.advantages[at])}` : null,
    block.values ? `value ${show(block.values[at])}` : null,
    block.mismatch ? `trainer − sampler ${signed(block.mismatch[at])}` : null,
    block.reference ? `policy − reference ${signed(block.reference[at])}` : null,
    trained(block, at) ? "trained" : "not trained",
  ].filter(Boolean).join(" · ");
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
  const all = [...document.querySelectorAll(".detail .token[data-at], .side .token[data-at]")].filter((span) => span.checkVisibility?.() ?? true);
  const at = all.findIndex((span) => span.classList.contains("here"));
  const next = all[at === -1 ? all.findIndex((span) => span.closest(".assistant")) : Math.max(0, Math.min(all.length - 1, at + shift))];
  if (next) {
    point(next);
    next.scrollIntoView({ block: "nearest" });
  }
}

// --- beside each other -----------------------------------------------------------------

function sideView(params) {
  const uid = params.get("uid");
  const members = uid
    ? report.all.filter((one) => one.uid === uid)
    : report.all.filter((one) => ["run", "step", "group"].every((key) => params.get(key) === String(naming(one)[key])));
  if (!members.length) return [h("p", { class: "empty" }, "None of these trajectories is on this page.")];
  const [first] = members;
  const groups = [...new Set(members.map((one) => one.run.groups[one.in]))].map((group) => members.filter((one) => one.run.groups[one.in] === group));
  const head = uid ? `Prompt ${uid}, ${plural(groups.length, "time")} in ${plural(new Set(members.map((one) => one.run)).size, "run")}` : "A group side by side";
  return [h("div", { class: "side" }, h("h2", {}, head), said("prompt", lastUser(first), false, [], "user"), colorBar(params), groups.map((group) => columns(group, params)))];
}

/** The trajectories of a group, one column each. */
function columns(members, params) {
  const [first] = members;
  const here = new Set(members.map((one) => one.sample));
  const others = first.rewards.filter(([sample]) => !here.has(sample)).map(([, value]) => show(value));
  return h("section", {},
    h("h3", {}, runLabel(first.run), ` › step ${first.step} › group ${first.group}`),
    others.length > 0 && h("p", { class: "note" }, `${plural(others.length, "more trajectory", "more trajectories")} of the group, not on this page: reward ${others.join(", ")}.`),
    h("div", { class: "columns" }, members.map((one) => h("article", { class: "card" },
      h("header", {}, h("a", { href: addressOf(one) }, `sample ${one.sample}`), h("span", { class: "gap" }), reward(one)),
      h("p", { class: "soft" }, `advantage ${show(one.advantage)} · ${plural(one.tokens, "token")} · ${one.stop}`),
      one.blocks.filter((block) => block.kind === "completion" || block.kind === "target" || says(one.run, block)).map((block) =>
        h("div", { class: block.kind === "reply" ? "answer" : null }, block.kind === "reply" && h("small", {}, "env"), tokensOf(one, block, params)))))));
}
