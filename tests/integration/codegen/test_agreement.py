"""One corpus, five judges: the reference, generated Python, generated TypeScript, JSON Schema, and what was promised.

Types and values are drawn by hypothesis. Where a judge is known to differ, `is_documented_exception` says why.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st

from gati_core.codegen import typescript_types, typescript_validators
from gati_core.gtype import Document, compile_validator, errors_of, python_module, to_json_schema
from gati_testing.gtypes import documents, near_values
from tests.helpers import node
from tests.helpers.gtype_exceptions import is_documented_exception

Corpus = tuple[dict[str, Document], list[tuple[str, Any]]]


@pytest.fixture(scope="module")
def corpus() -> Corpus:
    """At least 150 types with several values each, valid ones and ones that are nearly so."""
    types: dict[str, Document] = {}
    values: list[tuple[str, Any]] = []

    @seed(20260131)
    @settings(max_examples=150, database=None, deadline=None, suppress_health_check=list(HealthCheck))
    @given(data=st.data())
    def collect(data: st.DataObject) -> None:
        document = data.draw(documents())
        name = f"Type{len(types)}"
        types[name] = document
        for _ in range(4):
            value = data.draw(near_values(document))
            if not is_documented_exception(document, value):
                try:
                    values.append((name, json.loads(json.dumps(value, allow_nan=False))))
                except (TypeError, ValueError):
                    continue  # no JSON

    collect()
    assert len(types) >= 150
    return types, values


@pytest.mark.prop(13)
def test_the_corpus_has_both_kinds_of_values(corpus: Corpus) -> None:
    types, values = corpus
    valid = sum(not errors_of(value, types[name]) for name, value in values)

    assert valid > 50
    assert len(values) - valid > 50


@pytest.mark.prop(13)
def test_generated_python_agrees_in_this_process_and_on_its_own(corpus: Corpus) -> None:
    types, values = corpus
    names: dict[str, Any] = {"__name__": "validators"}
    exec(compile(python_module(types), "validators.py", "exec"), names)

    for name, value in values:
        reference = errors_of(value, types[name])
        assert compile_validator(types[name]).errors(value) == reference
        assert [tuple(each) for each in names[f"validate_{name}"](value)] == [tuple(each) for each in reference]
        assert names[f"is_{name}"](value) == (reference == [])


@pytest.mark.prop(13)
def test_json_schema_agrees(corpus: Corpus) -> None:
    types, values = corpus
    schemas = {name: jsonschema.Draft202012Validator(to_json_schema(document)) for name, document in types.items()}

    for name, value in values:
        assert schemas[name].is_valid(value) == (errors_of(value, types[name]) == []), (name, value)


@pytest.mark.prop(13)
@pytest.mark.prop(5)
def test_generated_typescript_compiles_and_agrees_on_every_place(corpus: Corpus, tmp_path: Path) -> None:
    """P5 (R1.5), P13 (R3.5)."""
    types, values = corpus
    (tmp_path / "types.ts").write_text(typescript_types(types))
    (tmp_path / "validators.ts").write_text(typescript_validators(types))

    assert node.compiled([tmp_path / "types.ts", tmp_path / "validators.ts"], to=tmp_path / "js") == ""

    module = json.dumps(str(tmp_path / "js" / "validators.js"))
    script = (
        f"const v = require({module}); const cases = JSON.parse(require('fs').readFileSync(0, 'utf8'));"
        "console.log(JSON.stringify(cases.map(([n, x]) => [v['is' + n](x), v['validate' + n](x).map((e) => e.path)])))"
    )
    for (name, value), (accepts, places) in zip(
        values, json.loads(node.run(script, stdin=json.dumps(values))), strict=True
    ):
        reference = errors_of(value, types[name])
        assert (accepts, places) == (reference == [], [list(each.path) for each in reference]), (name, value)
