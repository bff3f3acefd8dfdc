"""The conformance kit: what a user of any adapter, on any daemon, may rely on.

To check an adapter, write a `Harness` for it, and for each name in `SCENARIOS` run
``await run_scenario(name, harness)`` with a new harness. Scenarios whose `Scenario.why_not` gives
a reason are to be left out. It needs no test framework.
"""

from . import scenarios  # noqa: F401  # imported for what they register
from .harness import (
    Cancelled,
    Client,
    DomainState,
    Harness,
    Monitor,
    Operations,
    Stream,
    Task,
    Transaction,
    Watch,
)
from .runner import SCENARIOS, Scenario, ScenarioFailed, run_scenario, scenario

__all__ = [
    "SCENARIOS",
    "Cancelled",
    "Client",
    "DomainState",
    "Harness",
    "Monitor",
    "Operations",
    "Scenario",
    "ScenarioFailed",
    "Stream",
    "Task",
    "Transaction",
    "Watch",
    "run_scenario",
    "scenario",
]
