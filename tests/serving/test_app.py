"""The endpoints: what each gives, against the models themselves, and what each refuses."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from servers import KINDS, LocalWorker, client_of, local_server, write_models
from starlette.testclient import TestClient
from tiny import POSITIONS

from bertfast import SentenceEncoder
from bertfast.sentences.cross_encoder import CrossEncoder
from bertfast.serving.app import Access
from bertfast.serving.limits import KEYS, Limits, api_keys
from bertfast.training.fill import MaskFiller
from bertfast.training.predict import Predictor

TEXT = "the film was warm and the cast was long"


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return write_models(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def client(folders: dict[str, Path]) -> Iterator[TestClient]:
    with client_of(local_server(list(folders.values()))) as found:
        yield found


def post(client: TestClient, path: str, body: Any = None, **fields: Any) -> Any:
    answer = client.post(path, json=fields if body is None else body)
    assert answer.status_code == 200, answer.text
    return answer.json()


def refused(client: TestClient, path: str, status: int, **fields: Any) -> str:
    """The one sentence of a refusal."""
    answer = client.post(path, json=fields)
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    said = error["message"] if path.startswith("/v1/") else error
    assert isinstance(said, str)
    assert "\n" not in said
    return said


@pytest.fixture(scope="module")
def vectors(folders: dict[str, Path]) -> Any:
    """The encoder's vectors, of length 1."""
    encoder = SentenceEncoder.from_pretrained(folders["encoder"])
    return lambda *texts: encoder.encode(list(texts), normalize=True)


def test_openai_embeddings(client: TestClient, vectors: Any) -> None:
    texts = [TEXT, "the score", ""]
    found = post(client, "/v1/embeddings", input=texts, model="encoder")
    assert [one["index"] for one in found["data"]] == [0, 1, 2]
    got = np.array([one["embedding"] for one in found["data"]])
    np.testing.assert_allclose(got, vectors(*texts), atol=1e-5)
    assert found["model"] == "encoder"
    assert found["usage"] == {"prompt_tokens": 11 + 4 + 2, "total_tokens": 17}
    coded = post(client, "/v1/embeddings", input=TEXT, encoding_format="base64")
    row = np.frombuffer(base64.b64decode(coded["data"][0]["embedding"]), "<f4")
    np.testing.assert_allclose(row, got[0], atol=1e-5)
    short = post(client, "/v1/embeddings", input=TEXT, dimensions=3)["data"][0]["embedding"]
    np.testing.assert_allclose(short, got[0, :3] / np.linalg.norm(got[0, :3]), atol=1e-5)


def test_token_ids_are_a_text_s(client: TestClient, vectors: Any) -> None:
    for special in (True, False):
        tokens = post(client, "/tokenize", inputs=TEXT, add_special_tokens=special)[0]
        ids = [token["id"] for token in tokens]
        for given in (ids, [ids]):
            got = post(client, "/v1/embeddings", input=given)["data"][0]["embedding"]
            np.testing.assert_allclose(got, vectors(TEXT)[0], atol=1e-5)
    assert [TEXT[t["start"] : t["stop"]] for t in tokens] == TEXT.split()
    assert post(client, "/decode", ids=ids) == [TEXT]


def test_embed_and_similarity(client: TestClient, vectors: Any) -> None:
    texts = [TEXT, "the score was awful"]
    np.testing.assert_allclose(post(client, "/embed", inputs=texts), vectors(*texts), atol=1e-5)
    raw = np.array(post(client, "/embed", inputs=TEXT, normalize=False))
    assert raw.shape[0] == 1
    assert abs(np.linalg.norm(raw) - 1) > 1e-3
    inputs = {"source_sentence": texts[0], "sentences": [texts[1], texts[0]]}
    a, b = vectors(*texts)
    np.testing.assert_allclose(post(client, "/similarity", inputs=inputs), [a @ b, 1], atol=1e-5)
    np.testing.assert_allclose(post(client, "/", inputs=inputs), [a @ b, 1], atol=1e-5)
    np.testing.assert_allclose(post(client, "/", inputs=texts), [a, b], atol=1e-5)


def test_predict_of_each_kind(client: TestClient, folders: dict[str, Path]) -> None:
    for name in ("classifier", "labels"):
        predictor = Predictor(folders[name])
        wanted = predictor.predict([predictor.task.of_text(1, TEXT)])[0]["probabilities"]
        found = post(client, "/predict", inputs=TEXT, model=name)
        assert [one["score"] for one in found] == sorted(wanted.values(), reverse=True)
        assert {one["label"]: one["score"] for one in found} == pytest.approx(wanted, abs=1e-6)
    batch = post(client, "/predict", inputs=[[TEXT], ["the film", "the cast"]], model="classifier")
    assert batch[0] == [
        pytest.approx(one, abs=1e-6) for one in post(client, "/predict", inputs=TEXT)
    ]
    pair = post(client, "/predict", inputs=["the film", "the cast"], model="classifier")
    assert batch[1] == [pytest.approx(one, abs=1e-6) for one in pair]
    logits = post(client, "/predict", inputs=TEXT, raw_scores=True)
    exps = np.exp([one["score"] for one in logits])
    np.testing.assert_allclose(exps / exps.sum(), [one["score"] for one in batch[0]], atol=1e-5)


def test_rerank_orders_by_the_cross_encoder(client: TestClient, folders: dict[str, Path]) -> None:
    texts = ["the film was dull", "a lovely score", TEXT, "the film was dull"]
    found = post(client, "/rerank", query="the film", texts=texts, return_text=True)
    raw = post(client, "/rerank", query="the film", texts=texts, raw_scores=True)
    assert [one["index"] for one in found] == [one["index"] for one in raw]
    assert [one["text"] for one in found] == [texts[one["index"]] for one in found]
    scores = [one["score"] for one in raw]
    assert scores == sorted(scores, reverse=True)
    np.testing.assert_allclose(
        [one["score"] for one in found], 1 / (1 + np.exp(-np.array(scores))), atol=1e-6
    )


@pytest.mark.parametrize("activation", ["Sigmoid", "Identity"])
def test_a_cross_encoder_s_folder_ranks_as_it_does_itself(
    folders: dict[str, Path], tmp_path: Path, activation: str
) -> None:
    encoder = CrossEncoder.from_pretrained(folders["reranker"])
    encoder.activation = activation
    encoder.save_pretrained(tmp_path / "ranks")
    texts = ["the film was dull", "a lovely score", TEXT]
    wanted = encoder.predict([("the film", text) for text in texts])
    with client_of(local_server([tmp_path / "ranks"])) as client:
        found = post(client, "/rerank", query="the film", texts=texts)
    assert [one["score"] for one in found] == pytest.approx(sorted(wanted, reverse=True), abs=1e-5)


@pytest.mark.slow
def test_reranking_is_that_of_transformers(client: TestClient, folders: dict[str, Path]) -> None:
    transformers = pytest.importorskip("transformers", reason="transformers is an extra")
    texts = ["the film was dull", "a lovely score", TEXT]
    raw = post(client, "/rerank", query="the film", texts=texts, raw_scores=True)
    model = transformers.AutoModelForSequenceClassification.from_pretrained(folders["reranker"])
    tokenizer = transformers.AutoTokenizer.from_pretrained(folders["reranker"])
    inputs = tokenizer(["the film"] * 3, texts, padding=True, return_tensors="pt")
    wanted = model.eval()(**inputs).logits[:, 0].tolist()
    scores = [one["score"] for one in raw]
    assert [wanted[one["index"]] for one in raw] == pytest.approx(scores, abs=1e-5)


def test_entities_answers_choices_and_words(client: TestClient, folders: dict[str, Path]) -> None:
    long = " ".join([TEXT] * 8)  # windows
    for name, path, inputs, examples in (
        (
            "tagger",
            "/entities",
            [TEXT, long],
            lambda task: [task.of_text(1, TEXT), task.of_text(2, long)],
        ),
        (
            "answerer",
            "/answers",
            {"question": "what was long?", "context": long},
            lambda task: task.of_arguments(["what was long?", long]),
        ),
    ):
        predictor = Predictor(folders[name])
        wanted = predictor.predict(examples(predictor.task))
        got = post(client, path, inputs=inputs)
        assert json.loads(json.dumps(wanted, default=str)) == [_near(one) for one in got]
    predictor = Predictor(folders["chooser"])
    wanted = predictor.predict(predictor.task.of_arguments(["the film was", "warm", "cold"]))[0]
    assert _near(wanted) == post(client, "/choose", text="the film was", choices=["warm", "cold"])
    words, _ = MaskFiller(folders["words"]).fill("the [MASK] was [MASK]", 3)
    found = post(client, "/fill", inputs="the [MASK] was [MASK]", top=3)[0]
    for mine, theirs in zip(found, words, strict=True):
        assert [one["text"] for one in mine] == [one.text for one in theirs]
        assert [one["probability"] for one in mine] == pytest.approx(
            [one.probability for one in theirs], abs=1e-6
        )


def _near(value: Any) -> Any:
    """The same with numbers that may be off by a little."""
    if isinstance(value, dict):
        return {name: _near(one) for name, one in value.items()}
    if isinstance(value, list):
        return [_near(one) for one in value]
    return pytest.approx(value, abs=1e-6) if isinstance(value, float) else value


@pytest.mark.parametrize("inputs", [TEXT, ["the film", "was warm"]])
def test_a_word_s_effect_is_the_change_without_it(client: TestClient, inputs: Any) -> None:
    found = post(client, "/explain", inputs=inputs, model="classifier")
    texts = [inputs] if isinstance(inputs, str) else inputs
    values = {one["label"]: one["score"] for one in post(client, "/predict", inputs=inputs)}
    assert found["values"] == pytest.approx(values, abs=1e-6)
    for place, (text, words) in enumerate(zip(texts, found["words"], strict=True)):
        assert [text[word["start"] : word["end"]] for word in words] == text.split()
        word = words[1]
        without = list(texts)
        without[place] = text[: word["start"]] + text[word["end"] :]
        left = post(client, "/predict", inputs=without if len(texts) > 1 else without[0])
        for one in left:
            change = values[one["label"]] - one["score"]
            assert word["effect"][one["label"]] == pytest.approx(change, abs=1e-6)


def test_the_right_model_is_found_and_the_wrong_one_refused(client: TestClient) -> None:
    assert "no model 'gpt'; there is encoder" in refused(
        client, "/v1/embeddings", 404, input="a", model="gpt"
    )
    assert "the model tagger is for token-classification; a sentence encoder is wanted" in refused(
        client, "/embed", 424, inputs="a", model="tagger"
    )
    assert "SPLADE" in refused(client, "/embed_sparse", 424, inputs="a")
    listed = client.get("/v1/models").json()["data"]
    assert [one["id"] for one in listed] == list(KINDS)
    assert client.get("/v1/models/words").json()["id"] == "words"
    assert client.get("/v1/models/none").status_code == 404
    info = client.get("/info").json()
    assert info["model_type"] == {"embedding": {"pooling": "mean"}}
    assert [one["name"] for one in info["models"]] == list(KINDS)


@pytest.mark.parametrize(
    ("path", "fields", "status", "said"),
    [
        ("/v1/embeddings", {"input": []}, 422, "there are no inputs"),
        ("/v1/embeddings", {"input": [[]]}, 422, "a list of token ids is empty"),
        ("/v1/embeddings", {"input": [5, -1]}, 422, "a token id is -1; the ids"),
        ("/v1/embeddings", {"input": [5, 10**30]}, 422, ""),
        ("/v1/embeddings", {"input": {"a": 1}}, 422, "input must be a text, a list"),
        ("/v1/embeddings", {"input": ["a", None]}, 422, "input must be a text, a list"),
        ("/v1/embeddings", {}, 422, "input is missing"),
        ("/v1/embeddings", {"input": "a", "dimensions": 33}, 422, "it must be from 1 to 32"),
        ("/v1/embeddings", {"input": "a", "encoding_format": "x"}, 422, "encoding_format must be"),
        ("/embed", {"inputs": "a" * 2001}, 413, "a text has 2001 characters; max_chars is 2000"),
        ("/embed", {"inputs": ["a"] * 65}, 422, "there are 65 inputs; max_batch is 64"),
        ("/embed", {"inputs": "a", "prompt_name": "q"}, 422, "no prompt named 'q'"),
        ("/embed", {"inputs": f"{TEXT} " * 9, "truncate": False}, 413, "tokens and the model"),
        ("/embed", {"inputs": [2] * 99, "truncate": False}, 413, "an input has 99 tokens"),
        ("/fill", {"inputs": "no mask"}, 422, "no [MASK] to fill"),
        ("/fill", {"inputs": "a [MASK]", "top": 0}, 422, "top must be a whole number from 1"),
        ("/fill", {"inputs": f"{TEXT} " * 9 + "[MASK]"}, 422, "beyond the model's"),
        ("/choose", {"text": "a", "choices": ["b"]}, 422, "choices must be a list of two"),
        ("/predict", {"inputs": ["a", "b", "c"]}, 422, "an input has 3 texts"),
        ("/predict", {"inputs": [[]]}, 422, "an input has 0 texts"),
        ("/rerank", {"query": "a", "texts": []}, 422, "there are no inputs"),
        ("/similarity", {"inputs": {"source_sentence": "a", "sentences": []}}, 422, "is empty"),
        ("/similarity", {"inputs": {"sentences": []}}, 422, "inputs.source_sentence is missing"),
        ("/answers", {"inputs": {"question": "a"}}, 422, "inputs must be an object"),
        ("/decode", {"ids": [10**6]}, 422, "a token id is 1000000"),
        ("/models/none", {"inputs": "a"}, 404, "there is no model 'none'"),
        ("/nothing", {}, 404, "there is no such path"),
    ],
)
def test_what_cannot_be_answered_is_refused_in_one_sentence(
    small: TestClient, path: str, fields: dict[str, Any], status: int, said: str
) -> None:
    assert said in refused(small, path, status, **fields)


@pytest.fixture(scope="module")
def small(folders: dict[str, Path]) -> Iterator[TestClient]:
    limits = Limits(max_chars=2000, max_batch=64, max_queue=64, max_body=20_000)
    with client_of(local_server(list(folders.values()), limits)) as found:
        yield found


@pytest.mark.parametrize(
    ("body", "status", "said"),
    [
        (b"{", 400, "the body is no JSON"),
        (b"", 400, "the body is no JSON"),
        (b"[]", 422, "the body must be a JSON object"),
        (b"null", 422, "the body must be a JSON object"),
        (b"[" * 10_000, 400, "the body is no JSON"),
        (b'{"inputs": "\\ud800"}', 400, "the body is no JSON"),
        (b'{"inputs": "\xed\xa0\x80"}', 400, "the body is no JSON"),
        (b'{"inputs": "' + b"a" * 20_000 + b'"}', 413, "20000 bytes of max_body"),
    ],
)
def test_a_body_that_is_no_form_is_refused(
    small: TestClient, body: bytes, status: int, said: str
) -> None:
    answer = small.post("/embed", content=body)
    assert (answer.status_code, said in answer.json()["error"]) == (status, True), answer.text


def test_a_zero_byte_is_a_character(client: TestClient, vectors: Any) -> None:
    got = post(client, "/embed", inputs="the\0 film")
    np.testing.assert_allclose(got, vectors("the\0 film"), atol=1e-5)


def test_keys_open_the_server(
    folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "keys").write_text("first\nsecond\n")
    monkeypatch.setenv(KEYS, "third, fourth")
    access = Access(api_keys(tmp_path / "keys"))
    with client_of(local_server([folders["encoder"]], access=access)) as client:
        for key in ("first", "second", "third", "fourth"):
            headers = {"Authorization": f"Bearer {key}"}
            assert client.post("/embed", json={"inputs": "a"}, headers=headers).is_success
        for headers in ({}, {"Authorization": "Bearer fifth"}, {"Authorization": "Basic first"}):
            for path in ("/embed", "/v1/embeddings"):
                answer = client.post(path, json={"inputs": "a"}, headers=headers)
                assert (answer.status_code, "key" in answer.text) == (401, True)
                assert answer.headers["WWW-Authenticate"] == "Bearer"
            for path in ("/info", "/v1/models", "/metrics"):
                assert client.get(path, headers=headers).status_code == 401
            for path in ("/", "/health", "/ready", "/docs", "/openapi.json", "/static/page.js"):
                assert client.get(path, headers=headers).status_code == 200


def test_one_request_s_failure_leaves_its_neighbours(
    folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    from bertfast.serving.served import Embedder

    compute = Embedder.compute

    def failing(self: Embedder, operation: str, payloads: Any) -> Any:
        if any(len(row) == 3 for row in payloads):
            raise ValueError("the secret text")
        return compute(self, operation, payloads)

    monkeypatch.setattr(Embedder, "compute", failing)
    server = local_server([folders["encoder"]], Limits(max_wait_ms=300))
    with client_of(server) as client:
        from concurrent.futures import ThreadPoolExecutor

        with ThreadPoolExecutor(4) as pool:
            texts = [TEXT, "film", "the film was", "the cast was long"]
            sent = [pool.submit(client.post, "/embed", json={"inputs": text}) for text in texts]
            answers = [one.result() for one in sent]
    assert [answer.status_code for answer in answers] == [200, 500, 200, 200]
    assert "secret" not in answers[1].text + "".join(capfd.readouterr())


def test_a_full_queue_and_a_deadline(
    folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(LocalWorker, "send", lambda self, batch: None)
    limits = Limits(max_queue=2, max_batch=2, timeout=1.0)
    server = local_server([folders["encoder"]], limits)
    with client_of(server) as client:
        answer = client.post("/embed", json={"inputs": ["a", "b"]})
        assert (answer.status_code, "1 s of timeout" in answer.text) == (504, True)
        assert (server.texts, server.batcher.waiting) == (0, 0)
        server.texts = 1
        answer = client.post("/embed", json={"inputs": ["a", "b"]})
        assert (answer.status_code, "max_queue is 2" in answer.text) == (429, True)
        assert int(answer.headers["Retry-After"]) >= 1


def test_metrics_count_requests_and_tokens(client: TestClient) -> None:
    prometheus = pytest.importorskip("prometheus_client.parser")

    def read() -> dict[str, float]:
        text = client.get("/metrics").text
        families = prometheus.text_string_to_metric_families(text)
        return {
            sample.name: sample.value
            for family in families
            for sample in family.samples
            if sample.name
            in ("bertfast_tokens_total", "bertfast_sequences_total", "bertfast_ready")
        }

    before = read()
    post(client, "/embed", inputs=[TEXT, "the"])
    after = read()
    assert after["bertfast_ready"] == 1
    assert after["bertfast_tokens_total"] - before["bertfast_tokens_total"] == 11 + 3
    assert after["bertfast_sequences_total"] - before["bertfast_sequences_total"] == 2


def test_pages_ask_no_other_host(client: TestClient) -> None:
    described = client.get("/openapi.json").json()
    for path in ("/", "/docs", "/static/page.js", "/static/page.css"):
        answer = client.get(path)
        assert answer.status_code == 200
        policy = answer.headers["Content-Security-Policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        for scheme in ("http://", "https://", "//cdn"):
            assert scheme not in answer.text.replace("http://www.w3.org/2000/svg", "")
    for path in described["paths"]:
        assert path in client.get("/docs").text


def test_limits_of_no_sense_are_refused() -> None:
    from bertfast import BertfastError

    for options in ({"max_batch": 0}, {"timeout": float("nan")}, {"max_batch": 9, "max_queue": 8}):
        with pytest.raises(BertfastError, match=next(iter(options))):
            Limits(**options)  # type: ignore[arg-type]


def test_the_longest_texts_are_cut_as_the_model_s(client: TestClient) -> None:
    long = " ".join([TEXT] * 9)
    tokens = post(client, "/v1/embeddings", input=long)["usage"]["prompt_tokens"]
    assert tokens == POSITIONS
