"""One page per report: what is in it, what is left out, and that nothing in it can run."""

import html
import json
import re
import shutil
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

import skyrl_kernel.report as report_package
from skyrl_kernel.cli.report import report as command
from skyrl_kernel.credited import Credited
from skyrl_kernel.errors import ResumeError, UsageError
from skyrl_kernel.records import (
    Failure,
    Group,
    Prompt,
    Reward,
    Scored,
    Scores,
    Segment,
    StopReason,
    TokenAdvantages,
    Trajectory,
    Turn,
)
from skyrl_kernel.report import Report, build_report
from skyrl_kernel.report.page import pack, render, unpack
from skyrl_kernel.report.runs import MAX_FAILURES, MAX_LINES
from skyrl_kernel.report.text import Pieces
from skyrl_kernel.report.trajectories import HEAD, TAIL, histogram
from skyrl_kernel.run import RunFolder
from skyrl_kernel.testing.scripted import CharTokenizer, Script, installed, run_scripted

ATTACK = "</script><script>alert(1)</script><img src=x onerror=alert(2)>"
TOKENIZER = CharTokenizer()
WORDS = ["seven", "times", "eight", "is", "plus", "four", "carry", "the", "one", "\\boxed{60}"]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with installed(tmp_path_factory.mktemp("site")) as folder:
        yield folder


@pytest.fixture(scope="module")
def two_turns(site: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A real run of two steps and two turns, whose model answers with HTML; one prompt is lost."""
    folder = tmp_path_factory.mktemp("runs")
    rows = [
        {"prompt": [{"role": "user", "content": f"{ATTACK} {n}"}], "rewards": [0.25, float(n % 2)],
         "replies": ["<b>again</b>"], "fault": "step raise" if n == 3 else None}
        for n in range(4)
    ]  # fmt: skip
    data = folder / "train.parquet"
    pq.write_table(pa.Table.from_pylist(rows), data)
    return run_two_turns(folder, data, "trainer.run_name=two_turns")


def run_two_turns(folder: Path, data: Path, *more: str) -> Path:
    words = [
        f"data.train_data=['{data}']", "data.val_data=['scripted:2']", "generator.max_turns=2",
        "generator.sampling_params.max_generate_length=100", *more,
    ]  # fmt: skip
    return run_scripted(folder, *words, script=Script(reply=lambda ask: ATTACK)).folder


def page_of(*paths: Path, **limits: int) -> tuple[Report, list[dict]]:
    made = build_report(paths, **limits)
    return made, unpack(made.html)["runs"]


def text_of(run: dict, block: dict) -> str:
    """What a block's tokens say, from the page's own vocabulary."""
    texts = dict(zip(run["vocabulary"]["ids"], run["vocabulary"]["texts"], strict=True))
    joined = dict(map(tuple, block.get("joined", ())))
    return "".join(joined.get(at, texts[token]) for at, token in enumerate(block["tokens"]))


# --- what is on the page ------------------------------------------------------------------------


def test_curves_are_those_of_metrics_jsonl(two_turns: Path) -> None:
    _, (run,) = page_of(two_turns)
    lines = RunFolder(two_turns).read_metrics()
    assert run["metrics"]["steps"] == [line["step"] for line in lines]
    columns = run["metrics"]["columns"]
    assert set(columns) == {name for line in lines for name in line} - {"step"}
    for name, column in columns.items():
        for line, value in zip(lines, column, strict=True):
            expected = line.get(name)
            assert value == (None if expected is None else pytest.approx(expected, rel=1e-5)), name


def test_a_trajectory_is_told_turn_by_turn(two_turns: Path) -> None:
    _, (run,) = page_of(two_turns)
    one = next(one for one in run["trajectories"] if one["reward"] == 1.25)
    assert [turn["reward"] for turn in one["turns"]] == [0.25, 1.0]
    assert json.loads(one["turns"][1]["metadata"])["turn"] == 2
    kinds = [block["kind"] for block in one["blocks"]]
    assert kinds[:4] == ["prompt", "completion", "reply", "completion"]
    _, first, reply, second = one["blocks"][:4]
    assert text_of(run, first) == text_of(run, second) == ATTACK
    assert "<b>again</b>" in text_of(run, reply)
    assert (first["turn"], second["turn"]) == (0, 1)
    assert (first["mask"], "mask" in reply) == ("all", False)
    assert len(first["logprobs"]) == len(first["tokens"])
    assert "logprobs" not in reply
    assert run["groups"][one["in"]]["messages"][0]["content"].startswith(ATTACK)


def test_rows_of_single_turns_do_not_repeat_what_was_said_before(
    two_turns: Path, site: Path, tmp_path: Path
) -> None:
    data = two_turns.parent / "train.parquet"
    words = ("generator.step_wise_trajectories=true", "trainer.run_name=rows")
    _, (run,) = page_of(run_two_turns(tmp_path, data, *words))
    one = run["trajectories"][0]
    assert one["segments"] == 2
    prompt, first, again, reply, second = one["blocks"][:5]
    assert [block["kind"] for block in (prompt, first, again)] == ["prompt", "completion", "again"]
    length = len(run["groups"][one["in"]]["prompt"]) + len(first["tokens"])
    assert (again["tokens"], again["count"]) == ([], length)
    assert reply["start"] == length
    assert "<b>again</b>" in text_of(run, reply)
    assert text_of(run, second) == ATTACK


def test_per_token_numbers_are_those_of_the_trajectory_file(two_turns: Path) -> None:
    _, (run,) = page_of(two_turns)
    rows = {
        (step, row["group"], row["sample"]): row
        for step in (1, 2)
        for row in RunFolder(two_turns).read_trajectories(step)
    }
    assert len(run["trajectories"]) == len(rows) > 0
    for one in run["trajectories"]:
        group = run["groups"][one["in"]]
        (segment,) = rows[group["step"], group["group"], one["sample"]]["segments"]
        assert group["prompt"] == segment["tokens"][: segment["num_prompt_tokens"]]
        for block in one["blocks"][1:]:
            stretch = slice(block["start"], block["start"] + len(block["tokens"]))
            assert block["tokens"] == segment["tokens"][stretch]
            for name in ("logprobs", "advantages"):
                if block["kind"] == "completion" and segment.get(name) is not None:
                    assert block[name] == pytest.approx(segment[name][stretch], abs=1e-4)


def test_lost_trajectories_are_counted_and_told(two_turns: Path) -> None:
    _, (run,) = page_of(two_turns)
    assert run["failure_counts"] == [["task", "scripted", 2]]
    assert len(run["failures"]) == 2
    assert "the row asked for it" in run["failures"][0]["message"]


def test_settings_say_where_they_came_from(two_turns: Path) -> None:
    _, (run,) = page_of(two_turns)
    assert run["config"]["generator.max_turns"] == 2
    assert run["origins"]["generator.max_turns"] == "command line"
    assert run["origins"]["trainer.strategy"] == "preset scripted"
    assert run["origins"]["trainer.seed"] == "default"
    assert ["backend/scripted", "skyrl-scripted", "0.1.0"] in run["plugins"]


def test_two_runs_of_one_name_are_told_apart_by_their_folders(
    two_turns: Path, tmp_path: Path
) -> None:
    copies = [copied(two_turns, tmp_path / "copies" / name / "run") for name in ("a", "b")]
    _, runs = page_of(*copies)
    assert [run["name"] for run in runs] == ["a/run", "b/run"]


def copied(source: Path, target: Path) -> Path:
    return Path(shutil.copytree(source, target))


def test_the_same_folder_makes_the_same_page(two_turns: Path) -> None:
    assert build_report([two_turns]).html == build_report([two_turns]).html


# --- nothing in it runs, nothing is loaded --------------------------------------------------------


def test_what_a_model_wrote_is_nowhere_in_the_html(two_turns: Path) -> None:
    page = build_report([two_turns]).html
    assert "alert(" not in page
    assert page.count("<script") == page.count("</script>") == 2  # the data and the page's own


def test_the_page_refers_to_nothing_outside(two_turns: Path) -> None:
    page = build_report([two_turns]).html
    addresses = set(re.findall(r"""[a-z]+://[^\s"'`]+""", page))
    assert addresses == {"http://www.w3.org/2000/svg"}  # the name of SVG, which is not fetched
    assert not re.search(r"<(link|img|iframe|object|embed)\b|@import|url\(", page)
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', page)
    assert policy
    assert html.unescape(policy[1]).startswith("default-src 'none'; script-src 'sha256-")


def colours(style: str) -> dict[str, list[int]]:
    """``--name`` → red, green, blue."""
    found = {}
    for name, value in re.findall(r"--([\w-]+): ([^;]+);", style):
        if value.startswith("#"):
            digits = value[1:] if len(value) == 7 else "".join(2 * digit for digit in value[1:])
            found[name] = [int(digits[at : at + 2], 16) for at in (0, 2, 4)]
        else:
            found[name] = [int(part) for part in value.split()]
    return found


def contrast(one: Sequence[float], other: Sequence[float]) -> float:
    """Between 1 and 21, as the accessibility guidelines for the web define it."""

    def luminance(colour: Sequence[float]) -> float:
        parts = [part / 255 for part in colour]
        linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
        return sum(
            weight * part for weight, part in zip((0.2126, 0.7152, 0.0722), linear, strict=True)
        )

    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stands_out_from_every_ground(scheme: str) -> None:
    style = (Path(report_package.__file__).parent / "page.css").read_text()
    light, dark = re.findall(r":root \{(.*?)\}", style, re.DOTALL)
    own = colours(light) | (colours(dark) if scheme == "dark" else {})
    for text in ("ink", "soft", "accent", "good", "bad"):
        assert contrast(own[text], own["bg"]) > 4.5, text
        assert contrast(own[text], own["card"]) > 4.5, text
    for line in range(6):
        assert contrast(own[f"run{line}"], own["card"]) > 3, line
    for name, alpha in re.findall(r"background: rgb\(var\(--(warm|cool)\) / ([.\d]+)\)", style):
        share = float(alpha)
        ground = [share * a + (1 - share) * b for a, b in zip(own[name], own["card"], strict=True)]
        assert contrast(own["ink"], ground) > 4.5, (name, alpha)


def test_a_title_is_text_and_places_in_the_data_are_not_filled() -> None:
    page = render("<i>{{data}}</i>", {"runs": "{{script}} {{title}}"})
    assert "<title>&lt;i&gt;{{data}}&lt;/i&gt;</title>" in page
    assert unpack(page) == {"runs": "{{script}} {{title}}"}


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.text(), st.lists))
def test_any_data_come_back(value: object) -> None:
    def plain(one: object) -> object:
        if isinstance(one, str):
            return one.encode("utf-8", "replace").decode()
        return [plain(each) for each in one] if isinstance(one, list) else one

    packed = pack({"value": value})
    assert not re.search(r"[^A-Za-z0-9+/=]", packed)
    assert unpack(f'<script id="data" type="x">{packed}</script>') == {"value": plain(value)}


# --- older files, other tokenizers ----------------------------------------------------------------


def test_without_advantages_in_the_files_the_page_says_so(two_turns: Path, tmp_path: Path) -> None:
    run = copied(two_turns, tmp_path / "old")
    for path in (run / "trajectories").iterdir():
        pq.write_table(
            without_columns(pq.read_table(path), {"advantages", "old_logprobs", "ref_logprobs"}),
            path,
        )
    made, (page,) = page_of(run)
    assert any("no advantage per token" in note for note in made.notes)
    assert all(one["advantage"] is None for one in page["trajectories"])
    assert all(one["logprob"] is not None for one in page["trajectories"])


def without_columns(table: pa.Table, names: set[str]) -> pa.Table:
    """The table as an earlier version wrote it."""
    place = table.schema.get_field_index("segments")
    struct = table.schema.field(place).type.value_type
    kept = pa.struct([field for field in struct if field.name not in names])
    rows = [
        [{k: v for k, v in one.items() if k not in names} for one in row]
        for row in table.column(place).to_pylist()
    ]
    return table.set_column(place, "segments", pa.array(rows, pa.list_(kept)))


def test_a_damaged_file_is_left_out_and_named(two_turns: Path, tmp_path: Path) -> None:
    run = copied(two_turns, tmp_path / "damaged")
    path = run / "trajectories" / "step_2.parquet"
    path.write_bytes(path.read_bytes()[:200])
    made, (page,) = page_of(run)
    assert any(note.startswith("step_2.parquet is left out, for it cannot") for note in made.notes)
    assert {group["step"] for group in page["groups"]} == {1}


def test_without_the_runs_tokenizer_there_is_text_and_a_note(
    two_turns: Path, tmp_path: Path
) -> None:
    run = copied(two_turns, tmp_path / "foreign")
    config = run / "config.yaml"
    config.write_text(config.read_text().replace("path: scripted:model", "path: somebody/model"))
    shutil.rmtree(run / "export", ignore_errors=True)
    made, (page,) = page_of(run)
    assert page["vocabulary"] is None
    assert any("tokenizer could not be made here" in note for note in made.notes)
    completions = [b for one in page["trajectories"] for b in one["blocks"] if "turn" in b]
    assert {block["action"] for block in completions} == {ATTACK}


class ByteTokenizer(CharTokenizer):
    """A token for each byte of UTF-8; like sentencepiece it drops a blank at the start."""

    def encode(self, text: str) -> np.ndarray:
        return np.array(list(text.encode()), np.int32)

    def decode(self, tokens: np.ndarray) -> str:
        text = bytes(int(token) for token in tokens).decode("utf-8", "replace")
        return text.removeprefix(" ")


@given(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\ufffd"), max_size=20))
def test_characters_of_several_tokens_are_put_together(text: str) -> None:
    pieces = Pieces(ByteTokenizer())
    tokens = list(text.encode())
    joined = pieces.joined(tokens)
    shown = [joined.get(at, pieces.piece(token)) for at, token in enumerate(tokens)]
    assert "".join(shown) == text


def test_a_blank_before_a_word_is_kept() -> None:
    assert Pieces(ByteTokenizer()).piece(ord(" ")) == " "


@given(st.lists(st.floats(-1e6, 1e6)))
def test_a_histogram_counts_everything(values: list[float]) -> None:
    assert sum(count for _, _, count in histogram(values)) == len(values)


# --- a long run ---------------------------------------------------------------------------------------


def make_group(rng: np.random.Generator, step: int, place: int, size: int, length: int) -> Group:
    prompt = Prompt(
        uid=f"0:{step * 7919 % 5000 + place}",
        messages=[
            {"role": "system", "content": "Put the final answer into \\boxed{answer}."},
            {"role": "user", "content": f"{rng.integers(9999)} * {rng.integers(9999)}"},
        ],
        env_class="scripted",
        data_source="made",
    )
    head = TOKENIZER.encode_chat(prompt.messages, add_generation_prompt=True)
    rows = []
    for sample in range(size):
        text = " ".join(rng.choice(WORDS, length // 4))[:length]
        said = np.concatenate([TOKENIZER.encode(text), [0]]).astype(np.int32)
        tokens = np.concatenate([head, said])
        mask = np.arange(len(tokens)) >= len(head)
        logprobs = np.where(mask, -rng.exponential(0.3, len(tokens)), 0).astype(np.float32)
        reward = float(rng.random() < 0.3 + step / 500)
        segment = Segment(
            tokens=tokens, num_prompt_tokens=len(head), loss_mask=mask, logprobs=logprobs,
            versions=np.where(mask, step - 1, -1).astype(np.int32),
        )  # fmt: skip
        turn = Turn(segment=0, start=len(head), stop=len(tokens), reward=reward, action=text)
        rows.append(
            Trajectory(
                prompt=prompt, sample=sample, segments=(segment,), turns=(turn,),
                stop_reason=StopReason.STOP, reward=Reward(turns=(reward,), components={"env": reward}),
                env_metrics={"exact_match": reward}, timings={"llm": 1.5, "env": 0.1, "total": 1.7},
            )
        )  # fmt: skip
    return Group(index=step * 100 + place, prompt=prompt, trajectories=tuple(rows))


def credited(groups: Sequence[Group]) -> Credited:
    """The groups with the advantages of their rewards and with recomputed log-probs."""
    out = Credited()
    for group in groups:
        rewards = np.array([one.reward.total for one in group.trajectories if one.reward])
        scaled = (rewards - rewards.mean()) / (rewards.std() + 1e-6)
        pairs = []
        for one, advantage in zip(group.trajectories, scaled, strict=True):
            (segment,) = one.segments
            assert segment.logprobs is not None
            near = (segment.logprobs * np.float32(1.01)).astype(np.float32)
            scores = Scores(
                old_logprobs=near, ref_logprobs=near - np.float32(0.01), values=near * 0
            )
            tokens = TokenAdvantages(
                advantages=np.where(segment.loss_mask, advantage, 0).astype(np.float32),
                loss_mask=segment.loss_mask,
            )
            pairs.append((Scored(trajectory=one, scores=(scores,)), (tokens,)))
        out.append(pairs)
    return out


def grow(run: Path, steps: int, groups: int, size: int, length: int) -> None:
    """Write a run's files by the kernel's own writers."""
    rng = np.random.default_rng(0)
    names = [f"{area}/number_{n}" for area in ("reward", "generate", "policy") for n in range(20)]
    with RunFolder.create(run) as folder:
        for path in (folder.metrics, folder.failures):
            path.unlink(missing_ok=True)
        for step in range(1, steps + 1):
            numbers = {name: float(rng.normal()) for name in names}
            numbers |= {"reward/avg_raw_reward": step / steps, "timing/step": 2.0}
            folder.append_metrics(step, numbers)
            made = [make_group(rng, step, place, size, length) for place in range(groups)]
            folder.write_trajectories(step, made, credited(made))
        folder.append_failures(
            [Failure(step=1 + n % steps, uid=f"0:{n}", sample=0, kind="timeout", plugin="scripted",
                     message=f"env 'scripted' did not answer in {n} s") for n in range(steps * 5)]
        )  # fmt: skip
        folder.sync()


@pytest.mark.slow
def test_a_run_of_200_steps_is_a_page_of_2_megabytes_in_seconds(
    two_turns: Path, tmp_path: Path
) -> None:
    run = copied(two_turns, tmp_path / "long")
    grow(run, steps=200, groups=16, size=8, length=400)  # 25,600 trajectories, 10 million tokens
    began = time.perf_counter()
    made, (page,) = page_of(run)
    took = time.perf_counter() - began
    print(
        f"{made.num_bytes / 1e6:.2f} MB, {made.num_shown} of {made.num_trajectories}, {took:.1f} s"
    )
    assert 1_700_000 < made.num_bytes <= 2_000_000  # the room is used
    assert made.num_trajectories == 25_600
    assert made.num_shown > 400
    one = page["trajectories"][0]["blocks"][1]
    assert one["mismatch"][0] == pytest.approx(0.01 * one["logprobs"][0], abs=2e-4)
    assert one["reference"][0] == pytest.approx(0.01, abs=2e-4)
    assert set(one["values"]) == {0}
    assert len({page["groups"][one["in"]]["step"] for one in page["trajectories"]}) > 50
    assert took < 60  # some seconds; the machine may be busy
    assert len(page["failures"]) == MAX_FAILURES
    assert page["failure_counts"] == [["timeout", "scripted", 1000]]


def test_a_page_keeps_its_size_and_first_leaves_out_what_tells_least(
    two_turns: Path, tmp_path: Path
) -> None:
    run = copied(two_turns, tmp_path / "long")
    grow(run, steps=12, groups=2, size=4, length=250)
    whole, _ = page_of(run)
    assert whole.num_shown == whole.num_trajectories == 12 * 2 * 4
    small, (page,) = page_of(run, max_bytes=whole.num_bytes * 2 // 3)
    assert small.num_bytes <= whole.num_bytes * 2 // 3
    assert 0 < small.num_shown < whole.num_shown
    assert len({page["groups"][one["in"]]["step"] for one in page["trajectories"]}) > 8
    none, _ = page_of(run, max_trajectories=0)
    assert none.num_shown == 0
    with pytest.raises(UsageError, match=r"no room: the curves alone take .* \(--max-mb\)"):
        build_report([run], max_bytes=20_000)


def test_a_long_completion_keeps_its_ends(two_turns: Path, tmp_path: Path) -> None:
    run = copied(two_turns, tmp_path / "long")
    grow(run, steps=1, groups=1, size=1, length=9000)
    _, (page,) = page_of(run)
    prompt, block = page["trajectories"][0]["blocks"]
    assert prompt["tokens"] is None  # it stands in the group
    count = page["trajectories"][0]["tokens"]
    assert block["cut"] == [HEAD, count - HEAD - TAIL]
    assert len(block["tokens"]) == len(block["logprobs"]) == HEAD + TAIL
    (segment,) = RunFolder(run).read_trajectories(1)[0]["segments"]
    assert block["tokens"][-TAIL:] == segment["tokens"][-TAIL:]


def test_many_steps_are_thinned_but_evaluations_and_the_last_step_stay(
    two_turns: Path, tmp_path: Path
) -> None:
    run = copied(two_turns, tmp_path / "long")
    folder = RunFolder(run)
    folder.metrics.unlink()
    for step in range(1, 2 * MAX_LINES + 2):
        folder.append_metrics(step, {"a": step} | ({"eval/all/avg_score": 1} if step == 4 else {}))
    made, (page,) = page_of(run)
    steps = page["metrics"]["steps"]
    assert {1, 4, 2 * MAX_LINES + 1} <= set(steps)
    assert len(steps) <= MAX_LINES + 2
    assert any("Curves show one step in 3" in note for note in made.notes)


def test_numbers_that_are_not_finite_are_told(two_turns: Path, tmp_path: Path) -> None:
    run = copied(two_turns, tmp_path / "odd")
    RunFolder(run).append_metrics(3, {"policy/grad_norm": float("nan"), "x": float("-inf")})
    _, (page,) = page_of(run)
    assert page["metrics"]["columns"]["policy/grad_norm"][-1] == "NaN"
    assert page["metrics"]["columns"]["x"][-1] == "-Infinity"


def test_a_run_without_turns_shows_what_it_trained_on(two_turns: Path, tmp_path: Path) -> None:
    run = copied(two_turns, tmp_path / "sft")
    tokens = TOKENIZER.encode("question answer")
    segment = Segment(tokens=tokens, num_prompt_tokens=9, loss_mask=np.arange(len(tokens)) >= 9)
    prompt = Prompt(
        uid="0:1", messages=[{"role": "user", "content": "question "}], env_class="none"
    )
    one = Trajectory(
        prompt=prompt, sample=0, segments=(segment,), turns=(), stop_reason=StopReason.STOP
    )
    folder = RunFolder(run)
    for path in folder.trajectories.iterdir():
        path.unlink()
    with RunFolder.create(run) as folder:
        folder.write_trajectories(1, [Group(index=0, prompt=prompt, trajectories=(one,))])
    _, (page,) = page_of(run)
    (shown,) = page["trajectories"]
    assert (shown["reward"], shown["picked"], shown["versions"]) == (None, "random", None)
    assert [block["kind"] for block in shown["blocks"]] == ["prompt", "target"]
    assert text_of(page, shown["blocks"][1]) == "answer"
    assert shown["blocks"][1]["mask"] == "all"


# --- the command ----------------------------------------------------------------------------------------


def test_the_page_goes_into_the_run_folder(two_turns: Path, tmp_path: Path) -> None:
    run = copied(two_turns, tmp_path / "run")
    done = CliRunner().invoke(command, [str(run)])
    assert done.exit_code == 0, done.output
    assert re.fullmatch(
        r".*report\.html: 0\.\d\d MB, (\d+) of \1 trajectories", done.stdout.strip()
    )
    assert unpack((run / "report.html").read_text())["format"] == 1


def test_a_page_about_several_runs_goes_here(
    two_turns: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = [copied(two_turns, tmp_path / name) for name in ("a", "b")]
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(command, [str(run) for run in runs])
    assert done.exit_code == 0, done.output
    assert [run["name"] for run in unpack(Path("report.html").read_text())["runs"]] == ["a", "b"]


def test_wrong_folders_are_refused_with_what_is_there(two_turns: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=rf"no config\.yaml; run folders in it: {two_turns}"):
        build_report([two_turns.parent])
    with pytest.raises(UsageError, match=r"is no run folder: .* run folders in it: none"):
        build_report([tmp_path])
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / "config.yaml").write_text("trainer: {}\n")
    with pytest.raises(UsageError, match="nothing to report yet: no step was finished"):
        build_report([tmp_path / "new"])


def test_a_damaged_list_of_plugins_is_named(two_turns: Path, tmp_path: Path) -> None:
    folder = copied(two_turns, tmp_path / "run")
    (folder / "plugins.json").write_text("[{")
    with pytest.raises(ResumeError, match=r"plugins\.json is damaged: .* Restore it from a copy"):
        build_report([folder])


def test_one_run_twice_and_a_missing_folder_are_refused(two_turns: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"/nosuch is no run folder: it has no config\.yaml"):
        CliRunner().invoke(command, [str(tmp_path / "nosuch")], catch_exceptions=False)
    with pytest.raises(UsageError, match="is named twice; name each run once"):
        CliRunner().invoke(command, [str(two_turns)] * 2, catch_exceptions=False)
    words = [str(two_turns), "--output", str(tmp_path / "no" / "x.html")]
    with pytest.raises(UsageError, match=r"--output .*: there is no folder .*/no; make it first"):
        CliRunner().invoke(command, words, catch_exceptions=False)
