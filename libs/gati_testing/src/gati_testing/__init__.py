"""What tests of Gati and of handler packages share.

Belongs here: the pytest plugin (fixtures around a real fabric), hypothesis strategies for whatever
travels or is declared, and the harness that runs a handler. Does not belong here: fakes of parts
that can be started, and helpers of a single test module.

May import: `gati_core`, and the pure parts of router and worker. The services themselves are
started as processes.
"""

from gati_testing._processes import ServiceProcess
from gati_testing._running_fabric import AppSource, FabricNotServing, RunningFabric, open_broker, running_fabric
from gati_testing._waiting import eventually

__all__ = [
    "AppSource",
    "FabricNotServing",
    "RunningFabric",
    "ServiceProcess",
    "eventually",
    "open_broker",
    "running_fabric",
]
