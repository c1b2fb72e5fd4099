"""A whole model's folder from an adapter's."""

from __future__ import annotations

import shutil
from pathlib import Path

from bertfast.errors import BertfastError
from bertfast.files import check_new, whole_folder
from bertfast.model import load
from bertfast.model.checkpoint import is_adapter
from bertfast.resolve import resolve


def merge_adapter(model: str | Path, out: str | Path) -> None:
    """Adds an adapter to its base model's weights, and writes the whole model beside the tokenizer
    and the texts that the adapter's folder has.

    Args:
        model: folder or Hub id of the adapter.
        out: folder to write; it must not exist.

    Raises:
        BertfastError: there is no adapter, it does not fit its base, or ``out`` cannot be written.
    """
    source, out = resolve(model).folder, Path(out)
    if not is_adapter(source):
        raise BertfastError(f"{model}: holds a whole model; merge takes the folder of an adapter")
    check_new(out)
    whole = load(source)
    with whole_folder(out.absolute()) as folder:
        whole.save_pretrained(folder)
        for path in sorted(source.iterdir()):
            if path.is_file() and not path.name.startswith(("adapter_", "adapted_")):
                shutil.copyfile(path, folder / path.name)
