"""One vLLM server at a time, started when a test needs it; without vLLM those tests say so."""

import asyncio
import importlib.util
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from skyrl_kernel.testing.distributions import make_distribution
from skyrl_transformers.testing import write_random_model
from skyrl_vllm.inside import OWN
from skyrl_vllm.server import Server

HAS_VLLM = importlib.util.find_spec("vllm") is not None
START_S = 540.0


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    skip = pytest.mark.skip(reason="vLLM is not installed here; `make test-engines` runs these")
    for item in items:
        is_mine = Path(__file__).parent in item.path.parents
        if is_mine and "servers" in getattr(item, "fixturenames", ()) and not HAS_VLLM:
            item.add_marker(skip)


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Path]:
    """``tied`` is ``builtin:tiny``'s shape; ``untied`` has a head of its own."""
    shape = {
        "hidden_size": 128,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "intermediate_size": 320,
        "max_position_embeddings": 512,
        "initializer_range": 0.1,
    }
    folders = {name: tmp_path_factory.mktemp(name) for name in ("tied", "untied")}
    for name, folder in folders.items():
        write_random_model(folder, tie_word_embeddings=name == "tied", **shape)
    return folders


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small one, whose head is its embedding."""
    folder = tmp_path_factory.mktemp("model")
    write_random_model(folder, tie_word_embeddings=True)
    return folder


class Servers:
    """Keeps one server: starting one takes most of a minute and most of a gigabyte.

    Args:
        log: Of all of them.
    """

    def __init__(self, log: Path) -> None:
        self.log = log
        self.is_new = False
        """Whether nobody has used the server that runs."""
        self._key = ""
        self._server: Server | None = None

    def start(
        self,
        model: Path,
        variables: Mapping[str, str] | None = None,
        *,
        backend: str = OWN,
        flags: Sequence[str] = (),
    ) -> Server:
        """A server of that model that is ready: the one that runs, or another in its place."""
        key = f"{model} {variables} {backend} {flags}"
        if self._server is not None and key == self._key and self._server.gone() is None:
            return self._server
        self.stop()
        # Eager: compiling takes longer than all tests; the runs of the demo compile.
        flags = [*flags, "--dtype", "float32", "--max-num-seqs", "64", "--enforce-eager"]
        flags += ["--weight-transfer-config", json.dumps({"backend": backend})]
        server = Server(model, flags, log=self.log, variables=variables)
        self._key, self._server, self.is_new = key, server, True
        asyncio.run(server.wait_until_ready(START_S))
        return server

    def start_new(self, model: Path, variables: Mapping[str, str] | None = None) -> Server:
        """The same, and nobody has used it."""
        server = self.start(model, variables)
        if not self.is_new:
            self.stop()
            server = self.start(model, variables)
        self.is_new = False
        return server

    def stop(self) -> None:
        """End it, if one runs."""
        server, self._server = self._server, None
        if server is not None:
            server.close()


@pytest.fixture(scope="session")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    kept = Servers(tmp_path_factory.mktemp("log") / "vllm.log")
    yield kept
    kept.stop()


class Brake:
    """Makes servers slow to receive weights, in the thread in which they do.

    Args:
        folder: Holds what is put into their processes, and says when.
    """

    def __init__(self, folder: Path) -> None:
        self._file = folder / "seconds"
        metadata = make_distribution(
            folder,
            "brake",
            modules={
                "brake": f"""
                    import time
                    from pathlib import Path

                    def slow(call):
                        def slowed(*args):
                            found = call(*args)
                            if (file := Path({str(self._file)!r})).exists():
                                time.sleep(float(file.read_text()))
                            return found
                        return slowed

                    def register():
                        from skyrl_vllm.inside import adapters
                        from skyrl_vllm.inside.own import OwnReceiver

                        OwnReceiver.receive = slow(OwnReceiver.receive)
                        adapters.made = slow(adapters.made)
                """
            },
        )
        points = "[vllm.general_plugins]\nbrake = brake:register\n"
        (metadata / "entry_points.txt").write_text(points)
        path = [str(folder), *filter(None, [os.environ.get("PYTHONPATH")])]
        self.variables = {"PYTHONPATH": os.pathsep.join(path)}
        """Environment of such a server."""

    @contextmanager
    def on(self, seconds: float) -> Iterator[None]:
        """Each parcel, and what is made of an adapter's, takes so much longer."""
        self._file.write_text(str(seconds))
        try:
            yield
        finally:
            self._file.unlink()


@pytest.fixture(scope="session")
def brake(tmp_path_factory: pytest.TempPathFactory) -> Brake:
    return Brake(tmp_path_factory.mktemp("brake"))


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
