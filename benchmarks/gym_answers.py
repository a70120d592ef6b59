"""Answers to the envs that skyrl-gym and this project both have: right, wrong, and corner cases.

Each is an episode: a row and the replies that a model might give. They are drawn from a
seed, so that two runs of the comparison judge the same ones.
"""

import json
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True, slots=True)
class Case:
    """One episode."""

    kind: str
    """What it tries, in a few words; differences are explained by kind."""
    row: Mapping[str, Any]
    """Columns of the data, ``prompt`` and ``env_class`` left out."""
    replies: Sequence[str]
    """As many as the episode can take; those after its end are not read."""


Draw = Callable[[random.Random], Case]


def _spec(truth: Any, **columns: Any) -> dict[str, Any]:
    return {"reward_spec": {"method": "rule", "ground_truth": truth}, **columns}


# --- gsm8k -----------------------------------------------------------------------------------


def _number(rng: random.Random) -> str:
    whole = rng.choice([rng.randrange(10), rng.randrange(1000), rng.randrange(10**7)])
    text = str(whole) if rng.random() < 0.85 else f"{whole}.{rng.randrange(100):02d}"
    return f"-{text}" if rng.random() < 0.1 else text


def _with_commas(number: str) -> str:
    whole, dot, rest = number.partition(".")
    return f"{int(whole):,}{dot}{rest}"


_GSM8K_RIGHT: Mapping[str, Callable[[str, str], str]] = {
    "right": lambda n, o: f"So it is {o} and then {n}.\n#### {n}",
    "right, thousands": lambda n, o: f"#### {_with_commas(n)}",
    "right, commas anywhere": lambda n, o: f"#### {','.join(n)},",
    "right, then more": lambda n, o: f"#### {n}\n#### {o}",
    "right, then text": lambda n, o: f"#### {n} apples <|im_end|>",
    "right, many marks": lambda n, o: f"####### {n}",
}
_GSM8K_WRONG: Mapping[str, Callable[[str, str], str]] = {
    "another number": lambda n, o: f"#### {o}",
    "wrong, then right": lambda n, o: f"#### {o}\n#### {n}",
    "no mark": lambda n, o: f"The answer is {n}",
    "no space": lambda n, o: f"####{n}",
    "two spaces": lambda n, o: f"####  {n}",
    "three marks": lambda n, o: f"### {n}",
    "tab": lambda n, o: f"####\t{n}",
    "dollar": lambda n, o: f"#### ${n}",
    "full stop": lambda n, o: f"#### {n}.",
    "decimal": lambda n, o: f"#### {n}.0",
    "plus": lambda n, o: f"#### +{n}",
    "two signs": lambda n, o: f"#### --{n}",
    "leading zero": lambda n, o: f"#### 0{n}",
    "only punctuation": lambda n, o: "#### ,.,",
    "nothing": lambda n, o: "",
    "full-width digits": lambda n, o: (
        "#### " + "".join(chr(0xFF10 + int(c)) for c in n if c.isdigit())
    ),
    "bold": lambda n, o: f"#### **{n}**",
    "equation": lambda n, o: f"#### {o}={n}",
}


def _scrambled(rng: random.Random, number: str, alphabet: str) -> str:
    pieces = [f"#### {number}", *rng.choices(alphabet, k=rng.randrange(1, 6))]
    rng.shuffle(pieces)
    return "".join(pieces)


def _gsm8k_reply(rng: random.Random, truth: str, right: float = 0.4) -> tuple[str, str]:
    """(kind, reply), right with about that probability."""
    other = _number(rng)
    chance = rng.random()
    if chance < 0.5 * right:
        return "scrambled", _scrambled(rng, truth, "#0123456789,.-$ \n%")
    forms = _GSM8K_RIGHT if chance < 1.5 * right else _GSM8K_WRONG
    kind = rng.choice(list(forms))
    return kind, forms[kind](truth, other)


def gsm8k(rng: random.Random) -> Case:
    """One answer."""
    truth = _number(rng)
    kind, reply = _gsm8k_reply(rng, truth)
    if rng.random() < 0.01:
        return Case(kind="reference is a number", row=_spec(42), replies=["#### 42"])
    return Case(kind=kind, row=_spec(truth), replies=[reply])


def gsm8k_multi_turn(rng: random.Random) -> Case:
    """Up to six answers; the limit stands in one place of the row, in the other, or in none."""
    truth = _number(rng)
    row = _spec(truth, extra_info={})
    limit = rng.randrange(1, 7)
    place = rng.choice(["row", "extra_info", "none"])
    if place == "row":
        row["max_turns"] = limit
    elif place == "extra_info":
        row["extra_info"] = {"max_turns": limit}
    replies = [_gsm8k_reply(rng, truth, right=0.15)[1] for _ in range(6)]
    return Case(kind=f"limit in {place}", row=row, replies=replies)


# --- aime ------------------------------------------------------------------------------------

_TRUTHS = ("42", "007", "1,042", "-3", "0.5", r"\frac{1}{2}", r"\frac12", r"\sqrt{3}", r"3\sqrt2", "x+1", r"2\pi", "12:30", "A", r"\text{odd}", "10^{6}", "(1,2)", "$42$", r"\dfrac{3}{4}")  # fmt: skip
_AIME_SAME: Mapping[str, Callable[[str], str]] = {
    "plain": lambda t: t,
    "dollars": lambda t: f"${t}$",
    "boxed": lambda t: rf"\boxed{{{t}}}",
    "boxed in dollars": lambda t: rf"$\boxed{{{t}}}$",
    "equation": lambda t: f"x = {t}",
    "unit": lambda t: f"{t} degrees",
    "more units": lambda t: f"{t} square inches",
    "text unit": lambda t: rf"{t}\text{{ m}}",
    "degree sign": lambda t: rf"{t}^\circ",
    "spaces": lambda t: f"  {t}  ",
    "thin space": lambda t: rf"{t}\;",
    "article": lambda t: f"a {t}",
    "end token": lambda t: f"{t}<|im_end|>",
    "quotes": lambda t: f'"{t}"',
    "bold": lambda t: rf"\textbf{{{t}}}",
    "text": lambda t: rf"\text{{{t}}}",
    "overline": lambda t: rf"\overline{{{t}}}",
    "mbox": lambda t: rf"\mbox{{{t}}}",
    "thousands": lambda t: f"{int(t):,}" if t.isdigit() else t,
    "full stop before dollar": lambda t: f"${t}.$",
    "escaped dollar": lambda t: rf"\${t}",
    "percent": lambda t: rf"{t}\%",
    "full stop": lambda t: f"{t}.",
    "bars": lambda t: f"**{t}**",
}
_PIECES = (*_TRUTHS, "$", "\\boxed{", "}", "{", "=", " ", ",", "\\text{", "frac", "sqrt", "\\frac", "\\sqrt", "1", "23", "and", "\\text{and}", "an ", "a ", ".$", "\\ ", "mbox", "square", "units", "{,}", ",\\!", "^\\circ", "Answer:", "answer : ", "\n", "<", "\\dots", "(", ")")  # fmt: skip
_PADDING = "Let us see what the sum of all of these is. " * 8


def aime(rng: random.Random) -> Case:
    """One answer, in one of the forms that the normalisation knows, or of pieces of them."""
    truth = rng.choice(_TRUTHS)
    if rng.random() < 0.5:
        truth = str(rng.randrange(10**4))
    other = str(rng.randrange(10**4))
    row = {"reward_model": {"ground_truth": truth}}
    chance = rng.random()
    if chance < 0.25:
        wanted = "".join(rng.choices(_PIECES, k=rng.randrange(1, 5)))
        said = "".join(rng.choices(_PIECES, k=rng.randrange(1, 7)))
        row = {"reward_model": {"ground_truth": wanted}}
        return Case(kind="pieces", row=row, replies=[f"Answer: {rng.choice([said, wanted])}"])
    kind = rng.choice(list(_AIME_SAME))
    said = _AIME_SAME[kind](truth if chance < 0.8 else other)
    layouts: dict[str, str] = {
        "": f"{_PADDING if rng.random() < 0.3 else ''}So, Answer: {said}",
        ", capitals": f"ANSWER :{said}",
        ", last of two": f"Answer: {other}\nAnswer: {said}",
        ", then wrong": f"Answer: {said}\nanswer: {other}",
        ", next line": f"Answer:\n{said}",
        ", too early": f"Answer: {said}\n{_PADDING}",
        ", no label": said,
    }
    layout = rng.choices(list(layouts), weights=[8, 2, 2, 1, 1, 1, 1])[0]
    return Case(kind=kind + layout, row=row, replies=[layouts[layout]])


# --- search ----------------------------------------------------------------------------------

_NAMES = ("The Beatles", "an apple", "Marie Curie", "U.S.A.", "New York City", "Müller", "3.14", "a", "The", "rock 'n' roll", "O’Brien", "東京")  # fmt: skip
_SEARCH_SAME: Mapping[str, Callable[[str], str]] = {
    "plain": lambda t: t,
    "capitals": str.upper,
    "lower": str.lower,
    "spaces": lambda t: f"\n  {'  '.join(t.split())} ",
    "article": lambda t: f"the {t}",
    "punctuation": lambda t: f"({t})!?.",
    "hyphens": lambda t: "-".join(t.split()),
}


def search(rng: random.Random) -> Case:
    """Searches, then an answer; or neither, or both at once, or tags that are not closed."""
    target = rng.choice(_NAMES)
    others = [name for name in _NAMES if name != target]
    targets = [target, [target], [*rng.sample(others, 2), target], []]
    wanted: Any = rng.choices(targets, weights=[8, 8, 8, 1])[0]
    row = _spec({"target": wanted}, max_turns=rng.randrange(1, 5))
    if rng.random() < 0.2:
        del row["max_turns"]
    kind = rng.choice(list(_SEARCH_SAME))
    said = _SEARCH_SAME[kind](target if rng.random() < 0.8 else rng.choice(others))
    endings = {
        "": f"<think>hm</think><answer>{said}</answer>",
        ", two answers": f"<answer>{rng.choice(others)}</answer> no: <answer>{said}</answer>",
        ", then another": f"<answer>{said}</answer><answer>{rng.choice(others)}</answer>",
        ", not closed": f"<answer>{said}",
        ", closed first": f"</answer>{said}<answer>",
        ", nested": f"<answer><answer>{said}</answer></answer>",
        ", with a search": f"<search>{target}</search><answer>{said}</answer>",
    }
    ending = rng.choices(list(endings), weights=[12, 2, 1, 1, 1, 1, 1])[0]
    asking = [
        f"<search>{target}</search>",
        "<search> </search>",
        "<search>\n one \n two \n</search> <search>three</search>",
        "<search>not closed",
        "no tag at all",
        f"<search>{said}</search> so <answer>{said}",
    ]
    before = rng.choices(asking, k=rng.choices([0, 1, 2, 3], weights=[6, 3, 1, 1])[0])
    return Case(
        kind="no right answer" if wanted == [] else kind + ending,
        row=row,
        replies=[*before, *([endings[ending]] * 4)],
    )


# --- searchcode ------------------------------------------------------------------------------


def searchcode(rng: random.Random) -> Case:
    """Programs and searches, then a solution; what a program prints counts as said."""
    truth = _number(rng)
    row = _spec(truth, max_turns=rng.randrange(1, 4))
    if rng.random() < 0.2:
        del row["max_turns"]
    tools = [
        f"<tool><python>print({truth.replace(',', '')})</python></tool>",
        "<tool><python>1/0</python></tool>",
        "<tool><python>\nfor i in range(3):\n    print(i)\n</python></tool>",
        "<tool><python></python></tool>",
        f"<tool><python>print('#### {truth}')</python></tool>",
        "<tool><search>a number</search></tool>",
        "<tool><shell>ls</shell></tool>",
        "<tool>print(1)</tool>",
        "<python>print(1)</python>",
        "no tag at all",
    ]
    before = rng.choices(tools, k=rng.choices([0, 1, 2], weights=[5, 3, 1])[0])
    kind, said = _gsm8k_reply(rng, truth)
    endings = {
        "": f"<solution>{said}</solution>",
        ", outside": f"{said}<solution></solution>",
        ", not closed": f"<solution>{said}",
    }
    ending = rng.choices(list(endings), weights=[6, 2, 1])[0]
    return Case(kind=kind + ending, row=row, replies=[*before, *([endings[ending]] * 3)])


# --- text2sql --------------------------------------------------------------------------------

DATABASE = """
create table person (id integer primary key, name text, age integer, town text);
insert into person values (1, 'Ann', 30, 'Oslo'), (2, 'Bob', 25, 'Rome'), (3, 'Cem', 30, null),
  (4, 'Dee', 41, 'Oslo'), (5, 'Eve', null, 'Bonn'), (6, 'Ann', 19, 'Rome');
create table pet (owner integer, kind text, weight real);
insert into pet values (1, 'cat', 4.5), (1, 'dog', 20.0), (4, 'cat', 3.25), (6, 'fish', 0.1);
"""
"""Of the data ``spider``, with the id ``people``."""

_QUERIES: Sequence[tuple[str, Sequence[str]]] = (
    ("select name from person", ("select name from person order by id", "SELECT name FROM person;", "select distinct name from person", "select p.name from person as p")),
    ("select count(*) from person", ("select count(id) from person", "select 6", "select count(*) as n from person where 1", "select sum(1) from person")),
    ("select town, count(*) from person group by town", ("select town, count(id) from person group by 1 order by 2", "select town, count(1) from person group by town")),
    ("select name from person where age = (select max(age) from person)", ("select name from person order by age desc limit 1", "select 'Dee'")),
    ("select distinct kind from pet", ("select kind from pet", "select kind from pet group by kind")),
    ("select avg(weight) from pet where kind = 'cat'", ("select sum(weight) / 2 from pet where kind = 'cat'", "select 3.875")),
    ("select p.name, t.kind from person p join pet t on t.owner = p.id", ("select name, kind from pet, person where owner = id",)),
    ("select name from person where age > 100", ("select name from person where 0", "select town from person where id = 99")),
)  # fmt: skip
_BAD_SQL = ("", "selec name from person", "select nothing from person", "select * from person", "drop table person", "delete from person", "select name from person; select 1", "-- a comment", "select null", "update person set age = 1", "select count(*) from nowhere", "pragma table_info(person)", "insert into pet values (2, 'ox', 700)", "select name, name from person")  # fmt: skip


def text2sql(rng: random.Random) -> Case:
    """Queries, then a solution, in a form that is right or one of many that are not."""
    reference, same = rng.choice(_QUERIES)
    row = _spec(reference, db_id="people", data="spider", max_turns=rng.randrange(1, 5))
    if rng.random() < 0.2:
        del row["max_turns"]
    is_right = rng.random() < 0.7
    sql = rng.choice([reference, *same]) if is_right else rng.choice([*_BAD_SQL, _QUERIES[0][0]])
    forms = {
        "": f"<think>so</think>\n<solution>{sql}</solution>",
        ", spaces": f"<think>so</think>\n<solution>\n {sql} \n</solution>\n",
        ", no thought": f"<solution>{sql}</solution>",
        ", thought not closed": f"<think>so<solution>{sql}</solution>",
        ", two solutions": f"<think>so</think><solution>{sql}</solution><solution>{sql}</solution>",
        ", not closed": f"<think>so</think><solution>{sql}",
        ", thought inside": f"<think>so</think><solution><think>x</think>{sql}</solution>",
        ", query inside": f"<think>so</think><solution><sql>{sql}</sql></solution>",
        ", thought after": f"<solution>{sql}</solution><think>so</think>",
        ", an observation of its own": f"<think>a</think></observation>x<solution>{sql}</solution>",
        ", fenced": f"<think>so</think><solution>```sql\n{sql}\n```</solution>",
        ", capitals": f"<THINK>so</THINK><SOLUTION>{sql}</SOLUTION>",
    }
    form = rng.choices(list(forms), weights=[18, 4, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1])[0]
    tries = [
        "<think>look</think><sql>select * from person limit 2</sql>",
        f"<think>look</think><sql>{rng.choice(_BAD_SQL)}</sql>",
        "<sql>select 1</sql>",
        "<think>no query</think>",
        "<think>a</think><sql>select 1</sql><sql>select 2</sql>",
    ]
    before = rng.choices(
        tries, weights=[6, 2, 1, 1, 1], k=rng.choices([0, 1, 2, 3], weights=[5, 3, 1, 1])[0]
    )
    if rng.random() < 0.003:  # takes its seconds
        endless = (
            "with recursive c(x) as (select 1 union all select x + 1 from c) select max(x) from c"
        )
        before = [f"<think>look</think><sql>{endless}</sql>"]
    return Case(
        kind=("right" if is_right else "wrong") + form,
        row=row,
        replies=[*before, *([forms[form]] * 5)],
    )


# --- lcb -------------------------------------------------------------------------------------

_STDIN = (
    ("a, b = map(int, input().split())\nprint(a + b)", [("1 2\n", "3\n"), ("-5 5", "0")]),
    ("n = int(input())\nfor i in range(n):\n    print(i * i)", [("3", "0\n1\n4\n"), ("1\n", "0")]),
    ("import sys\nprint(sum(int(x) for x in sys.stdin.read().split()))", [("1 2 3\n4", "10")]),
    ("print(*sorted(input().split()))", [("b a c", "a b c"), ("z", "z")]),
    ("x = float(input())\nprint(x / 2)", [("3", "1.5"), ("1", "0.5")]),
)
_FUNCTIONS = (
    ("add", "a, b", "a + b", [("1\n2", "3"), ("-1\n1", "0")]),
    ("rev", "xs", "xs[::-1]", [("[1, 2, 3]", "[3, 2, 1]"), ("[]", "[]")]),
    ("pair", "a", "(a, a)", [("1", "[1, 1]")]),
    ("half", "a", "a / 2", [("3", "1.5")]),
)


def _tests(pairs: Sequence[tuple[str, str]], name: str | None) -> str:
    kind = {"testtype": "functional" if name else "stdin"}
    metadata = {"metadata": {"func_name": name} if name else {}}
    return json.dumps([{"input": i, "output": o, **kind, **metadata} for i, o in pairs])


def lcb(rng: random.Random) -> Case:
    """A program: right, wrong in one of many ways, or not to be found in the reply."""
    if rng.random() < 0.5:
        body, pairs = rng.choice(_STDIN)
        name, last = None, body.splitlines()[-1]
        variants = {
            "right": body,
            "right, in main": "def main():\n    " + body.replace("\n", "\n    ") + "\nmain()",
            "right, guarded": "def main():\n    " + body.replace("\n", "\n    ") + "\nif __name__ == '__main__':\n    main()",
            "right, then exit": body + "\nimport sys\nsys.exit(0)",
            "right, blank lines around": f"print()\n{body}\nprint()",
            "right, spaces at line ends": body.replace("print(", "print(end=' '); print("),
            "wrong, main not called": "def main():\n    " + body.replace("\n", "\n    "),
            "wrong, one more line": f"{body}\nprint('x')",
            "wrong, says nothing": body.replace(last, "pass" if not last.startswith(" ") else "    pass"),
            "wrong, raises at the end": f"{body}\nraise ValueError",
            "wrong, exits at once": f"import sys\nsys.exit(0)\n{body}",
        }  # fmt: skip
    else:
        name, arguments, value, pairs = rng.choice(_FUNCTIONS)
        plain = f"def {name}({arguments}):\n    return {value}"
        method = f"class Solution:\n    def {name}(self, {arguments}):\n        return {value}"
        variants = {
            "right": plain,
            "right, a method": method,
            "right, prints too": plain.replace("return", "print('x'); return"),
            "right, imports": f"import collections, heapq\nfrom typing import List\n{plain}",
            "wrong, another name": plain.replace(name, "other"),
            "wrong, returns nothing": f"def {name}({arguments}):\n    {value}",
            "wrong, text": plain.replace(value, f"str({value})"),
            "wrong, raises": f"def {name}({arguments}):\n    raise KeyError(1)",
            "wrong, too few arguments": f"def {name}():\n    return {value}",
            "wrong, fails on import": f"import nothing_of_this_name\n{plain}",
        }
    variants["wrong, no Python"] = "this is not ( Python"
    if rng.random() < 0.003:  # each takes its seconds
        variants = {"wrong, endless": "while True:\n    pass"}
    names = list(variants)
    weights = [3.0 if one == "right" else 1.0 for one in names]
    kind = rng.choices(names, weights=weights)[0]
    program = variants[kind]
    layouts = {
        "": f"Here it is:\n```python\n{program}\n```",
        ", no language": f"```\n{program}\n```\nDone.",
        ", last of two blocks": f"```python\nprint('no')\n```\nRather:\n```py\n{program}\n```",
        ", then another block": f"```python\n{program}\n```\n```\n1 2\n```",
        ", no block": program,
        ", not closed": f"```python\n{program}",
        ", one line": f"```{program}```",
    }
    layout = rng.choices(list(layouts), weights=[14, 2, 2, 1, 1, 1, 1])[0]
    return Case(kind=kind + layout, row=_spec(_tests(pairs, name)), replies=[layouts[layout]])


ENVS: Mapping[str, Draw] = {
    "gsm8k": gsm8k,
    "gsm8k_multi_turn": gsm8k_multi_turn,
    "aime": aime,
    "search": search,
    "searchcode": searchcode,
    "text2sql": text2sql,
    "lcb": lcb,
}
"""Every id of skyrl-gym 0.4."""


def cases(env: str, count: int, seed: int = 1) -> Iterator[Case]:
    """``count`` episodes of an env."""
    rng = random.Random(f"{env}/{seed}")
    for _ in range(count):
        yield ENVS[env](rng)
