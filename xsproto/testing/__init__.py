"""The conformance kit: what a user of any adapter, on any daemon, may rely on.

To check an adapter, write a `Harness` for it, and for each name in `SCENARIOS` run
``await run_scenario(name, harness)`` with a new harness. Scenarios whose `Scenario.why_not` gives
a reason are to be left out. It needs no test framework.
"""

from . import (
    scenarios_arguments,
    scenarios_connection,
    scenarios_domains,
    scenarios_nodes,
    scenarios_storms,
    scenarios_transactions,
    scenarios_watches,
)
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
from .table import SCENARIOS, Scenario, ScenarioFailed, run_scenario, scenario

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

# They are imported for what they register.
del (
    scenarios_arguments,
    scenarios_connection,
    scenarios_domains,
    scenarios_nodes,
    scenarios_storms,
    scenarios_transactions,
    scenarios_watches,
)
