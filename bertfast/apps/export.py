"""A model's folder for other runtimes: ONNX, OpenVINO, or a program of `torch.export`.

What is exported is the model of `transformers` (or of sentence-transformers) that the folder names:
plain operations, which every runtime knows. What it says is then held against ours.
"""

from __future__ import annotations

import contextlib
import importlib.util
import inspect
import io
import logging
import shutil
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from bertfast.checks import one_of
from bertfast.errors import BertfastError
from bertfast.files import check_new, read_json, whole_folder
from bertfast.model import load, load_config
from bertfast.resolve import resolve
from bertfast.sentences import SentenceEncoder

NEEDS = {
    "torch": ("transformers",),
    "onnx": ("transformers", "onnx", "onnxscript", "onnxruntime"),
    "openvino": ("transformers", "openvino"),
}
FORMATS = tuple(NEEDS)
TOLERANCE = 1e-4  # of an output's largest number, or of 1 where that is less
WEIGHTS = (".safetensors", ".bin", ".pt", ".pt2", ".onnx", ".index.json")
# Sequences and positions of the batches that both sides are asked about.
SHAPES = ((1, 5), (3, 17), (2, 33))
CHOICES = 3
Named = dict[str, Tensor]
Answers = dict[str, NDArray[Any]]


def export_model(model: str | Path, to: str, out: str | Path) -> float:
    """Writes a model for another runtime, beside its settings and its tokenizer.

    The inputs are ``input_ids`` and ``attention_mask``, of any number of sequences and positions,
    and ``token_type_ids`` where the model has segments. The outputs have the names that
    `transformers` gives them. A folder of sentence-transformers gives ``sentence_embedding``.

    Args:
        model: folder or Hub id.
        to: "onnx" (``model.onnx``), "openvino" (``openvino_model.xml`` and ``.bin``) or "torch"
            (``model.pt2``, for `torch.export.load`).
        out: folder to write; it must not exist.

    Returns:
        The largest difference from our own outputs on made-up batches, as a share of an output's
        largest number.

    Raises:
        BertfastError: a package is missing, the model cannot be exported, its outputs are not ours,
            or ``out`` cannot be written; nothing is written then.
    """
    one_of("to", to, FORMATS)
    source, out = resolve(model).folder, Path(out)
    check_new(out)
    sentences = (source / "modules.json").is_file()
    require((*NEEDS[to], "sentence_transformers") if sentences else NEEDS[to], to)
    theirs = _sentence_model(source) if sentences else _task_model(source)
    ours = _our_vectors(source) if sentences else _our_outputs(source)
    with whole_folder(out.absolute()) as folder:
        try:
            with _quietly():
                run = WRITERS[to](theirs, folder)
        except Exception as error:
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise BertfastError(f"{model}: cannot be exported to {to}: {reason}") from error
        worst = compare(theirs, run, ours)
        if not worst <= TOLERANCE:
            raise BertfastError(
                f"{model}: exported to {to}, its outputs differ from ours by {worst:.1e} of the "
                f"largest; at most {TOLERANCE:.0e} is right. Nothing was written"
            )
        _copy_texts(source, folder)
    return worst


def require(packages: tuple[str, ...], to: str) -> None:
    """Raises BertfastError where a package is not installed."""
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    if missing:
        names = " ".join(name.replace("_", "-") for name in missing)
        raise BertfastError(f"exporting to {to} needs {names}: pip install {names}")


class Exported(nn.Module):
    """A model of plain tensors in, and plain tensors out.

    Attributes:
        inputs: names of the arguments, in order.
        outputs: names of the results, in order.
        choices: whether each input is a row of choices.
        vocabulary: ids are below it.
        positions: the most that a sequence may have.
    """

    def __init__(
        self,
        model: nn.Module,
        call: Callable[[Named], Mapping[str, Tensor]],
        inputs: tuple[str, ...],
        vocabulary: int,
        positions: int,
        choices: bool = False,
    ) -> None:
        super().__init__()
        self.model, self._call = model, call
        self.inputs, self.choices = inputs, choices
        self.vocabulary, self.positions = vocabulary, positions
        with torch.no_grad():
            found = call(self.example(*SHAPES[1]))
        self.outputs = tuple(found)

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """The outputs in the order of their names."""
        found = self._call(dict(zip(self.inputs, tensors, strict=True)))
        return tuple(found[name] for name in self.outputs)

    def example(self, sequences: int, positions: int) -> Named:
        """Made-up inputs, each sequence but the first padded at its end."""
        positions = min(positions, self.positions)
        shape = (sequences, CHOICES, positions) if self.choices else (sequences, positions)
        drawn = torch.Generator().manual_seed(sequences * positions)
        mask = torch.ones(shape, dtype=torch.int64)
        for number in range(1, sequences):
            mask[number, ..., max(2, positions - 3 * number) :] = 0
        low = min(5, self.vocabulary - 1)
        tensors = {
            "input_ids": torch.randint(low, self.vocabulary, shape, generator=drawn),
            "attention_mask": mask,
            "token_type_ids": (torch.arange(positions) >= positions // 2).long().expand(shape),
        }
        return {name: tensors[name].contiguous() for name in self.inputs}

    def dynamic(self) -> tuple[dict[int, Any], ...]:
        """Of each input the dimensions that may be of any size."""
        auto = torch.export.Dim.DYNAMIC
        return tuple({0: auto, (2 if self.choices else 1): auto} for _ in self.inputs)


def compare(
    theirs: Exported, run: Callable[[Named], Answers], ours: Callable[[Named], Answers]
) -> float:
    """The largest difference at real tokens, over batches of several shapes."""
    worst = 0.0
    for shape in SHAPES:
        inputs = theirs.example(*shape)
        mask = inputs["attention_mask"].numpy() != 0
        found, wanted = run(inputs), ours(inputs)
        for name, right in wanted.items():
            given = found[name]
            if given.shape != right.shape:
                raise BertfastError(
                    f"the exported {name} has shape {given.shape}, and ours {right.shape}"
                )
            if given.shape[: mask.ndim] == mask.shape:  # at padding ours are zeros
                given, right = given[mask], right[mask]
            scale = max(1.0, float(np.abs(right).max(initial=0)))
            worst = max(worst, float(np.abs(given - right).max(initial=0)) / scale)
    return worst


def _task_model(source: Path) -> Exported:
    import transformers

    config = load_config(source)
    named = read_json(source / "config.json").get("architectures") or [None]
    cls = getattr(transformers, str(named[0]), None) if named[0] else transformers.AutoModel
    if cls is None:
        raise BertfastError(f"{source}: transformers has no {named[0]}, so it cannot be exported")
    options: dict[str, Any] = {"attn_implementation": "eager", "dtype": torch.float32}
    model = cls.from_pretrained(source, **options).eval()
    taken = inspect.signature(model.forward).parameters
    segments = "token_type_ids" in taken and config.type_vocab_size > 1
    inputs = ("input_ids", "attention_mask", *(("token_type_ids",) if segments else ()))

    def call(tensors: Named) -> Mapping[str, Tensor]:
        found = model(**tensors, return_dict=True)
        return {name: value for name, value in found.items() if isinstance(value, Tensor)}

    positions = config.max_positions or SHAPES[-1][1]
    choices = type(model).__name__.endswith("ForMultipleChoice")
    return Exported(model, call, inputs, config.vocab_size, positions, choices)


def _sentence_model(source: Path) -> Exported:
    from sentence_transformers import SentenceTransformer

    options = {"attn_implementation": "eager", "dtype": torch.float32}
    model = SentenceTransformer(str(source), device="cpu", model_kwargs=options).eval()
    encoder = SentenceEncoder.from_pretrained(source).encoder
    body: Any = model[0].auto_model
    taken = inspect.signature(body.forward).parameters
    segments = "token_type_ids" in taken and encoder.config.type_vocab_size > 1
    inputs = ("input_ids", "attention_mask", *(("token_type_ids",) if segments else ()))

    def call(tensors: Named) -> Mapping[str, Tensor]:
        return {"sentence_embedding": model(dict(tensors))["sentence_embedding"]}

    positions = encoder.config.max_positions or SHAPES[-1][1]
    return Exported(model, call, inputs, encoder.config.vocab_size, positions)


def _our_outputs(source: Path) -> Callable[[Named], Answers]:
    model = load(source).eval()

    def run(inputs: Named) -> Answers:
        with torch.no_grad():
            found = model(**inputs)
        names = ("logits", "start_logits", "end_logits", "last_hidden_state")
        answers = {name: getattr(found, name, None) for name in names}
        return {name: value.numpy() for name, value in answers.items() if value is not None}

    return run


def _our_vectors(source: Path) -> Callable[[Named], Answers]:
    model = SentenceEncoder.from_pretrained(source).eval()

    def run(inputs: Named) -> Answers:
        with torch.no_grad():
            return {"sentence_embedding": model(**inputs).numpy()}

    return run


def _as_torch(model: Exported, folder: Path) -> Callable[[Named], Answers]:
    path = folder / "model.pt2"
    torch.export.save(_program(model), path)
    run = torch.export.load(path).module()

    def answers(inputs: Named) -> Answers:
        with torch.no_grad():
            found = run(*inputs.values())
        return {name: x.numpy() for name, x in zip(model.outputs, found, strict=True)}

    return answers


def _as_onnx(model: Exported, folder: Path) -> Callable[[Named], Answers]:
    import onnxruntime

    path = folder / "model.onnx"
    made = torch.onnx.export(
        _program(model),
        input_names=list(model.inputs),
        output_names=list(model.outputs),
        dynamo=True,
        verbose=False,
    )
    assert made is not None
    made.save(path)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])

    def answers(inputs: Named) -> Answers:
        found = session.run(list(model.outputs), {name: x.numpy() for name, x in inputs.items()})
        return dict(zip(model.outputs, found, strict=True))

    return answers


def _as_openvino(model: Exported, folder: Path) -> Callable[[Named], Answers]:
    import openvino

    made = openvino.convert_model(_program(model))
    for port, name in zip(made.inputs, model.inputs, strict=True):
        port.tensor.set_names({name})
    for port, name in zip(made.outputs, model.outputs, strict=True):
        port.tensor.set_names({name})
    path = folder / "openvino_model.xml"
    openvino.save_model(made, path, compress_to_fp16=False)
    # Where the processor multiplies bfloat16, OpenVINO does unless told otherwise.
    compiled = openvino.compile_model(path, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})

    def answers(inputs: Named) -> Answers:
        found = compiled({name: x.numpy() for name, x in inputs.items()})
        return {name: found[name] for name in model.outputs}

    return answers


WRITERS = {"torch": _as_torch, "onnx": _as_onnx, "openvino": _as_openvino}


def _program(model: Exported) -> torch.export.ExportedProgram:
    example = tuple(model.example(*SHAPES[1]).values())
    with torch.no_grad():
        return torch.export.export(model, example, dynamic_shapes=(model.dynamic(),), strict=False)


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """Without what the exporters print and warn of along the way."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def _copy_texts(source: Path, folder: Path) -> None:
    """The files beside the weights: settings, tokenizer, labels, card."""
    listed = source / "modules.json"
    modules = read_json(listed) if listed.is_file() else []
    folders = {str(module.get("path") or "") for module in modules} - {""}
    for place in (source, *(source / name for name in sorted(folders))):
        for path in sorted(place.iterdir()) if place.is_dir() else ():
            if path.is_file() and not path.name.endswith(WEIGHTS):
                target = folder / path.relative_to(source)
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, target)
