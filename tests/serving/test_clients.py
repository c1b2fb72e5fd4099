"""The clients that people have, each against a server of its own over the loopback."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from servers import serving, write_models

from bertfast import SentenceEncoder

pytestmark = pytest.mark.slow
TEXTS = ["the film was warm", "a dull story", "the cast was long and clever"]
KEY = "a-key"


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return write_models(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def address(folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    keys = tmp_path_factory.mktemp("keys") / "keys"
    keys.write_text(f"{KEY}\n")
    with serving(*folders.values(), "--api-key-file", keys) as (found, _):
        yield found


@pytest.fixture(scope="module")
def wanted(folders: dict[str, Path]) -> Any:
    encoder = SentenceEncoder.from_pretrained(folders["encoder"])
    return encoder.encode(TEXTS, normalize=True)


def test_openai(address: str, wanted: Any) -> None:
    openai = pytest.importorskip("openai")
    client = openai.OpenAI(base_url=f"{address}/v1", api_key=KEY, max_retries=0)
    for form in ("float", "base64", openai.NOT_GIVEN):
        found = client.embeddings.create(model="encoder", input=TEXTS, encoding_format=form)
        rows = [one.embedding for one in found.data]
        if form == "base64":
            import base64

            rows = [np.frombuffer(base64.b64decode(row), "<f4") for row in rows]
        np.testing.assert_allclose(rows, wanted, atol=1e-5)
    short = client.embeddings.create(model="encoder", input=TEXTS[0], dimensions=8)
    assert len(short.data[0].embedding) == 8
    ids = client.embeddings.create(model="encoder", input=[[5, 6], [7]])
    assert len(ids.data) == 2
    assert "encoder" in [model.id for model in client.models.list()]
    assert client.models.retrieve("encoder").object == "model"
    with pytest.raises(openai.NotFoundError, match="there is no model 'gpt'"):
        client.embeddings.create(model="gpt", input="a")
    with pytest.raises(openai.UnprocessableEntityError, match="it must be from 1 to 32"):
        client.embeddings.create(model="encoder", input="a", dimensions=99)
    with pytest.raises(openai.AuthenticationError, match="a key is wanted"):
        openai.OpenAI(base_url=f"{address}/v1", api_key="wrong").embeddings.create(
            model="encoder", input="a"
        )


def test_hugging_face_hub(address: str, wanted: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    hub = pytest.importorskip("huggingface_hub")
    # Tests are offline; the loopback is not the Hub.
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)

    def client(model: str) -> Any:
        return hub.InferenceClient(model=f"{address}/models/{model}", token=KEY)

    np.testing.assert_allclose(client("encoder").feature_extraction(TEXTS), wanted, atol=1e-5)
    root = hub.InferenceClient(model=address, token=KEY)
    np.testing.assert_allclose(root.feature_extraction(TEXTS[0]), wanted[:1], atol=1e-5)
    close = client("encoder").sentence_similarity(TEXTS[0], other_sentences=TEXTS[1:])
    np.testing.assert_allclose(close, wanted[1:] @ wanted[0], atol=1e-5)
    labels = client("classifier").text_classification(TEXTS[0])
    assert {one.label for one in labels} == {"good", "bad"}
    assert sum(one.score for one in labels) == pytest.approx(1, abs=1e-5)
    assert len(client("classifier").text_classification(TEXTS[0], top_k=1)) == 1
    spans = client("tagger").token_classification(TEXTS[0])
    assert all(TEXTS[0][one.start : one.end] == one.word for one in spans)
    context = "the film was warm and the cast was long"
    answer = client("answerer").question_answering(question="what was long?", context=context)
    assert context[answer.start : answer.end] == answer.answer
    words = client("words").fill_mask("the [MASK] was warm")
    assert len(words) == 5
    assert words[0].sequence.count("[MASK]") == 0
    with pytest.raises(hub.errors.HfHubHTTPError, match="a key is wanted"):
        hub.InferenceClient(model=address, token="wrong").feature_extraction("a")


def test_langchain(address: str, wanted: Any) -> None:
    langchain = pytest.importorskip("langchain_openai")
    model = langchain.OpenAIEmbeddings(
        model="encoder",
        base_url=f"{address}/v1",
        api_key=KEY,
        check_embedding_ctx_length=False,  # which needs OpenAI's own tokenizer
    )
    np.testing.assert_allclose(model.embed_documents(TEXTS), wanted, atol=1e-5)
    np.testing.assert_allclose(model.embed_query(TEXTS[0]), wanted[0], atol=1e-5)


def test_llama_index_s_of_text_embeddings_inference(address: str, wanted: Any) -> None:
    llama = pytest.importorskip("llama_index.embeddings.text_embeddings_inference")
    model = llama.TextEmbeddingsInference(
        model_name="encoder", base_url=address, auth_token=KEY, timeout=60
    )
    found = model.get_text_embedding_batch(TEXTS)
    np.testing.assert_allclose(found, wanted, atol=1e-5)
    np.testing.assert_allclose(model.get_query_embedding(TEXTS[0]), wanted[0], atol=1e-5)


def test_llama_index_s_of_openai(address: str, wanted: Any) -> None:
    llama = pytest.importorskip("llama_index.embeddings.openai")
    model = llama.OpenAIEmbedding(
        model_name="encoder", api_base=f"{address}/v1", api_key=KEY, max_retries=0
    )
    np.testing.assert_allclose(model.get_text_embedding_batch(TEXTS), wanted, atol=1e-5)
