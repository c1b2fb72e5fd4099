"""What `import bertfast` gives, and what it does not cost."""

import subprocess
import sys

import pytest

import bertfast


def test_importing_the_package_loads_neither_torch_nor_transformers():
    program = (
        "import sys, bertfast; sys.exit(any(name in sys.modules for name in ('torch', 'triton', "
        "'transformers')))"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)


@pytest.mark.parametrize("name", bertfast.__all__)
def test_every_public_name_is_there_and_documented(name):
    value = getattr(bertfast, name)
    assert name in dir(bertfast)
    if name != "__version__":
        assert value.__doc__


def test_pretrain_and_finetune_are_functions_though_modules_share_their_names():
    program = "import bertfast; assert callable(bertfast.finetune) and callable(bertfast.pretrain)"
    subprocess.run([sys.executable, "-c", program], check=True, timeout=120)


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        bertfast.nothing  # noqa: B018
