"use strict";
// The trajectories of a group, or of one prompt, beside each other.

function sideView(params) {
  const uid = params.get("uid");
  const members = uid
    ? report.all.filter((one) => one.uid === uid)
    : report.all.filter((one) =>
        ["run", "step", "group"].every((key) => params.get(key) === String(naming(one)[key])),
      );
  if (!members.length)
    return [h("p", { class: "empty" }, "None of these trajectories is on this page.")];
  const [first] = members;
  const groups = [...new Set(members.map((one) => one.run.groups[one.in]))].map((group) =>
    members.filter((one) => one.run.groups[one.in] === group),
  );
  const head = uid
    ? `Prompt ${uid}, ${plural(groups.length, "time")} in ${plural(new Set(members.map((one) => one.run)).size, "run")}`
    : "A group side by side";
  return [
    h(
      "div",
      { class: "side" },
      h("h2", {}, head),
      said("prompt", lastUser(first), false, [], "user"),
      colorBar(params),
      groups.map((group) => columns(group, params)),
    ),
  ];
}

/** The trajectories of a group, one column each. */
function columns(members, params) {
  const [first] = members;
  const here = new Set(members.map((one) => one.sample));
  const others = first.rewards
    .filter(([sample]) => !here.has(sample))
    .map(([, value]) => show(value));
  return h(
    "section",
    {},
    h("h3", {}, runLabel(first.run), ` › step ${first.step} › group ${first.group}`),
    others.length > 0 &&
      h(
        "p",
        { class: "note" },
        `${plural(others.length, "more trajectory", "more trajectories")} of the group, not on this page: reward ${others.join(", ")}.`,
      ),
    h(
      "div",
      { class: "columns" },
      members.map((one) =>
        h(
          "article",
          { class: "card" },
          h(
            "header",
            {},
            h("a", { href: addressOf(one) }, `sample ${one.sample}`),
            h("span", { class: "gap" }),
            reward(one),
          ),
          h(
            "p",
            { class: "soft" },
            `advantage ${show(one.advantage)} · ${plural(one.tokens, "token")} · ${one.stop}`,
          ),
          one.blocks
            .filter(
              (block) =>
                block.kind === "completion" || block.kind === "target" || says(one.run, block),
            )
            .map((block) =>
              h(
                "div",
                { class: block.kind === "reply" ? "answer" : null },
                block.kind === "reply" && h("small", {}, "env"),
                tokensOf(one, block, params),
              ),
            ),
        ),
      ),
    ),
  );
}

/** True of a reply that is more than the ends of a chat template. */
function says(run, block) {
  return block.kind === "reply" && textOf(run, block).trim() !== "";
}
