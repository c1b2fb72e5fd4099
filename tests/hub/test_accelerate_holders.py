"""``accelerate`` finds the model in objects that are no modules, as other packages hold one."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import bertfast
from bertfast.errors import BertfastError

transformers = pytest.importorskip("transformers")


def encoder() -> nn.Module:
    torch.manual_seed(0)
    return transformers.BertModel(
        transformers.BertConfig(
            vocab_size=40,
            hidden_size=32,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=48,
            max_position_embeddings=16,
        )
    ).eval()


class Holder:
    """Anything with attributes."""

    def __init__(self, **attributes: object) -> None:
        self.__dict__.update(attributes)


class Private:
    """A pydantic model's private attributes, where langchain's HuggingFaceEmbeddings has
    _client.
    """

    def __init__(self, **attributes: object) -> None:
        object.__setattr__(self, "__pydantic_private__", attributes)


HOLDERS = {
    "langchain's HuggingFaceEmbeddings": lambda model: Private(_client=nn.Sequential(model)),
    "langchain's older client": lambda model: Holder(client=nn.Sequential(model)),
    "KeyBERT": lambda model: Holder(model=Holder(embedding_model=nn.Sequential(model))),
    "BERTopic": lambda model: Holder(embedding_model=Holder(embedding_model=nn.Sequential(model))),
    "SetFitModel": lambda model: Holder(model_body=nn.Sequential(model), model_head=object()),
    "a list": lambda model: [None, {"encoder": model}],
    "DataParallel": nn.DataParallel,
    "torch.compile": torch.compile,
}


@pytest.mark.parametrize("name", HOLDERS)
def test_the_model_is_found_and_given_back(name):
    model = encoder()
    holder = HOLDERS[name](model)
    assert bertfast.accelerate(holder) is holder
    assert "forward" in model.__dict__
    assert bertfast.accelerate(holder) is holder
    assert bertfast.restore(holder) is holder
    assert "forward" not in model.__dict__


def test_a_model_compiled_and_called_before_is_served_too():
    model = encoder()
    compiled = torch.compile(model, backend="eager")
    ids = torch.arange(5)[None]
    mask = torch.tensor([[1, 1, 1, 0, 0]])
    with torch.no_grad():
        before = compiled(ids, attention_mask=mask).last_hidden_state
        bertfast.accelerate(compiled)
        after = compiled(ids, attention_mask=mask).last_hidden_state
    assert after[0, 3:].eq(0).all()
    torch.testing.assert_close(after[0, :3], before[0, :3], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("value", [3, "a model", None, Holder(), Holder(name="x"), Holder, [1, 2]])
def test_what_holds_no_model_is_told_what_to_pass(value):
    with pytest.raises(BertfastError, match=r"Pass the model itself, as in accelerate\("):
        bertfast.accelerate(value)


def test_a_holder_that_holds_itself():
    holder = Holder()
    holder.own = holder
    holder.models = [holder, encoder()]
    assert bertfast.accelerate(holder) is holder


def test_a_holder_of_another_architecture_names_the_place_it_looked_at():
    with pytest.raises(BertfastError, match="nothing to accelerate"):
        bertfast.accelerate(Holder(model=nn.Linear(2, 2)))


def test_a_pipeline_gives_zeros_at_padding_and_the_mean_of_real_tokens_stays(tmp_path):
    from tiny import write_model

    folder = write_model(tmp_path, bertfast.BertModel)
    pipe = transformers.pipeline("feature-extraction", model=str(folder), device="cpu")
    texts = ["the film was warm", "the film"]
    ids = pipe.tokenizer(texts, padding=True, return_tensors="pt")
    expected = torch.tensor(pipe(texts[1]))[0]
    bertfast.accelerate(pipe)
    padded = pipe(texts, batch_size=2)
    length = int(ids["attention_mask"][1].sum())
    other = torch.tensor(padded[1])[0]
    assert other[length:].eq(0).all()
    assert len(other) > length
    torch.testing.assert_close(other[:length], expected, atol=1e-5, rtol=1e-5)
    alone = pipe(texts)
    assert len(alone[1][0]) == length
