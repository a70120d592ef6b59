"""The index: what it finds, what it costs, and that it is made anew when it must be."""

import json
import os
import random
import threading
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from skyrl_kernel.errors import DataError
from skyrl_search.index import Index, build_index, open_index

FRUIT = [
    {"id": "0", "contents": "The pear is a fruit of the genus Pyrus."},
    {"id": "1", "title": "Apple", "text": "Apples grow on trees. An apple a day."},
    {"contents": "Crème brûlée is a dessert.\nIt is burnt."},
    {"id": 3, "text": "Trees have leaves; the pear tree too."},
]


def write(corpus: Path, rows: list[dict[str, object]]) -> Path:
    corpus.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return corpus


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    return write(tmp_path / "fruit.jsonl", FRUIT)


def found(index: Index, query: str, topk: int = 3) -> list[object]:
    return [hit.document.get("id") for hit in index.search(query, topk)]


def test_documents_are_found_by_their_words_best_first(corpus: Path) -> None:
    index = open_index(corpus)
    assert index.num_documents == 4
    assert found(index, "apple") == ["1"]
    assert found(index, "pear trees") == [3, "0", "1"]  # both words, then one in a short text
    assert found(index, "pear trees", topk=1) == [3]
    assert found(index, "quince") == []
    index.close()


def test_a_document_comes_back_as_it_was_written(corpus: Path) -> None:
    index = open_index(corpus)
    (hit,) = index.search("apples", 3)
    assert hit.document == {"id": "1", "contents": '"Apple"\nApples grow on trees. An apple a day.'}
    (hit,) = index.search("dessert", 3)
    assert hit.document == {"contents": "Crème brûlée is a dessert.\nIt is burnt."}
    index.close()


def test_scores_fall_and_rare_words_count_more(corpus: Path) -> None:
    index = open_index(corpus)
    scores = [hit.score for hit in index.search("pear trees", 3)]
    assert scores == sorted(scores, reverse=True)
    assert scores[-1] > 0
    index.close()


@pytest.mark.parametrize(
    ("query", "ids"),
    [
        ("CREME BRULEE", [None]),  # neither case nor accents count
        ("growing", ["1"]),  # nor endings
        ("what genus has the pear?", ["0", 3]),
        ('"pear" NEAR(genus* x) ^ - : {', ["0", 3]),  # no syntax, only words
        ("", []),
        ("?!", []),
        ("_", []),
        ("\ud800", []),
        ("\x00pear\x00", [3, "0"]),
        ("pear " * 5000, [3, "0"]),
    ],
)
def test_any_query_is_a_bag_of_words(corpus: Path, query: str, ids: list[object]) -> None:
    index = open_index(corpus)
    assert found(index, query) == ids
    index.close()


@given(st.text())
@settings(max_examples=200)
def test_no_query_fails(shared: Index, query: str) -> None:
    shared.search(query, 3)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Index:
    return open_index(write(tmp_path_factory.mktemp("corpus") / "fruit.jsonl", FRUIT))


def test_the_index_is_kept_beside_the_corpus_and_made_again_when_that_changes(
    corpus: Path,
) -> None:
    made: list[int] = []

    def note(documents: int, read: int, size: int) -> None:
        if read == size:
            made.append(documents)

    open_index(corpus, on_progress=note).close()
    open_index(corpus, on_progress=note).close()
    assert made == [4]
    assert corpus.with_name("fruit.jsonl.fts5").is_file()

    write(corpus, FRUIT[:2])
    os.utime(corpus, ns=(0, 0))
    index = open_index(corpus, on_progress=note)
    assert made == [4, 2]
    assert found(index, "dessert") == []
    index.close()


@pytest.mark.parametrize("content", [b"", b"not an index", b"SQLite format 3\x00" + b"x" * 5000])
def test_a_damaged_index_is_made_again(corpus: Path, content: bytes) -> None:
    file = corpus.with_name("fruit.jsonl.fts5")
    file.write_bytes(content)
    index = open_index(corpus)
    assert found(index, "apple") == ["1"]
    index.close()


def test_an_interrupted_index_leaves_nothing(corpus: Path, tmp_path: Path) -> None:
    def stop(documents: int, read: int, size: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build_index(corpus, tmp_path / "index", stop)
    assert list(tmp_path.iterdir()) == [corpus]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", r"line 1 \(from 0\) is not JSON"),
        ("[]", "line 1 .*: a document needs the field contents, or text .* found: list"),
        ('{"id": 1, "title": "x"}', "found: id, title"),
        ('{"contents": 3}', "found: contents"),
    ],
)
def test_a_line_that_is_no_document_is_named(tmp_path: Path, text: str, message: str) -> None:
    corpus = tmp_path / "bad.jsonl"
    corpus.write_text(f'{{"contents": "x"}}\n{text}\n')
    with pytest.raises(DataError, match=message):
        open_index(corpus)
    assert list(tmp_path.iterdir()) == [corpus]


def test_a_corpus_may_have_empty_lines_and_no_newline_at_the_end(tmp_path: Path) -> None:
    corpus = tmp_path / "loose.jsonl"
    corpus.write_text('\n{"contents": "pear"}\n\n{"contents": "apple"}')
    index = open_index(corpus)
    assert [hit.document["contents"] for hit in index.search("apple pear", 3)] == ["pear", "apple"]
    index.close()


def test_a_long_document_comes_back_whole(tmp_path: Path) -> None:
    text = "pear " + "x" * 100_000
    index = open_index(write(tmp_path / "long.jsonl", [{"contents": text}, {"contents": "y"}]))
    assert index.search("pear", 1)[0].document["contents"] == text
    index.close()


def test_a_missing_or_empty_corpus_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file; name a file of JSON lines"):
        open_index(tmp_path / "nowhere.jsonl")
    (tmp_path / "empty.jsonl").write_text("\n")
    with pytest.raises(DataError, match="holds no document; write one JSON object a line"):
        open_index(tmp_path / "empty.jsonl")


def test_an_index_that_cannot_be_written_says_how_to_go_on(corpus: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"cannot be written: .*; name another place: --index FILE"):
        open_index(corpus, tmp_path / "nowhere" / "index")


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """6000 documents: "common" in all, "half" in every second, one word of its own in each."""
    rows = [
        {"id": n, "contents": f"common{' half' * (n % 2)} word{n} {'filler ' * (n % 7)}"}
        for n in range(6000)
    ]
    return write(tmp_path_factory.mktemp("large") / "large.jsonl", rows)


def test_every_document_is_found_by_its_own_word(large: Path) -> None:
    index = open_index(large)
    rng = random.Random(0)
    for n in rng.sample(range(6000), 60):
        assert found(index, f"the common word{n} of half", topk=1) == [n]
    index.close()


def test_frequent_words_are_left_out_where_they_would_cost_too_much(large: Path) -> None:
    # "common" stands in 6000 documents, "half" in 3000, "word7" in one.
    cheap, dear = open_index(large, max_postings=3500), open_index(large, max_postings=20_000)
    assert len(cheap.search("word7 common", 10)) == 1
    assert len(cheap.search("word7 half common", 10)) == 10
    assert len(dear.search("word7 common", 10)) == 10
    assert len(cheap.search("common", 10)) == 10  # the rarest word is searched for at any cost
    assert cheap.search("word7 common", 1)[0].document == dear.search("word7 common", 1)[0].document
    cheap.close()
    dear.close()


def test_threads_search_at_once(large: Path) -> None:
    index = open_index(large)
    wrong: list[int] = []

    def search(seed: int) -> None:
        rng = random.Random(seed)
        for n in rng.sample(range(6000), 10):
            if found(index, f"word{n} half", topk=1) != [n]:
                wrong.append(n)

    threads = [threading.Thread(target=search, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    index.close()
