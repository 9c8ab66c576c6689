"""A process that activates one schema and says what became of it, for tests with several processes."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import msgspec
import structlog

from gati_core.fabric import open_fabric
from gati_core.schemas import DbSchema, SchemaResult, fabric_schemas
from gati_core.settings import FabricSettings

ROOT = Path(__file__).parent.parent.parent


class Order(msgspec.Struct, kw_only=True):
    """What the process is to do."""

    settings: FabricSettings
    app: str
    schema: str
    url: str
    directory: str
    version: str
    lock_ttl_s: int = 15
    lock_wait_s: float = 60.0


async def start(order: Order) -> asyncio.subprocess.Process:
    """Start one; it waits for a line on its standard input before it begins."""
    return await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", __name__, msgspec.json.encode(order).decode()),
        cwd=ROOT,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )


async def wait_until_connected(process: asyncio.subprocess.Process) -> None:
    """Return once it is about to wait."""
    assert process.stdout is not None
    assert await process.stdout.readline() == b"ready\n"


async def go(process: asyncio.subprocess.Process) -> None:
    """Let it begin."""
    assert process.stdin is not None
    process.stdin.write(b"go\n")
    await process.stdin.drain()


async def result_of(process: asyncio.subprocess.Process) -> SchemaResult:
    """What became of it."""
    assert process.stdout is not None
    line = await process.stdout.readline()
    await process.wait()
    return msgspec.json.decode(line, type=SchemaResult)


# -- inside the process -------------------------------------------------------------------------


async def _main(order: Order) -> None:
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
    schema = DbSchema(app=order.app, name=order.schema, url=order.url, directory=Path(order.directory))
    async with open_fabric(order.settings, name="schemas", ensure=False) as fabric:
        schemas = fabric_schemas(
            fabric,
            environ={},
            actor=order.version,
            lock_ttl_s=order.lock_ttl_s,
            lock_wait_s=order.lock_wait_s,
        )
        print("ready", flush=True)
        await asyncio.to_thread(sys.stdin.readline)
        result = await schemas.activate(schema, order.version)
    print(msgspec.json.encode(result).decode(), flush=True)


if __name__ == "__main__":
    asyncio.run(_main(msgspec.json.decode(sys.argv[1], type=Order)))
