"""The server is an extra: where it is not installed, none of these tests is collected."""

from importlib.util import find_spec

NEEDED = ("starlette", "uvicorn", "httptools", "orjson", "pydantic", "prometheus_client", "httpx")
collect_ignore_glob = ["test_*.py"] if any(find_spec(name) is None for name in NEEDED) else []
