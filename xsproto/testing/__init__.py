"""The conformance kit: what users of any adapter, on any daemon, may rely on.

===============  =================================================================================
`scenarios`      the scenarios, by subject: coroutines that use clients and check what comes of it
`harness`        what a scenario is given: `Harness`, and the protocols of clients and tasks
`runner`         the table `SCENARIOS`, `run_scenario`, and the checks that scenarios use
`faults`         transports that go wrong: as a script says, or by chance
`conversations`  what clients and a daemon do, step by step, as values and as bytes
`strategies`     hypothesis strategies for all messages, and for conversations
`fuzz`           fuzz targets: the rules that hold whatever bytes come
===============  =================================================================================

To check an adapter, write a harness for it. The daemon's part is ``DaemonHarness`` of
``xsproto_sync.testing``; the event loop's part is yours, as in this outline::

    class MyHarness(DaemonHarness):
        def __init__(self, daemon):
            super().__init__(daemon)
            self.stack = contextlib.AsyncExitStack()
            self.tasks = []

        async def open(self, domid=0, **options):
            client = my_adapter.open_client(self.socket_path(domid), **options)
            return await self.stack.enter_async_context(client)

        async def close(self, client):
            client.close()

        def spawn(self, coroutine, *, cancellable=False):
            self.tasks.append(MyTask(coroutine))  # it starts, and has `cancel` and `result`
            return self.tasks[-1]

        async def sleep(self, seconds):
            await my_loop.sleep(seconds)

        def run(self, scenario):
            ...  # run the coroutine in the loop; then cancel `self.tasks`, close `self.stack`

`MyTask.result` raises `Cancelled` for a task that was cancelled, whatever exception the loop has
for this. ``xsproto_sync.testing.check(MyHarness)`` runs all scenarios, each with a new harness and
a new daemon. Without it, call ``await run_scenario(name, harness)`` for each name in `SCENARIOS`,
with a new harness and a new daemon, unless ``SCENARIOS[name].why_not(harness)`` gives a reason to
leave the scenario out. A scenario that does not hold raises `ScenarioFailed`. The kit needs no test
framework.

"How to write an adapter" in the documentation has a complete harness.
"""

from . import scenarios  # noqa: F401  # imported because its modules register the scenarios
from .faults import Blocked, Broken, End, Fault, FaultyTransport, Garbage, SeededTransport, Short
from .harness import (
    Cancelled,
    Client,
    Device,
    DomainState,
    DomainWatch,
    Harness,
    Monitor,
    Operations,
    RawConnection,
    Stream,
    Task,
    Transaction,
    View,
    Watch,
)
from .runner import SCENARIOS, Scenario, ScenarioFailed, run_scenario, scenario

__all__ = [
    "SCENARIOS",
    "Blocked",
    "Broken",
    "Cancelled",
    "Client",
    "Device",
    "DomainState",
    "DomainWatch",
    "End",
    "Fault",
    "FaultyTransport",
    "Garbage",
    "Harness",
    "Monitor",
    "Operations",
    "RawConnection",
    "Scenario",
    "ScenarioFailed",
    "SeededTransport",
    "Short",
    "Stream",
    "Task",
    "Transaction",
    "View",
    "Watch",
    "run_scenario",
    "scenario",
]
