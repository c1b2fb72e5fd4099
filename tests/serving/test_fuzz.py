"""Requests made from the server's own OpenAPI page, right ones and wrong ones: none is answered by
500, and each refusal is one sentence.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from functools import cache
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from servers import KINDS, client_of, local_server, write_models
from starlette.testclient import TestClient

from bertfast.serving.limits import Limits

pytestmark = pytest.mark.slow
REQUESTS = int(os.environ.get("BERTFAST_FUZZ", "400"))
WORDS = st.sampled_from(
    ["the film was warm", "[MASK]", "a [MASK] b", "", " ", "\0", "é😀", "x" * 300]
)
TEXTS = WORDS | st.text(max_size=40)
# What no field wants, or what a careless one would take.
ODD = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | TEXTS,
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=9), inner, max_size=3)
    ),
    max_leaves=8,
)
STATUS = {200, 400, 404, 413, 422, 424}


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    folders = write_models(tmp_path_factory.mktemp("models"))
    limits = Limits(max_chars=2000, max_batch=16, max_wait_ms=0)
    with client_of(local_server(list(folders.values()), limits)) as found:
        yield found


def values_of(schema: dict[str, Any], schemas: dict[str, Any]) -> st.SearchStrategy[Any]:
    """Values that a JSON schema describes, and now and then another."""
    if "$ref" in schema:
        return values_of(schemas[schema["$ref"].rpartition("/")[2]], schemas)
    if "anyOf" in schema:
        return st.one_of([values_of(one, schemas) for one in schema["anyOf"]])
    if "enum" in schema:
        return st.sampled_from(schema["enum"])
    kind = schema.get("type")
    if kind == "object" and "properties" in schema:
        required = set(schema.get("required", ()))
        fields = {
            name: st.one_of([values_of(one, schemas)] * 9 + [ODD])
            for name, one in schema["properties"].items()
        }
        if "model" in fields:
            fields["model"] = st.none() | st.sampled_from([*KINDS, *KINDS, "none", ""])
        return st.fixed_dictionaries(
            {name: one for name, one in fields.items() if name in required},
            optional={name: one for name, one in fields.items() if name not in required},
        )
    return {
        "string": TEXTS,
        "integer": st.integers(0, 120) | st.integers(),
        "number": st.floats(allow_nan=False, allow_infinity=False),
        "boolean": st.booleans(),
        "null": st.none(),
        "array": st.lists(values_of(schema.get("items", {}), schemas), max_size=5)
        if kind == "array"
        else st.nothing(),
    }.get(str(kind), ODD)


@cache
def bodies(described: str) -> st.SearchStrategy[tuple[str, bytes]]:
    """A path of the OpenAPI page with a body: of its form, of no form, or cut short."""
    page = json.loads(described)
    schemas = page["components"]["schemas"]
    found = []
    for path, methods in page["paths"].items():
        if "post" in methods:
            content = methods["post"]["requestBody"]["content"]["application/json"]["schema"]
            value = values_of(content, schemas)
            sent = (value | value | value | ODD).map(lambda one: json.dumps(one).encode())
            cut = st.tuples(sent, st.integers(0, 60)).map(lambda pair: pair[0][: pair[1]])
            body = st.one_of([sent] * 8 + [cut, st.binary(max_size=40)])
            found.append(st.tuples(st.just(path), body))
    return st.one_of(found)


def test_no_request_fails_the_server(client: TestClient) -> None:
    described = client.get("/openapi.json").text
    seen: dict[int, int] = {}

    @settings(
        max_examples=REQUESTS,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(bodies(described))
    def send(sent: tuple[str, bytes]) -> None:
        path, body = sent
        answer = client.post(path, content=body)
        seen[answer.status_code] = seen.get(answer.status_code, 0) + 1
        assert answer.status_code in STATUS, (path, body, answer.text)
        value = answer.json()
        if answer.status_code != 200:
            error = value["error"]
            said = error["message"] if path.startswith("/v1/") else error
            assert said
            assert "\n" not in said

    send()
    assert client.get("/health").status_code == 200
    print(f"{sum(seen.values())} requests: {seen}")
    assert seen[200] > sum(seen.values()) / 20
