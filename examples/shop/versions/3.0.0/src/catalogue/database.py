"""The shop's database. Its tables are made by the migrations beside this file, before the package starts."""

import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager


@contextmanager
def connect() -> Iterator[sqlite3.Connection]:
    """A connection; what is done with it is committed at the end, unless it fails."""
    path = os.environ["SHOP_DB"].removeprefix("sqlite:///")
    with closing(sqlite3.connect(path, timeout=5)) as connection, connection:
        yield connection
