"""An engine in another process, which may die."""

import asyncio

import pytest

from skyrl_kernel.errors import SkyrlError, WeightSyncError
from skyrl_kernel.protocols import Engine
from skyrl_kernel.testing.contracts.engine.model import ModelEngine


class ServedContract(ModelEngine):
    """Override `kill` too."""

    killed_says = ""
    """A regular expression: what an error says of a server that has been killed."""

    def make_doomed(self) -> Engine:
        """As `make`; its server is killed, so the next one needs another."""
        return self.make()

    def kill(self, engine: Engine) -> None:
        """End the process that computes, without warning."""
        raise NotImplementedError("override kill()")

    def test_a_server_that_is_killed_is_an_error_and_never_a_hang(self) -> None:
        """For those who wait for it, those who ask afterwards, and an update."""

        async def use(engine: Engine) -> None:
            since = await self._count(engine)
            task = asyncio.ensure_future(engine.generate(self._long_requests()))
            await self._under_way(engine, since)
            self.kill(engine)
            with pytest.raises(SkyrlError):
                await asyncio.wait_for(task, self.patience_s)
            with pytest.raises(SkyrlError, match=self.killed_says):
                await asyncio.wait_for(engine.generate(self._long_requests()), self.patience_s)
            with pytest.raises(WeightSyncError):
                await asyncio.wait_for(self._push(self._first(), engine, 1), self.patience_s)
            await asyncio.wait_for(engine.close(), self.patience_s)

        self._use(use, self.make_doomed)
