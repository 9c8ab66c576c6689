"""A package among the versions of its handlers: registering it, and the way its transformers lead.

Used by whatever runs a package: workers, `simulate()`, and the tools that publish.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import structlog

from gati_core.app._app import App
from gati_core.app._code import code_fingerprint
from gati_core.errors import AlreadyStored, RegistrationError, RequestError
from gati_core.gtype import CompiledValidator, compile_validator
from gati_core.lifecycle import Chain, Hop, Transformer, VersionTypes
from gati_core.manifests import HandlerManifest, ManifestStore, Transformation, TransformerRecord
from gati_core.timescape import Registered, Registry, Timeline, VersionRecord, Versions, register_handlers

log = structlog.get_logger(__name__)

_REMEMBERED = 256


class PackageVersions:
    """See the module.

    Args:
        store: where manifests and types are written and read.
    """

    def __init__(self, app: App, registry: Registry, store: ManifestStore) -> None:
        self._app = app
        self._registry = registry
        self._store = store
        self._transformers: dict[str, dict[str, Transformer]] = {}
        """By handler, then by the TSV of the version that each leads from."""
        self._types: dict[tuple[str, str], VersionTypes] = {}
        self.registered: dict[str, Registered] = {}
        """By handler, after `register`."""

    # -- registering ----------------------------------------------------------------------------

    async def store_documents(self) -> None:
        """Store all that manifests refer to, and then the manifests, before anybody can see the versions."""
        documents = {
            name: document for handler in self._app.handlers.values() for name, document in handler.documents_by_name()
        }
        for document in documents.values():
            await self._store.store_gtype(document)
        for handler in self._app.handlers.values():
            await self._store.store_manifest(self._app.name, handler.manifest)

    async def register(
        self,
        *,
        package: str,
        actor: str,
        reason: str = "",
        tags: Sequence[str] = (),
        anew: bool = False,
        is_published: bool = False,
    ) -> list[Registered]:
        """Make the package's handlers versions, where they are none yet; see `register_handlers`.

        Args:
            is_published: its transformers are written down, and never changed from then on.
        Raises:
            RegistrationError: a transformer leads between versions that are no neighbours, or is another one than
                was published for them.
        """
        manifests = [handler.manifest for handler in self._app.handlers.values()]
        transforms = {each.id: list(await self.find_transformers(each)) for each in manifests}
        if is_published:
            await self._write_down_transformers(manifests)  # first those of versions that are registered already
        done = await register_handlers(
            self._registry,
            self._store,
            self._app.name,
            manifests,
            package=package,
            actor=actor,
            reason=reason,
            transforms=transforms,
            tags=tags,
            anew=anew,
        )
        self.registered = {each.handler: each for each in done}
        if is_published:
            await self._write_down_transformers(manifests)
        return done

    async def _write_down_transformers(self, manifests: Sequence[HandlerManifest]) -> None:
        for manifest in manifests:
            known = self._transformers.get(manifest.id, {})
            if not known:
                continue
            timeline = await self._registry.timeline(self._app.name, manifest.id)
            own = timeline.with_fingerprint(manifest.fingerprint)
            for older, transformer in known.items():
                newer = _named(timeline, transformer.to_version) if transformer.to_version else own
                if newer is not None:
                    await self._write_down(manifest.id, transformer, older, newer.tsv)

    async def _write_down(self, handler: str, transformer: Transformer, older: str, newer: str) -> None:
        for direction in ("forward", "backward"):
            functions = {name: each for name, each in transformer.functions.items() if name.startswith(direction)}
            steps = [
                Transformation(
                    path=f"/{name.partition('_')[2]}", type="transform", details={"code": code_fingerprint([each])}
                )
                for name, each in sorted(functions.items())
            ]
            is_forward = direction == "forward"
            record = TransformerRecord(
                id=transformer.name[:200],
                app=self._app.name,
                handler_id=handler,
                from_version=older if is_forward else newer,
                to_version=newer if is_forward else older,
                direction="forward" if is_forward else "backward",
                transformations=steps,
            )
            try:
                await self._store.store_transformer(record)
            except AlreadyStored as exc:
                raise RegistrationError(
                    f"transformer {transformer.name} of {handler} from {older} to {newer} is another one than was"
                    " published for these versions, and those never change: take that one, or make a new version of"
                    " the handler with a transformer of its own"
                ) from exc

    async def find_transformers(self, manifest: HandlerManifest) -> dict[str, Transformer]:
        """A handler's transformers by the TSV that each leads from. One whose versions this fabric has never seen
        leads nowhere here, and is left out.

        Raises:
            RegistrationError: one leads between versions that are no neighbours.
        """
        declared = [each for each in self._app.transformers if each.handler == manifest.id]
        found: dict[str, Transformer] = {}
        if declared:
            timeline = await self._registry.timeline(self._app.name, manifest.id)
            own = timeline.with_fingerprint(manifest.fingerprint)
            before = timeline.newest if own is None else timeline.get(own.parent)
            for each in declared:
                older = _named(timeline, each.from_version)
                newer = _named(timeline, each.to_version) if each.to_version else None
                if older is None or (each.to_version and newer is None):
                    missing = each.to_version if older is not None else each.from_version
                    log.info("transformer_unused", transformer=each.name, handler=manifest.id, unknown=missing)
                    continue
                expected = before if newer is None else timeline.get(newer.parent)
                if expected is None or expected.tsv != older.tsv:
                    name = each.to_version or "this package's version"
                    follows = f"which follows {expected.tsv}" if expected is not None else "which follows none"
                    raise RegistrationError(
                        f"transformer {each.name} leads from {older.tsv} to {name}, {follows}: transformers lead only"
                        f" between neighbours; versions of {manifest.id}: {', '.join(_listed(timeline))}"
                    )
                if older.tsv in found:
                    raise RegistrationError(
                        f"transformers {found[older.tsv].name} and {each.name} both lead from {older.tsv}"
                    )
                found[older.tsv] = each
        self._transformers[manifest.id] = found
        return found

    # -- running --------------------------------------------------------------------------------

    async def chain(self, handler: str, hops: Sequence[str]) -> Chain:
        """The way that a router has planned.

        Args:
            hops: TSVs from the client's version to the one that runs.
        """
        known = self._transformers.get(handler, {})
        steps = [Hop(older, newer, known.get(older)) for older, newer in pairwise(hops)]
        return Chain(steps, await self._types_of(handler, hops[0]))

    async def _types_of(self, handler: str, tsv: str) -> VersionTypes:
        key = (handler, tsv)
        types = self._types.get(key)
        if types is None:
            types = await self._load_types(handler, tsv)
            if len(self._types) >= _REMEMBERED:
                del self._types[next(iter(self._types))]
            self._types[key] = types
        return types

    async def _load_types(self, handler: str, tsv: str) -> VersionTypes:
        version = (await self._registry.timeline(self._app.name, handler)).get(tsv)
        manifest = (
            await self._store.load_manifest(self._app.name, handler, version.fingerprint)
            if version is not None
            else None
        )
        if manifest is None:
            log.warning("version_types_missing", handler=handler, version=tsv)
            return VersionTypes()

        async def validator(name: str) -> CompiledValidator | None:
            document = await self._store.load_gtype(name) if name else None
            return compile_validator(document) if document is not None else None

        return VersionTypes(
            request=await validator(manifest.gtypes.request), response=await validator(manifest.gtypes.response)
        )


def _named(timeline: Timeline, name: str) -> VersionRecord | None:
    """The version that a transformer's author means."""
    try:
        return Versions[object](timeline, {}).resolve(name)[0]
    except RequestError:
        return None


def _listed(timeline: Timeline) -> list[str]:
    return [" ".join((each.tsv, *timeline.tags_of(each.tsv))) for each in timeline.versions[-10:]]
