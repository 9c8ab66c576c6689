"""Roles: who may call a route that asks for some."""

from __future__ import annotations

from typing import Any

import pytest

from gati_core import App
from gati_core.errors import RegistrationError
from gati_testing import RequestBuilder, simulate


def office() -> App:
    app = App("office")

    @app.get("/open")
    async def everyone(req: Any, res: Any, gctx: Any, lctx: Any) -> None:
        res.json("open")

    @app.get("/books", roles=["auditor", "owner"])
    async def books(req: Any, res: Any, gctx: Any, lctx: Any) -> None:
        res.json("books")

    return app


@pytest.mark.parametrize(
    ("path", "roles", "status", "code"),
    [
        ("/open", None, 200, ""),
        ("/open", [], 200, ""),
        ("/books", None, 401, "auth.unauthenticated"),
        ("/books", [], 403, "auth.forbidden"),
        ("/books", ["cook"], 403, "auth.forbidden"),
        ("/books", ["owner"], 200, ""),
        ("/books", ["cook", "auditor"], 200, ""),
    ],
)
def test_one_of_the_roles_is_enough_and_none_is_refused(
    path: str, roles: list[str] | None, status: int, code: str
) -> None:
    request = RequestBuilder("GET", path)
    if roles is not None:
        request = request.auth("ada", roles=roles)

    with simulate(office()) as fabric:
        answer = fabric.request(request)
        assert answer.status == status
        assert (answer.code if code else "") == code
        assert bool(fabric.events) == (status == 200), "a refused request reaches no worker"


@pytest.mark.parametrize("roles", [[""], "admin", [3]])
def test_roles_that_are_none_are_refused_when_the_handler_is_registered(roles: Any) -> None:
    app = App("office")

    with pytest.raises(RegistrationError, match="role"):

        @app.get("/books", roles=roles)
        async def books(req: Any, res: Any, gctx: Any, lctx: Any) -> None: ...
