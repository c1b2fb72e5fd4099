"""`transformers_suite.py` tells what passes as it is and fails accelerated; tried on a small suite
written here.
"""

import subprocess
import sys

import pytest

from support import REPOSITORY

pytest.importorskip("transformers", reason="transformers is an extra: pip install 'bertfast[hf]'")
SUITE = """
import unittest
import pytest
import torch
from transformers import BertConfig, BertForMaskedLM, BertModel
from transformers.testing_utils import slow

CONFIG = dict(
    vocab_size=9, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8
)


class BertModelTest(unittest.TestCase):
    def test_made(self):
        model = BertModel(BertConfig(**CONFIG))
        self.assertEqual(model(torch.ones(1, 3, dtype=int)).last_hidden_state.shape, (1, 3, 8))
        self.assertLess(getattr(model, "times", 0), 2)

    def test_loaded(self):
        import tempfile
        with tempfile.TemporaryDirectory() as folder:
            BertForMaskedLM(BertConfig(**CONFIG)).save_pretrained(folder)
            loaded, info = BertForMaskedLM.from_pretrained(folder, output_loading_info=True)
        for part in range(2):
            with self.subTest(part=part):
                self.assertFalse(part == 0 and hasattr(loaded, "broken"), "the model is broken")
        self.assertLess(getattr(loaded, "times", 0), 2)

    def test_inner_models_are_not_passed_on_their_own(self):
        self.assertFalse(hasattr(BertForMaskedLM(BertConfig(**CONFIG)).bert, "times"))

    def test_fails_as_it_is(self):
        BertModel(BertConfig(**CONFIG)).nothing

    @slow
    def test_slow(self):
        self.fail("slow tests do not run")
"""
PATCHES = """
def leave(model):
    model.times = getattr(model, "times", 0) + 1
    return model

def spoil(model):
    if type(model).__name__ == "BertForMaskedLM":
        model.broken = True
    return model
"""


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    root = tmp_path_factory.mktemp("transformers")
    folder = root / "tests" / "models" / "bert"
    folder.mkdir(parents=True)
    for package in (folder, folder.parent, folder.parent.parent):
        (package / "__init__.py").touch()
    (folder / "test_modeling_bert.py").write_text(SUITE)
    (root / "patches.py").write_text(PATCHES)
    return root


def suite(*arguments):
    command = [
        sys.executable,
        str(REPOSITORY / "tests" / "transformers_suite.py"),
        *map(str, arguments),
    ]
    return subprocess.run(command, capture_output=True, text=True, timeout=900, check=False)


@pytest.mark.slow
def test_equal_outcomes_are_counted_and_pass(source):
    result = suite("--source", source, "--models", "bert", "--with", "patches:leave")
    assert result.returncode == 0, result.stdout + result.stderr
    assert result.stdout == (
        "bert: 5 tests, 1 skipped, 1 fail as they are, 3 pass; of these 3 pass accelerated (5 "
        "models)\nno tests passed as they are and not accelerated\n"
    )


@pytest.mark.slow
def test_what_fails_accelerated_alone_is_listed_with_the_first_line_of_why(source):
    result = suite("--source", source / "tests", "--models", "bert", "--with", "patches:spoil")
    assert result.returncode == 1, result.stdout + result.stderr
    _, difference, last = result.stdout.splitlines()
    assert (
        "test_loaded: failed: AssertionError: True is not false : the model is broken" in difference
    )
    assert last == "1 test passed as they are and not accelerated"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--source", "nowhere"), "nowhere: holds no tests/models"),
        (("--source", None, "--models", "bert,albert"), "test_modeling_albert.py does not exist"),
        (("--source", None, "--models", "bert", "-k", "no_such_test"), "no test ran"),
    ],
)
@pytest.mark.slow
def test_nothing_to_run_is_one_line(source, arguments, message):
    result = suite(*(source if argument is None else argument for argument in arguments))
    assert result.returncode == 2
    assert not result.stdout
    assert result.stderr.startswith("error: ")
    assert message in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_help_has_an_example():
    result = suite("--help")
    assert result.returncode == 0
    assert "python tests/transformers_suite.py --source" in result.stdout
