"""Imports run only towards lower layers; see the table of layers in the design."""

import ast

import pytest

from support import REPOSITORY

TIERS = (  # deepest first; modules of one layer do not import one another
    ("errors", "escape", "processor", "_version", "__version__", "_C"),
    ("openmp", "files", "card", "registry", "seeds", "progress", "resolve", "scoring", "checks"),
    ("machine", "memory", "ranks"),
    ("kernels",),
    ("packed", "config"),
    ("model",),
    ("objectives", "hub", "tokenization"),
    ("data", "sentences"),
    ("tasks",),
    ("training",),
    ("apps", "bench", "registration", "serving"),
    ("cli",),
    ("__main__", "__init__"),
)
LAYERS = {name: layer for layer, names in enumerate(TIERS) for name in names}
ROOTS = {"": REPOSITORY / "bertfast", "kernels": REPOSITORY / "kernels"}


def source_files():
    """Each source file with the module that it is, as parts after ``bertfast``."""
    return [
        pytest.param(
            path,
            (*((prefix,) if prefix else ()), *path.relative_to(root).with_suffix("").parts),
            id=str(path.relative_to(REPOSITORY)),
        )
        for prefix, root in ROOTS.items()
        for path in sorted(root.rglob("*.py"))
    ]


def imported(text, module):
    """The top-level parts of bertfast that a module's text imports, those inside functions too; not
    those for types alone.
    """
    tree = ast.parse(text)
    for_types = {
        id(node)
        for block in ast.walk(tree)
        if isinstance(block, ast.If) and ast.unparse(block.test) == "TYPE_CHECKING"
        for node in ast.walk(block)
    }
    found = set()
    for node in ast.walk(tree):
        if id(node) in for_types:
            continue
        if isinstance(node, ast.Import):
            names = [name.name.split(".") for name in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = ["bertfast", *module[: len(module) - node.level]] if node.level else []
            base += node.module.split(".") if node.module else []
            names = [[*base, name.name] for name in node.names]
        else:
            continue
        found |= {name[1] for name in names if name[0] == "bertfast" and len(name) > 1}
    return found


def violations(text, module):
    """The imports of this module that do not run to a lower layer."""
    own = module[0]
    return [
        f"{own} (layer {LAYERS[own]}) imports {other}"
        for other in sorted(imported(text, module))
        if other != own and (other not in LAYERS or LAYERS[other] >= LAYERS[own])
    ]


@pytest.mark.parametrize(("path", "module"), source_files())
def test_imports_run_only_to_lower_layers(path, module):
    assert module[0] in LAYERS, f"{path} has no layer"
    assert violations(path.read_text(encoding="utf-8"), module) == []


@pytest.mark.parametrize(
    ("text", "module"),
    [
        ("from bertfast.training import pretrain", ("kernels", "attention")),
        ("from bertfast import model", ("packed",)),
        ("import bertfast.hub.accelerate", ("objectives", "mlm")),
        ("def later():\n    from bertfast.tokenization import load_tokenizer", ("model", "models")),
        ("from bertfast.bench import steps", ("apps", "demo")),
        ("from ..training.metrics import Metrics", ("data", "store")),
        ("from . import cli", ("packed",)),
        ("def later():\n    from bertfast.apps import demo", ("training", "pretrain")),
        ("from bertfast import BertModel", ("data", "store")),
    ],
)
def test_an_upward_or_sideways_import_is_caught(text, module):
    assert violations(text, module)


@pytest.mark.parametrize(
    ("text", "module"),
    [
        ("from . import dispatch, reference", ("kernels", "attention")),
        ("from bertfast import kernels", ("model", "encoder")),
        ("from ..errors import BertfastError", ("data", "store")),
        ("import torch\nfrom collections import abc", ("errors",)),
    ],
)
def test_a_downward_import_passes(text, module):
    assert not violations(text, module)
