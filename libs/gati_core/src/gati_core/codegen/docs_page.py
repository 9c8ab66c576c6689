"""The page that shows an OpenAPI document: one file, without anything from elsewhere."""

from __future__ import annotations

import json
from functools import cache
from importlib import resources

_PLACE = '"OPENAPI_URL"'


def docs_page(openapi_url: str) -> str:
    """A page of HTML that reads the OpenAPI document at `openapi_url`, shows it, and sends requests.

    All of it is in the one file. What the document says is shown as text, never as HTML.
    """
    return _template().replace(_PLACE, json.dumps(openapi_url).replace("<", "\\u003c"), 1)


@cache
def _template() -> str:
    return resources.files(__package__).joinpath("docs_page.html").read_text(encoding="utf-8")
