"""Accelerated models under the libraries that train them: each gives what it gives with the
original.
"""

import copy
import os
import pickle
import socket
import subprocess
import sys
import textwrap

import pytest
import torch
from live import assert_same, assert_same_gradients, inputs_for, make, served, transformers, warned

from bertfast import accelerate, restore
from bertfast.kernels import products
from support import COMPILE_BACKEND, HalfProducts

__all__ = ["served"]  # a fixture

CLASSIFIER = "BertForSequenceClassification"


class Rows(torch.utils.data.Dataset):
    """Sequences of several lengths, padded to one, for `transformers.Trainer`."""

    def __init__(self, count=16):
        generator = torch.Generator().manual_seed(0)
        self.rows = []
        for index in range(count):
            length = 3 + index % 9
            ids = torch.randint(5, 97, (12,), generator=generator)
            mask = (torch.arange(12) < length).long()
            self.rows.append(
                {"input_ids": ids * mask, "attention_mask": mask, "labels": int(ids[1] > 50)}
            )

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, index):
        return self.rows[index]


def trained(model, folder, **options):
    """The losses that `transformers.Trainer` logs over a few steps, and its evaluation's."""
    state = pytest.importorskip(
        "accelerate.state", reason="transformers.Trainer needs accelerate: pip install accelerate"
    )
    state.AcceleratorState._reset_state(reset_partial_state=True)  # the precision of the run before
    arguments = transformers.TrainingArguments(
        str(folder),
        per_device_train_batch_size=4,
        per_device_eval_batch_size=4,
        max_steps=5,
        learning_rate=1e-2,
        logging_steps=1,
        report_to=[],
        save_strategy="no",
        disable_tqdm=True,
        use_cpu=True,
        **options,
    )
    trainer = transformers.Trainer(model, arguments, train_dataset=Rows(), eval_dataset=Rows(6))
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    return [*losses, trainer.evaluate()["eval_loss"]]


@pytest.mark.parametrize("options", [{}, {"bf16": True}, {"gradient_checkpointing": True}], ids=str)
@pytest.mark.slow_unless(lambda options: not options)
def test_transformers_trainer_takes_the_same_course(options, served, tmp_path, monkeypatch):
    monkeypatch.setenv(
        "ACCELERATE_MIXED_PRECISION", "no"
    )  # which the trainer may set, and never takes back
    theirs = make(CLASSIFIER)
    ours = accelerate(copy.deepcopy(theirs))
    got, wanted = (trained(model, tmp_path, **options) for model in (ours, theirs))
    assert len(served) == 7
    assert len(got) == 6
    # Autocast rounds to 8 bits in another order.
    assert got == pytest.approx(wanted, rel=2e-2 if "bf16" in options else 1e-3)


def sentence_transformer(model, tokenizer_folder):
    """Mean pooling over a model of ours or theirs, with a word-level tokenizer."""
    library = pytest.importorskip(
        "sentence_transformers", reason="pip install sentence-transformers"
    )
    try:
        from sentence_transformers.base.modules import Transformer
        from sentence_transformers.sentence_transformer.modules import Pooling
    except ImportError:  # before 6
        from sentence_transformers.models import Pooling, Transformer
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefghijklmnopqrstuvwxyz"]
    tokenizer = Tokenizer(
        models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="[UNK]")
    )
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
    )
    model.save_pretrained(tokenizer_folder)
    fast.save_pretrained(tokenizer_folder)
    transformer = Transformer(str(tokenizer_folder), max_seq_length=16)
    return library.SentenceTransformer(
        modules=[transformer, Pooling(32, pooling_mode="mean")], device="cpu"
    )


SENTENCES = ["a b c", "d", "e f g h i j k", "l m", "n o p q r", "s t u v w x y z"]


def test_sentence_transformers_embed_the_same(served, tmp_path):
    theirs = sentence_transformer(make("BertModel"), tmp_path)
    ours = accelerate(copy.deepcopy(theirs))
    got, wanted = (
        model.encode(SENTENCES, batch_size=4, convert_to_tensor=True) for model in (ours, theirs)
    )
    torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-5)
    assert len(served) == 2
    restore(ours).encode(SENTENCES)
    assert len(served) == 2


@pytest.mark.slow
def test_sentence_transformers_trainer_takes_the_same_course(served, tmp_path):
    datasets = pytest.importorskip(
        "datasets", reason="sentence-transformers' trainer needs datasets: pip install datasets"
    )
    theirs = sentence_transformer(make("BertModel"), tmp_path)
    import sentence_transformers as library

    try:
        from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss
    except ImportError:  # before 6
        from sentence_transformers.losses import MultipleNegativesRankingLoss
    ours = accelerate(copy.deepcopy(theirs))
    pairs = datasets.Dataset.from_dict(
        {"anchor": SENTENCES * 2, "positive": [text[::-1] for text in SENTENCES] * 2}
    )
    courses = []
    for model in (ours, theirs):
        arguments = library.SentenceTransformerTrainingArguments(
            str(tmp_path / "out"),
            max_steps=4,
            per_device_train_batch_size=4,
            learning_rate=1e-2,
            logging_steps=1,
            report_to=[],
            save_strategy="no",
            disable_tqdm=True,
            use_cpu=True,
        )
        loss = MultipleNegativesRankingLoss(model)
        trainer = library.SentenceTransformerTrainer(
            model, arguments, train_dataset=pairs, loss=loss
        )
        trainer.train()
        courses.append([entry["loss"] for entry in trainer.state.log_history if "loss" in entry])
    assert len(served) == 8
    assert len(courses[0]) == 4
    assert courses[0] == pytest.approx(courses[1], rel=1e-3)


def with_lora(model, **options):
    """LoRA on attention, feed-forward and word embeddings, its weights drawn so that they count."""
    peft = pytest.importorskip("peft", reason="pip install peft")
    config = peft.LoraConfig(
        r=4,
        target_modules=["query", "value", "dense", "word_embeddings"],
        lora_dropout=0.0,
        **options,
    )
    torch.manual_seed(5)
    adapted = peft.get_peft_model(model, config)
    for name, parameter in adapted.named_parameters():
        if "lora_" in name:
            parameter.data = 0.1 * torch.randn(parameter.shape)
    return adapted.train()


@pytest.mark.parametrize("order", ["adapters last", "adapters first"])
def test_lora_trains_and_merges_as_on_the_original(order, served):
    base = make(CLASSIFIER)
    theirs = with_lora(copy.deepcopy(base), task_type="SEQ_CLS")
    if order == "adapters last":
        ours = with_lora(accelerate(copy.deepcopy(base)), task_type="SEQ_CLS")
    else:
        ours = accelerate(with_lora(copy.deepcopy(base), task_type="SEQ_CLS"))
    arguments = inputs_for(CLASSIFIER)
    assert_same(ours, theirs, arguments)
    trained_ones = {
        name for name, parameter in ours.named_parameters() if parameter.grad is not None
    }
    assert {name for name in trained_ones if "lora_" in name}
    assert not {name for name in trained_ones if "base_layer" in name}
    assert list(ours.state_dict()) == list(theirs.state_dict())
    merged = [model.merge_and_unload() for model in (ours, theirs)]
    torch.testing.assert_close(
        merged[0](**arguments).logits, merged[1](**arguments).logits, rtol=1e-5, atol=1e-5
    )
    assert len(served) == 2


class Around(torch.nn.Module):
    """A user's own model, with a layer of its own on top."""

    def __init__(self):
        super().__init__()
        self.bert, self.top = make("BertModel"), torch.nn.Linear(32, 3)

    def forward(self, **arguments):
        return self.top(self.bert(**arguments).last_hidden_state)


def labelled(name):
    arguments = inputs_for(name)
    return arguments | {"labels": torch.zeros(len(arguments["input_ids"]), dtype=torch.long)}


HALF_MODELS = {
    "head": lambda: (accelerate(make(CLASSIFIER)), labelled(CLASSIFIER)),
    "masked LM": lambda: (accelerate(make("BertForMaskedLM")), inputs_for("BertForMaskedLM")),
    "own layer": lambda: (accelerate(Around()), inputs_for("BertModel")),
    "LoRA after": lambda: (with_lora(accelerate(make("BertModel"))), inputs_for("BertModel")),
    "LoRA before": lambda: (accelerate(with_lora(make("BertModel"))), inputs_for("BertModel")),
    "unserved": lambda: (
        accelerate(make("BertModel")),
        inputs_for("BertModel") | {"output_attentions": True},
    ),
}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", HALF_MODELS)
@pytest.mark.filterwarnings("ignore:bertfast. the original forward")
def test_without_native_products_no_layer_multiplies_in_half_precision(name, dtype, monkeypatch):
    for half in (torch.bfloat16, torch.float16):
        monkeypatch.setitem(products.NATIVE, half, False)
    model, arguments = HALF_MODELS[name]()
    model.to(dtype)
    with HalfProducts() as seen:
        output = model(**arguments)
        output = output if isinstance(output, torch.Tensor) else output[0]
        output.float().sum().backward()
    assert seen.names == []
    assert output.dtype == dtype
    restored = restore(model)
    with HalfProducts() as seen:
        restored.eval()(**arguments)
    assert seen.names


def test_with_native_products_only_encoders_and_heads_are_exchanged(monkeypatch):
    for dtype in products.NATIVE:
        monkeypatch.setitem(products.NATIVE, dtype, True)
    model = accelerate(Around())
    assert "forward" not in model.__dict__
    assert "forward" in model.bert.__dict__


def test_a_model_around_an_encoder_is_copied_pickled_and_restored(monkeypatch):
    monkeypatch.setitem(products.NATIVE, torch.bfloat16, False)
    model = accelerate(Around().eval())
    arguments = inputs_for("BertModel")
    real = arguments["attention_mask"].bool()
    wanted = model(**arguments)
    assert torch.equal(copy.deepcopy(model)(**arguments), wanted)
    assert accelerate(model) is model
    pickled = pickle.loads(pickle.dumps(model))
    assert set(restore(model).__dict__) == set(Around().__dict__)
    for other in (pickled, model):
        got = other(**arguments)
        torch.testing.assert_close(got[real], wanted[real], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_without_native_products_the_layers_of_sentence_transformers_are_widened(
    dtype, tmp_path, monkeypatch
):
    monkeypatch.setitem(products.NATIVE, dtype, False)
    model = accelerate(sentence_transformer(make("BertModel"), tmp_path))
    from sentence_transformers.models import Dense

    model.append(Dense(32, 8)).to(dtype)
    with HalfProducts() as seen:
        model.encode(SENTENCES)
    assert seen.names == []


@pytest.mark.slow
def test_lora_with_gradient_checkpointing_trains_as_on_the_original(served):
    base = make(CLASSIFIER)
    theirs, ours = with_lora(copy.deepcopy(base)), with_lora(accelerate(copy.deepcopy(base)))
    for model in (ours, theirs):
        model.gradient_checkpointing_enable()
        model.enable_input_require_grads()
    assert warned(lambda: assert_same(ours, theirs, inputs_for(CLASSIFIER)))[1] == []
    assert len(served) == 1


def test_an_adapter_for_each_row_is_left_to_the_original(served):
    base = make(CLASSIFIER)
    theirs, ours = (
        with_lora(copy.deepcopy(base)).eval(),
        with_lora(accelerate(copy.deepcopy(base))).eval(),
    )
    arguments = {
        **inputs_for(CLASSIFIER),
        "adapter_names": ["default", "__base__", "default", "__base__"],
    }
    with pytest.warns(UserWarning, match="has hooks"):
        got = ours(**arguments).logits
    torch.testing.assert_close(got, theirs(**arguments).logits, rtol=1e-5, atol=1e-5)
    assert not served


@pytest.mark.parametrize("name", [CLASSIFIER, "BertForQuestionAnswering"])
@pytest.mark.slow
def test_torch_compile_runs_forward_and_training_step(name, served):
    theirs = make(name)
    ours = accelerate(copy.deepcopy(theirs))
    compiled = torch.compile(ours, backend=COMPILE_BACKEND if name == CLASSIFIER else "aot_eager")
    for pattern in ("right", "left"):
        arguments = inputs_for(name, pattern)
        got, wanted = compiled(**arguments), theirs(**arguments)
        ours.zero_grad(), theirs.zero_grad()
        torch.testing.assert_close(got.loss, wanted.loss, rtol=1e-5, atol=1e-5)
        got.loss.backward(), wanted.loss.backward()
        assert_same_gradients(ours, theirs)
    with torch.no_grad():
        torch.testing.assert_close(compiled(**arguments)[1], wanted[1], rtol=1e-5, atol=1e-5)
    assert len(served) == 3


RANK = """
import os, sys
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel
import transformers
from bertfast import accelerate

dist.init_process_group("gloo")
rank = dist.get_rank()
torch.set_num_threads(1)
shape = torch.load(sys.argv[1], weights_only=False)
model = transformers.BertForSequenceClassification(shape["config"])
model.load_state_dict(shape["weights"])
accelerate(model.train())
parallel = DistributedDataParallel(model)
batch = {name: value[2 * rank : 2 * rank + 2] for name, value in shape["batch"].items()}
parallel(**batch).loss.backward()
torch.save({name: p.grad for name, p in model.named_parameters()}, f"{sys.argv[1]}.{rank}")
dist.destroy_process_group()
"""


@pytest.mark.slow
def test_two_data_parallel_processes_get_the_gradients_of_one(tmp_path):
    if not torch.distributed.is_available():
        pytest.skip("this torch has no torch.distributed")
    theirs, batch = make(CLASSIFIER), inputs_for(CLASSIFIER)
    case = tmp_path / "case"
    torch.save({"config": theirs.config, "weights": theirs.state_dict(), "batch": batch}, case)
    script = tmp_path / "rank.py"
    script.write_text(textwrap.dedent(RANK))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "WORLD_SIZE": "2",
        "OMP_NUM_THREADS": "1",
    }
    ranks = [
        subprocess.Popen(
            [sys.executable, str(script), str(case)],
            env={**os.environ, **environment, "RANK": str(rank)},
        )
        for rank in range(2)
    ]
    assert [rank.wait(timeout=120) for rank in ranks] == [0, 0]
    theirs(**batch).loss.backward()
    for rank in range(2):
        gradients = torch.load(f"{case}.{rank}", weights_only=True)
        for name, parameter in theirs.named_parameters():
            torch.testing.assert_close(gradients[name], parameter.grad, rtol=1e-5, atol=1e-5)
