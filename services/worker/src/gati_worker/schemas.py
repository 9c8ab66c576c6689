"""The database schemas of the package that a worker runs: in use from its start to its decommission.

A worker that drains, crashes or is replaced goes on using them: others run the same version, or will again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from gati_core import App
from gati_core.app.packages import PackageSpec
from gati_core.fabric import Fabric
from gati_core.schemas import SchemaResult, fabric_schemas


def schema_user(spec: PackageSpec, app: str, pool: str) -> str:
    """By what name a version of a package uses its schemas.

    All versions of a package that is being edited are one: they come with every save, and none is ever decommissioned.
    """
    return f"{app}@edited" if spec.root else pool


async def activate_schemas(
    fabric: Fabric,
    app: App,
    *,
    user: str,
    actor: str,
    environ: Mapping[str, str],
    on_progress: Callable[[float], None],
) -> None:
    """Before a version starts: run what of its migrations nobody has run yet.

    Raises:
        SchemaError: a migration failed, or its database cannot be reached: the version must not start.
        BrokerUnavailable, KeyConflict: the fabric could not be asked.
    """
    if app.db_schemas:
        schemas = fabric_schemas(fabric, environ=environ, actor=actor, on_progress=on_progress)
        await schemas.activate_all(app.db_schemas, user)
        on_progress(0.0)  # what comes next takes as long as it always does


async def decommission_schemas(
    fabric: Fabric, app: App, *, user: str, actor: str, environ: Mapping[str, str]
) -> list[SchemaResult]:
    """After the last worker of a version has left for good: roll back what no other version uses.

    Args:
        user: as `schema_user` said when it started.
    Returns:
        One for each schema, the last declared first; one that failed can be tried again.
    Raises:
        BrokerUnavailable, KeyConflict: the fabric could not be asked.
    """
    if not app.db_schemas:
        return []
    schemas = fabric_schemas(fabric, environ=environ, actor=actor)
    return await schemas.deactivate_all(app.db_schemas, user)
