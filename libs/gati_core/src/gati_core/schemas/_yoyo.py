"""Running the migrations of a schema, or its rollbacks, on one database.

Blocking: runs in a thread. Imports yoyo, which reads the files and keeps their order, and which few processes need.
"""

from __future__ import annotations

import glob
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from yoyo import exceptions as yoyo_errors
from yoyo import read_migrations
from yoyo.migrations import topological_sort

from gati_core.errors import SchemaError
from gati_core.schemas._backends import hash_of, opened, text_of
from gati_core.schemas._job import Job, Outcome
from gati_core.schemas._thread import Control, Stopped

# -- what is done ------------------------------------------------------------------------------------


def pending(job: Job, control: Control) -> list[str]:
    """The ids of migrations that are not applied, without changing anything."""
    with opened(job, control) as backend:
        try:
            applied = backend.applied_hashes_if_any()
        except backend.DatabaseError as exc:
            raise SchemaError(job.database.scrub(text_of(exc))) from exc
    return [each.id for each in job.scripts if hash_of(each.id) not in applied]


def apply(job: Job, control: Control, outcome: Outcome) -> None:
    """Run the migrations that are not applied, in order; stops at the first that fails."""

    def work() -> None:
        migrations = _migrations_of(job)
        with opened(job, control) as backend:
            backend.prepare()
            applied = backend.applied_hashes_if_any()
            outcome.applied = [each.id for each in migrations if each.hash in applied]
            outcome.is_known = True
            _check_unchanged(job, outcome.applied)
            for each in migrations:
                if each.hash not in applied:
                    outcome.script, outcome.is_atomic = each.id, backend.is_atomic(each)
                    control.begin(each.id)
                    if backend.apply_in_full(each):
                        outcome.executed.append(each.id)
                    outcome.applied.append(each.id)
            if outcome.executed or job.is_unfinished:
                for each in migrations.post_apply:
                    outcome.script, outcome.is_atomic = each.id, backend.is_atomic(each)
                    control.begin(each.id)
                    backend.apply_hook(each)
            outcome.script = ""

    outcome.error = _attempt(work, job, control, outcome)


def roll_back(job: Job, control: Control, outcome: Outcome, *, needed: Iterable[str]) -> None:
    """Run the rollbacks of what is applied, the last first, down to what others need or what has none.

    Args:
        needed: ids of migrations that must stay.
    """
    stays = set(needed)

    def work() -> None:
        migrations = _migrations_of(job)
        with opened(job, control) as backend:
            backend.prepare()
            applied = backend.applied_hashes_if_any()
            outcome.applied = [each.id for each in migrations if each.hash in applied]
            outcome.is_known = True
            own = {each.id for each in migrations}
            foreign = [id for id, (_, of) in job.known.items() if of == job.schema.name and hash_of(id) in applied]
            missing = [id for id in foreign if id not in own]
            if missing:
                raise SchemaError(
                    f"{missing[0]} was applied by another version of the package, and {job.schema.directory} does not"
                    " hold it: roll back with the newest version that used the schema"
                )
            for each in reversed(list(migrations)):
                if each.hash not in applied:
                    continue
                each.load()
                if each.id in stays or not _is_reversible(each):
                    outcome.kept = list(outcome.applied)
                    break
                outcome.script, outcome.is_atomic = each.id, backend.is_atomic(each)
                control.begin(each.id)
                if backend.roll_back_in_full(each):
                    outcome.executed.append(each.id)
                outcome.applied.remove(each.id)
            outcome.script = ""

    outcome.error = _attempt(work, job, control, outcome)


def _attempt(work: Callable[[], None], job: Job, control: Control, outcome: Outcome) -> str:
    try:
        work()
    except Stopped as exc:
        outcome.is_stopped = True
        return str(exc)
    except SchemaError as exc:
        return job.database.scrub(str(exc))
    except Exception as exc:
        if control.reason:  # what it broke off with is of no interest
            outcome.is_stopped = True
            return control.reason
        return job.database.scrub(text_of(exc))
    return ""


# -- reading the files -------------------------------------------------------------------------------


def _migrations_of(job: Job) -> Any:
    """yoyo's list of migrations, in the order in which they are applied."""
    wanted = {script.id for script in job.scripts}
    try:
        found = read_migrations(glob.escape(str(job.schema.directory)))
        return found.replace(list(topological_sort([each for each in found if each.id in wanted])))
    except yoyo_errors.MigrationConflict as exc:
        raise SchemaError(f"two migrations in {job.schema.directory} are named {exc}: rename one") from exc
    except (yoyo_errors.BadMigration, OSError, UnicodeDecodeError, KeyError) as exc:
        cause = exc.args[1] if isinstance(exc, yoyo_errors.BadMigration) and len(exc.args) > 1 else exc
        place = exc.args[0] if isinstance(exc, yoyo_errors.BadMigration) else job.schema.directory
        raise SchemaError(f"{place} cannot be read: {text_of(cause)}") from exc


def _check_unchanged(job: Job, applied: Iterable[str]) -> None:
    texts = {script.id: script for script in job.scripts}
    for id in applied:
        before, schema = job.known.get(id, ("", ""))
        if before and before != texts[id].sha256:
            raise SchemaError(
                f"{texts[id].path} is not what was applied under this name, by {schema}: a migration that is applied"
                " is never changed; put its text back, and make the change in a new file"
            )


def _is_reversible(migration: Any) -> bool:
    """Whether it brings anything that rolls it back, or does nothing that would have to be."""
    steps = list(_single_steps(migration.steps))
    return not steps or any(step._rollback is not None for step in steps)


def _single_steps(steps: Iterable[Any]) -> Iterator[Any]:
    for step in steps:
        inner = getattr(step, "step", step)
        if hasattr(inner, "steps"):
            yield from _single_steps(inner.steps)
        else:
            yield inner
