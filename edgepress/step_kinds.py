"""The kinds of step a recipe is made of: what they depend on, and what they may run beside."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from edgepress.config import Config
from edgepress.isolate import Limits
from edgepress.machine import cores
from edgepress.step import Result, Step


class StepKinds:
    """The three kinds of step, with the recipe's limits.

    Args:
        config: the recipe.
        do: runs or plans a step.
    """

    def __init__(self, config: Config, do: Callable[[Step], Result]) -> None:
        self.config, self._do = config, do
        self._limits = Limits(config.run.timeout, int(config.run.memory), "run.timeout", "run.memory")

    def user(
        self, name: str, function: str, params: Mapping[str, Any], inputs: Mapping[str, Result], files: tuple[Any, ...] = ()
    ) -> Result:
        """A step that runs the user's code."""
        return self._do(Step(name, function, params, inputs, self.config.root, files, threads=cores(), limits=self._limits, warm=True))

    def shared(
        self,
        name: str,
        function: str,
        params: Mapping[str, Any],
        inputs: Mapping[str, Result],
        threads: int | None = None,
        expected_s: float = 0.0,
    ) -> Result:
        """A step whose result holds on every machine; it takes all cores unless it is given a number of threads."""
        threads = threads or cores()
        return self._do(Step(name, function, params, inputs, threads=threads, limits=self._limits, warm=True, expected_s=expected_s))

    def machine(self, name: str, function: str, params: Mapping[str, Any], inputs: Mapping[str, Result], threads: int) -> Result:
        """A measurement: for this machine, with nothing else running."""
        return self._do(Step(name, function, params, inputs, machine=True, alone=True, threads=threads, limits=self._limits))
