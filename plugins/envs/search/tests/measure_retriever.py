"""Prints what the retriever costs: ``python plugins/envs/search/tests/measure_retriever.py [DOCUMENTS]``.

Documents are 40 words each, drawn from 50,000 made-up ones by Zipf's law. Times
depend on the machine and on what else it does; ratios less so, since what is
compared is measured in turns.
"""

import bisect
import itertools
import json
import os
import random
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

from skyrl_search.client import Retriever
from skyrl_search.index import Index, open_index
from skyrl_search.server import RetrievalServer

QUERIES = 200
WORDS = 50_000
RARE = 2_000
"""Words from this rank on are rare."""


def draw_words(rng: random.Random) -> list[str]:
    letters = "abcdefghijklmnopqrstuvwxyz"
    return ["".join(rng.choices(letters, k=rng.randint(3, 9))) for _ in range(WORDS)]


def write_corpus(corpus: Path, words: list[str], count: int, rng: random.Random) -> list[list[str]]:
    weights = list(itertools.accumulate(1 / (rank + 2) for rank in range(WORDS)))
    documents = []
    with corpus.open("w") as file:
        for number in range(count):
            places = [bisect.bisect(weights, rng.random() * weights[-1]) for _ in range(40)]
            documents.append([words[min(place, WORDS - 1)] for place in places])
            text = " ".join(documents[-1])
            file.write(json.dumps({"id": str(number), "contents": text}) + "\n")
    return documents


def in_turns(queries: list[str], ways: dict[str, Callable[[str], object]]) -> dict[str, float]:
    """Median seconds of each way to ask, every query asked in every way before the next."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for query in queries:
        for name, ask in ways.items():
            began = time.perf_counter()
            ask(query)
            seconds[name].append(time.perf_counter() - began)
    return {name: statistics.median(values) for name, values in seconds.items()}


def show(title: str, medians: dict[str, float]) -> None:
    first = next(iter(medians.values()))
    print(f"\n{title}")
    for name, seconds in medians.items():
        print(f"  {name:<32} {seconds * 1e3:8.2f} ms {seconds / first:8.2f}")


def main(count: int) -> None:
    rng = random.Random(0)
    words = draw_words(rng)
    with tempfile.TemporaryDirectory() as folder:
        corpus = Path(folder) / "corpus.jsonl"
        documents = write_corpus(corpus, words, count, rng)
        began = time.perf_counter()
        for line in corpus.open("rb"):
            json.loads(line)
        reading = time.perf_counter() - began
        began = time.perf_counter()
        index = open_index(corpus)
        making = time.perf_counter() - began
        file = corpus.with_name("corpus.jsonl.fts5")
        sizes = corpus.stat().st_size / 1e6, file.stat().st_size / 1e6
        print(f"{count:,} documents, {sizes[0]:.0f} MB; index {sizes[1]:.0f} MB")
        print(f"made in {making:.1f} s, {making / reading:.1f} times as long as parsing the corpus")

        unlimited = Index(corpus, file, max_postings=10**12)
        with RetrievalServer(index) as server:
            threading.Thread(target=server.serve_forever, daemon=True).start()
            retriever = Retriever(server.url)
            ways: dict[str, Callable[[str], object]] = {
                "in the process": lambda query: index.search(query, 3),
                "over HTTP": retriever.search,
                "in the process, without limit": lambda query: unlimited.search(query, 3),
            }
            rare = [" ".join(rng.sample(words[RARE:], 5)) for _ in range(QUERIES)]
            mixed = [
                " ".join(rng.sample(words[RARE:], 3) + rng.sample(words[:30], 4))
                for _ in range(QUERIES)
            ]
            show("a query of 5 rare words", in_turns(rare, ways))
            show("a query of 3 rare and 4 very frequent words", in_turns(mixed, ways))

            def ask(part: list[str]) -> None:
                for query in part:
                    retriever.search(query)

            began = time.perf_counter()
            threads = [threading.Thread(target=ask, args=(rare[i::32],)) for i in range(32)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            rate = QUERIES / (time.perf_counter() - began)
            print(f"\n32 threads over HTTP, 5 rare words: {rate:.0f} searches/s")
            retriever.close()
            server.shutdown()

        same = sum(
            [hit.document for hit in index.search(query, 3)]
            == [hit.document for hit in unlimited.search(query, 3)]
            for query in mixed
        )
        print(f"same three documents with and without limit: {same} of {QUERIES}")
        rank = {word: place for place, word in enumerate(words)}
        found = 0
        for number in rng.sample(range(count), QUERIES):
            own = sorted(set(documents[number]), key=lambda word: rank[word])[-5:]
            hits = index.search(" ".join(own), 3)
            found += str(number) in [hit.document["id"] for hit in hits]
        print(f"a document found by its 5 rarest words: {found} of {QUERIES}")
        index.close()
        unlimited.close()
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 100_000)
