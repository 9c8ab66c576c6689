"""What tests of Gati and of handler packages share.

Belongs here: the harness that runs a handler, the simulation of a fabric, fakes of what handlers
call, the pytest plugin (fixtures around a real fabric), and hypothesis strategies for whatever
travels or is declared. Does not belong here: fakes of parts that can be started, except where one
suite runs over both, and helpers of a single test module.

May import: `gati_core`, and of the services what decides without I/O (`gati_ingress.head`,
`gati_router.matching` and `.catalogue`). The services themselves are started as processes.
"""

from gati_testing._memory_bucket import MemoryBucket
from gati_testing._memory_topics import MemoryTopics
from gati_testing._processes import ServiceProcess
from gati_testing._running_fabric import AppSource, FabricNotServing, RunningFabric, open_broker, running_fabric
from gati_testing._virtual_loop import (
    VirtualDeadlock,
    VirtualLoop,
    VirtualLoopStuck,
    VirtualTimeError,
    VirtualTimeLimit,
)
from gati_testing._waiting import eventually
from gati_testing.assertions import Answer, AnswerAssertions, assert_body, assert_response, assert_status
from gati_testing.builders import (
    BuiltRequest,
    FakeGlobalContextBuilder,
    FakeLocalContextBuilder,
    RequestBuilder,
    create_fake_global_context,
    create_fake_local_context,
    create_test_request,
    create_test_response,
)
from gati_testing.fakes import Call, FakeModule, create_mock_module, create_stub_module
from gati_testing.harness import Harness, Result, create_test_harness, run_handler
from gati_testing.round_trips import check_round_trip
from gati_testing.simulation import (
    HandshakeRefused,
    SimulatedSocket,
    SimulatedStream,
    Simulation,
    SimulationMetrics,
    simulate,
)

__all__ = [
    "Answer",
    "AnswerAssertions",
    "AppSource",
    "BuiltRequest",
    "Call",
    "FabricNotServing",
    "FakeGlobalContextBuilder",
    "FakeLocalContextBuilder",
    "FakeModule",
    "HandshakeRefused",
    "Harness",
    "MemoryBucket",
    "MemoryTopics",
    "RequestBuilder",
    "Result",
    "RunningFabric",
    "ServiceProcess",
    "SimulatedSocket",
    "SimulatedStream",
    "Simulation",
    "SimulationMetrics",
    "VirtualDeadlock",
    "VirtualLoop",
    "VirtualLoopStuck",
    "VirtualTimeError",
    "VirtualTimeLimit",
    "assert_body",
    "assert_response",
    "assert_status",
    "check_round_trip",
    "create_fake_global_context",
    "create_fake_local_context",
    "create_mock_module",
    "create_stub_module",
    "create_test_harness",
    "create_test_request",
    "create_test_response",
    "eventually",
    "open_broker",
    "run_handler",
    "running_fabric",
    "simulate",
]
