"""An engine that gives its accelerator back for a while."""

import numpy as np
import pytest

from skyrl_kernel.errors import RunError
from skyrl_kernel.protocols import Engine, Sleeps
from skyrl_kernel.records import GenerateRequest
from skyrl_kernel.testing.contracts.engine.subject import EngineSubject


class SleepContract(EngineSubject):
    """For an engine that offers ``sleeps``.

    Where there is no accelerator an engine may keep its memory; it keeps the order all the same.
    """

    def test_it_keeps_the_protocol_of_sleep(self) -> None:
        """Both methods are there."""
        assert isinstance(self.make(), Sleeps)

    def test_it_wakes_with_the_weights_that_came_in_its_sleep(self) -> None:
        """As in every step of a run that shares a GPU, more than once."""

        async def use(engine: Engine) -> None:
            await _update(self, engine, 1)
            rows = list(self.prompts())
            expected = await engine.logprobs(rows, temperature=1.0)
            for version in (2, 3):
                await _sleep(engine, 2)
                await _wake(engine, "weights")
                await _update(self, engine, version)
                await _wake(engine, "kv_cache")
                found = await engine.logprobs(rows, temperature=1.0)
                for a, b in zip(found, expected, strict=True):
                    np.testing.assert_allclose(a, b, atol=self.tolerance)
                (one,) = await engine.generate([_request(self)])
                assert (one.versions == version).all()

        self._use(use)

    def test_at_level_1_it_keeps_its_weights(self) -> None:
        """An evaluation's scores are computed in between, and no weights come."""

        async def use(engine: Engine) -> None:
            rows = list(self.prompts())
            expected = await engine.logprobs(rows, temperature=1.0)
            await _sleep(engine, 1)
            await _wake(engine, "weights")
            await _wake(engine, "kv_cache")
            found = await engine.logprobs(rows, temperature=1.0)
            for a, b in zip(found, expected, strict=True):
                np.testing.assert_allclose(a, b, atol=self.tolerance)

        self._use(use)

    def test_a_request_in_its_sleep_is_an_error(self) -> None:
        """Nobody would wake it: the loop waits for the answer."""

        async def use(engine: Engine) -> None:
            await _sleep(engine, 2)
            for _ in range(2):
                with pytest.raises(RunError):
                    await engine.generate([_request(self)])
                with pytest.raises(RunError):
                    await engine.logprobs(list(self.prompts()), temperature=1.0)
                await _wake(engine, "weights")  # and still no cache
            await _update(self, engine, 1)
            await _wake(engine, "kv_cache")
            assert len(await engine.generate([_request(self)])) == 1

        self._use(use)


def _request(subject: EngineSubject) -> GenerateRequest:
    return subject._request(subject.prompts()[0], 4)


async def _update(subject: EngineSubject, engine: Engine, version: int) -> None:
    await engine.begin_update(version)
    await engine.apply_update(subject.other_weights())
    await engine.finish_update(version)


async def _sleep(engine: Engine, level: int) -> None:
    assert isinstance(engine, Sleeps)
    await engine.sleep(level)


async def _wake(engine: Engine, what: str) -> None:
    assert isinstance(engine, Sleeps)
    await engine.wake("weights" if what == "weights" else "kv_cache")
