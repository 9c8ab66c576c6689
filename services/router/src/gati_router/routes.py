"""Handlers as the router sees them: their versions, where each of them runs, and the routes that lead to them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from gati_core.errors import Forbidden, RouteNotFound, TagNotFound, Unauthenticated
from gati_core.manifests import HandlerManifest, PoolManifest
from gati_core.timescape import FROM_QUERY, Choice, Rollout, Timeline, VersionRecord, Versions, read_preference
from gati_core.wire import WEBSOCKET, Principal, Subjects


class Target:
    """A handler of a pool, ready to be published to."""

    __slots__ = (
        "app",
        "fingerprint",
        "handler",
        "is_asleep",
        "is_once",
        "is_shaky",
        "methods",
        "mode",
        "names",
        "path",
        "pool",
        "rank",
        "roles",
        "subject",
    )

    def __init__(
        self,
        subjects: Subjects,
        pool: PoolManifest,
        handler: HandlerManifest,
        *,
        rank: int,
        is_shaky: bool = False,
        is_asleep: bool = False,
    ) -> None:
        self.app = pool.app
        self.pool = pool.pool
        self.rank = rank
        """The place of its pool: 0 is the newest."""
        self.is_shaky = is_shaky
        """Whether most of what its pool did lately failed."""
        self.is_asleep = is_asleep
        """Whether its pool has to be woken when there is work for it."""
        self.handler = handler.id
        self.methods = tuple(handler.methods)
        self.path = handler.path
        self.names = _names(handler.path)
        self.mode = handler.mode
        self.is_once = handler.mode == "at_most_once"
        self.roles = frozenset(handler.policies.roles)
        self.fingerprint = handler.fingerprint
        self.subject = subjects.work(pool.pool, handler.id).encode()

    def admit(self, principal: Principal | None) -> None:
        """Let a caller through that has one of the roles, where any are asked for.

        Raises:
            Unauthenticated: nobody said who calls.
            Forbidden: the caller has none of the roles.
        """
        if not self.roles:
            return
        if principal is None:
            raise Unauthenticated("this route needs credentials")
        if self.roles.isdisjoint(principal.roles):
            raise Forbidden(f"this route needs one of the roles {', '.join(sorted(self.roles))}")

    def _content(self) -> tuple[object, ...]:
        return (
            self.pool,
            self.rank,
            self.is_shaky,
            self.is_asleep,
            self.handler,
            self.methods,
            self.path,
            self.mode,
            self.roles,
            self.fingerprint,
        )

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Target) and self._content() == other._content()

    def __hash__(self) -> int:
        return hash((self.pool, self.handler))


class Handler:
    """One handler with all its versions.

    Args:
        live: where it runs, newest pool first.
        remembered: where it ran last, when nothing of its app's newest version lives.
    """

    def __init__(
        self,
        app: str,
        id: str,
        *,
        live: Sequence[Target],
        remembered: Target | None,
        timeline: Timeline | None,
        rollout: Rollout | None,
    ) -> None:
        self.app = app
        self.id = id
        self._live = tuple(live)
        self._remembered = remembered
        self._timeline = timeline
        self._rollout = rollout
        self.versions: Versions[Target] | None = None
        self._plain: list[Choice[Target]] = []
        self.routes: tuple[Route, ...] = ()
        """Those that lead here; there after `work_out`."""

    @property
    def is_known(self) -> bool:
        """Whether there is anything to route to, now or later."""
        return bool(self._live) or self._remembered is not None or self._timeline is not None

    @property
    def rank(self) -> int:
        """What sorts handlers that want the same route: the newest pool first, those that only were last."""
        if self._live:
            return self._live[0].rank
        return self._remembered.rank if self._remembered is not None else 1_000_000

    def take(self, other: Handler) -> bool:
        """Become what the other one is; returns whether anything changed."""
        same = (
            self._live == other._live
            and self._remembered == other._remembered
            and self._timeline is other._timeline
            and self._rollout is other._rollout
        )
        if same:
            return False
        self._live, self._remembered = other._live, other._remembered
        self._timeline, self._rollout = other._timeline, other._rollout
        self.work_out()
        return True

    def latest(self, listens: Callable[[VersionRecord], bool]) -> tuple[Choice[Target] | None, bool]:
        """For requests to one route that ask for no version.

        Args:
            listens: whether a version has the route.
        Returns:
            The newest version that has it, if any; and whether callers are told apart (`latest_for`) before that.
        """
        if self.versions is None:
            return next((each for each in self._plain if listens(each.resolved)), None), False
        latest = self.versions.latest
        if latest is not None and listens(latest.resolved):
            return latest, False
        found = self.versions.newest_that(listens)
        if found is not None and found.target is None and self._live:
            # The handler lives and has moved: nobody is to wait here for what is not coming back.
            found = None
        return found, self.versions.tells_callers_apart

    def choose(self, preference: str) -> Choice[Target]:
        """For a request that asks for a version; raises as `Versions.choose`."""
        if self.versions is not None:
            return self.versions.choose(preference)
        text = preference.removeprefix(FROM_QUERY)
        read_preference(text)
        raise TagNotFound(f"handler {self.id} has no versions, so none that is called {text[:100]!r}")

    def work_out(self) -> None:
        """Prepare the answers to what requests will ask."""
        timeline = self._timeline
        self.versions, self._plain = None, []
        records: list[VersionRecord] = []
        # A fault that every version has is answered with its own error: 503 would only hide it.
        live = [target for target in self._live if not target.is_shaky] or self._live
        plain = [target for target in live if not target.fingerprint]
        if plain:
            self._plain = [_plain_choice(target, is_live=True) for target in plain]
            records = [each.resolved for each in self._plain]
        elif timeline is not None and timeline.versions:
            targets: dict[str, Target] = {}
            for target in live:
                targets.setdefault(target.fingerprint, target)
            transforms = not any(WEBSOCKET in target.methods for target in live)
            self.versions = Versions(timeline, targets, self._rollout, transforms=transforms)
            if targets or self._remembered is not None:
                # A handler that its app's newest package lacks, and that nothing serves, has no routes any more.
                records = [each for each in reversed(timeline.versions) if each.is_active]
        elif self._remembered is not None:
            self._plain = [_plain_choice(self._remembered, is_live=False)]
            records = [each.resolved for each in self._plain]
        wanted: dict[tuple[str, str], str] = {}
        for each in records:
            for method in each.methods:
                wanted.setdefault((method, _shape(each.path)), each.path)
        known = {(route.method, route.path): route for route in self.routes}
        self.routes = tuple(
            known.get((method, path)) or Route(self, method, path) for (method, _), path in wanted.items()
        )


class Route:
    """A method and a path that lead to a handler."""

    __slots__ = ("_otherwise", "handler", "latest", "method", "names", "path", "shape")

    def __init__(self, handler: Handler, method: str, path: str) -> None:
        self.handler = handler
        self.method = method
        self.path = path
        self.names = _names(path)
        self.shape = _shape(path)
        self.latest: Choice[Target] | None = None
        """For requests that ask for no version, where callers are not told apart."""
        self._otherwise: Choice[Target] | None = None

    def refresh(self) -> None:
        """The handler has changed."""
        choice, depends = self.handler.latest(self.knows)
        self.latest = None if depends else choice
        self._otherwise = choice

    def latest_for(self, caller: str) -> Choice[Target]:
        """For a request that asks for no version, where `latest` does not say.

        Raises:
            VersionNotFound: no version is active.
            RouteNotFound: none that listens here.
        """
        versions = self.handler.versions
        if versions is not None and versions.tells_callers_apart:
            choice = versions.latest_for(caller)
            if self.knows(choice.resolved):
                return choice
        if self._otherwise is None:
            raise RouteNotFound(f"no active version of handler {self.handler.id} listens on {self.path}")
        return self._otherwise

    def knows(self, version: VersionRecord) -> bool:
        """Whether this version listens here."""
        return self.method in version.methods and (version.path == self.path or _shape(version.path) == self.shape)

    def named(self, params: dict[str, str], choice: Choice[Target]) -> dict[str, str]:
        """Parameters under the names that the version which reads them gives them."""
        names = self.names
        if choice.hops:
            names = _names(choice.resolved.path)
        elif choice.target is not None:
            names = choice.target.names
        if names == self.names or len(names) != len(self.names):
            return params
        return dict(zip(names, params.values(), strict=True))


def _plain_choice(target: Target, *, is_live: bool) -> Choice[Target]:
    record = VersionRecord(tsv="", fingerprint="", methods=list(target.methods), path=target.path)
    return Choice(source="latest", resolved=record, runs=record, target=target if is_live else None)


def _names(path: str) -> tuple[str, ...]:
    return tuple(segment[1:-1] for segment in path.split("/") if segment.startswith("{"))


def _shape(path: str) -> str:
    """A path without the names of its parameters."""
    return "/".join("{}" if segment.startswith("{") else segment for segment in path.split("/"))
