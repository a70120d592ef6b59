"""Log-probs are those of the weights that the engine should have."""

import pytest

from skyrl_kernel.protocols import Engine
from skyrl_kernel.testing.contracts.engine.model import ModelEngine, split


class LogProbContract(ModelEngine):
    """Sampled ones, and those of given rows."""

    def test_log_probs_at_first_are_those_of_the_model(self) -> None:
        """Before anything was pushed."""
        first = self._first()

        async def use(engine: Engine) -> None:
            await self._assert_has(engine, first)
            await self._assert_has_not(engine, first.perturbed(1, self.noise))

        self._use(use, self.make_untouched)

    @pytest.mark.parametrize("temperature", [0.7, 1.3])
    def test_log_probs_have_the_temperature_applied(self, temperature: float) -> None:
        """They are those of the distribution that was sampled from."""
        first = self._first()

        async def use(engine: Engine) -> None:
            await self._assert_has(engine, first, temperature)
            without = await self._differences(engine, first, temperature, expected_at=1.0)
            assert min(without) >= 100 * self.tolerance, "the temperature makes no difference"

        self._use(use)

    def test_log_probs_after_each_of_several_updates_are_those_of_its_weights(
        self, transport: str
    ) -> None:
        """As the loop brings them, with a negative control before each."""

        async def use(engine: Engine) -> None:
            weights = self._first()
            for version in (1, 2, 3):
                weights = weights.perturbed(version, self.noise)
                await self._assert_has_not(engine, weights)
                await self._push(weights, engine, version)
                await self._assert_has(engine, weights)
                assert engine.version == version
            await self._assert_has(engine, weights, 0.7)

        self._use_with(transport, use)

    def test_an_update_may_come_in_parts_and_in_any_order(self, transport: str) -> None:
        """`Engine.apply_update` receives some tensors or all; what counts is the end."""

        async def use(engine: Engine) -> None:
            first = self._first()
            weights = first.perturbed(1, self.noise)
            await engine.begin_update(1)
            for part in split(weights, 3):
                await engine.apply_update(part)
                await self._assert_has(engine, first)  # nothing is seen of it before the end
            await engine.finish_update(1)
            await self._assert_has(engine, weights)

        self._use_with(transport, use)
