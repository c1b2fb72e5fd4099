"""The endpoints. See docs/serving.md for what each takes and gives."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import sys
import time
import traceback
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple, TypeVar

import numpy as np
import orjson
from numpy.typing import NDArray
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route

from bertfast import __version__
from bertfast.errors import BertfastError

from . import forms, page
from .batcher import Batcher
from .forms import Form
from .limits import Limits, Refused
from .measures import Measures
from .served import (
    Embedder,
    Filler,
    Item,
    Served,
    Tasked,
    choice,
    chunks,
    entries,
    occluded,
    question,
)
from .worker import Worker

AT_ONCE = 1 << 17  # characters that are tokenized before others have their turn
BODIES = 8  # largest bodies that are held in memory at a time
PLAIN = {"X-Content-Type-Options": "nosniff", "Cache-Control": "no-store"}
S = TypeVar("S", bound=Served)
T = TypeVar("T")


class Endpoint(NamedTuple):
    """A path that takes a form.

    Attributes:
        path: of the address.
        form: what its body holds.
        answer: makes the answer of a form.
        tag: under which the OpenAPI page lists it.
        summary: in a few words.
    """

    path: str
    form: type[Form]
    answer: Callable[[Any], Awaitable[Any]]
    tag: str
    summary: str


@dataclass
class Access:
    """Who may ask, and what is written down of it.

    Attributes:
        keys: any of which opens the server; none opens it to everyone.
        log: whether method, path, status and time of each request go to standard error.
    """

    keys: tuple[bytes, ...] = ()
    log: bool = False

    def check(self, request: Request) -> None:
        """Raises Refused where a request has none of the keys; equally soon whichever it has."""
        if not self.keys:
            return
        scheme, _, given = request.headers.get("authorization", "").partition(" ")
        digest = hashlib.sha256(given.strip().encode()).digest()
        right = False
        for key in self.keys:
            right |= hmac.compare_digest(digest, hashlib.sha256(key).digest())
        if not right or scheme.lower() != "bearer":
            raise Refused(
                401, "a key is wanted: Authorization: Bearer KEY", "Unauthorized", "invalid_api_key"
            )


class Server:
    """The models, what waits for them, and the answers.

    Args:
        models: by name, in the order in which they are looked through; weights are not needed.
        limits: of requests.
        start_worker: as of `Batcher`.
        workers: how many.
        access: who may ask.
    """

    def __init__(
        self,
        models: Sequence[Served],
        limits: Limits,
        start_worker: Callable[[Callable[[Any], None]], Worker],
        workers: int = 1,
        access: Access | None = None,
    ) -> None:
        self.models = {model.name: model for model in models}
        self.limits, self.access, self.measures = limits, access or Access(), Measures()
        self.workers, self.started = workers, int(time.time())
        self.batcher = Batcher(limits, start_worker, workers, self.measures.observe)
        # A tokenizer is for one thread at a time.
        self.threads = {name: ThreadPoolExecutor(1) for name in self.models}
        self.texts = self.bytes = 0
        self.endpoints = (
            Endpoint("/v1/embeddings", forms.OpenAIEmbeddings, self.openai, "OpenAI", "Vectors"),
            Endpoint("/embed", forms.Embed, self.embed, "text-embeddings-inference", "Vectors"),
            Endpoint(
                "/embed_sparse",
                forms.EmbedSparse,
                self.embed_sparse,
                "text-embeddings-inference",
                "Sparse vectors of SPLADE",
            ),
            Endpoint(
                "/similarity",
                forms.Similarity,
                self.similarity,
                "text-embeddings-inference",
                "Cosines of a text with others",
            ),
            Endpoint(
                "/rerank",
                forms.Rerank,
                self.rerank,
                "text-embeddings-inference",
                "Texts ordered for a query",
            ),
            Endpoint(
                "/predict",
                forms.Predict,
                self.predict,
                "text-embeddings-inference",
                "Labels with their scores",
            ),
            Endpoint(
                "/tokenize",
                forms.Tokenize,
                self.tokenize,
                "text-embeddings-inference",
                "Tokens of texts",
            ),
            Endpoint(
                "/decode", forms.Decode, self.decode, "text-embeddings-inference", "Texts of tokens"
            ),
            Endpoint("/entities", forms.Entities, self.entities, "bertfast", "Words with tags"),
            Endpoint("/answers", forms.Answers, self.answers, "bertfast", "Answers in a context"),
            Endpoint("/fill", forms.Fill, self.fill, "bertfast", "Words for masks"),
            Endpoint("/choose", forms.Choose, self.choose, "bertfast", "One of several choices"),
            Endpoint("/explain", forms.Explain, self.explain, "bertfast", "Each word's part"),
            Endpoint(
                "/", forms.Pipeline, self.pipeline, "Hugging Face", "A pipeline of the first model"
            ),
        )

    def app(self) -> Starlette:
        """The ASGI application, which starts and stops the workers."""

        @asynccontextmanager
        async def lifespan(_: Starlette) -> AsyncIterator[None]:
            self.batcher.start()
            await self.batcher.first.wait()
            if self.batcher.failure:
                raise BertfastError(self.batcher.failure)
            yield
            await self.batcher.stop()

        found: dict[str, Callable[[Request], Response]] = {
            "/": page.index,
            "/static/{name}": page.static,
            "/docs": partial(page.reference, self.openapi),
            "/openapi.json": self._openapi,
            "/health": self._health,
            "/ready": self._ready,
            "/metrics": self._metrics,
            "/info": self._info,
            "/v1/models": self._openai_models,
            "/v1/models/{name:path}": self._openai_model,
        }
        routes = [Route(path, self._got(path, answer)) for path, answer in found.items()]
        routes += [Route(one.path, self._posted(one), methods=["POST"]) for one in self.endpoints]
        routes.append(
            Route("/models/{name:path}", self._posted(self.endpoints[-1]), methods=["POST"])
        )
        return Starlette(
            routes=routes,
            lifespan=lifespan,
            exception_handlers={HTTPException: self._http_error},  # type: ignore[dict-item]
        )

    # What comes in, and what goes out

    def _got(
        self, path: str, answer: Callable[[Request], Response]
    ) -> Callable[[Request], Awaitable[Response]]:
        async def handle(request: Request) -> Response:
            return await self._answered(request, path, partial(_called, answer, request))

        return handle

    def _posted(self, endpoint: Endpoint) -> Callable[[Request], Awaitable[Response]]:
        async def handle(request: Request) -> Response:
            async def respond() -> Response:
                self.access.check(request)
                async with self._body(request) as body:
                    form = forms.read_form(endpoint.form, body)
                    if "name" in request.path_params:
                        form.model = request.path_params["name"]
                    return respond_json(await self._until(request, endpoint.answer(form)))

            return await self._answered(request, endpoint.path, respond)

        return handle

    async def _answered(
        self, request: Request, path: str, respond: Callable[[], Awaitable[Response]]
    ) -> Response:
        """The response, or what an error makes of it; counted, and logged where that is asked."""
        started = time.perf_counter()
        try:
            response = await respond()
        except Refused as error:
            response = refusal(request.url.path, error)
        except BertfastError as error:
            response = refusal(request.url.path, Refused(422, str(error)))
        except ClientDisconnect:
            self.measures.cancelled.inc()
            response = Response(status_code=499)
        except Exception as error:
            # The message may hold a request's text, and so may the lines' values.
            frames = "".join(traceback.format_tb(error.__traceback__))
            print(f"bertfast serve: {type(error).__name__}\n{frames}", file=sys.stderr, flush=True)
            response = refusal(
                request.url.path,
                Refused(500, f"the server failed ({type(error).__name__})", "Backend"),
            )
        took = time.perf_counter() - started
        self.measures.requests.labels(path, response.status_code).inc()
        self.measures.seconds.labels(path).observe(took)
        if self.access.log:
            print(
                f"{request.method} {path} {response.status_code} {1000 * took:.1f} ms",
                file=sys.stderr,
                flush=True,
            )
        return response

    @asynccontextmanager
    async def _body(self, request: Request) -> AsyncIterator[bytes]:
        """The body of a request, read within `read_timeout`."""
        limit, parts, size = self.limits.max_body, [], 0
        too_large = Refused(413, f"the body is larger than the {limit} bytes of max_body")
        length = request.headers.get("content-length", "")
        if length.isdecimal() and int(length) > limit:
            raise too_large
        try:
            try:
                async with asyncio.timeout(self.limits.read_timeout):
                    async for part in request.stream():
                        size += len(part)
                        self.bytes += len(part)
                        if size > limit:
                            raise too_large
                        if self.bytes > BODIES * limit:
                            raise self._overloaded("the server has too many bodies in memory")
                        parts.append(part)
            except TimeoutError:
                raise Refused(
                    408,
                    f"the body did not come within the {self.limits.read_timeout:g} s of "
                    "read_timeout",
                ) from None
            yield b"".join(parts)
        finally:
            self.bytes -= size

    async def _until(self, request: Request, answer: Awaitable[T]) -> T:
        """An answer, unless the deadline passes or the client leaves, which cancels the work."""
        task = asyncio.ensure_future(answer)
        left = asyncio.ensure_future(_left(request))
        try:
            await asyncio.wait(
                {task, left}, timeout=self.limits.timeout, return_when=asyncio.FIRST_COMPLETED
            )
            if task.done():
                return task.result()
            if left.done():
                raise ClientDisconnect
            raise Refused(
                504,
                f"there was no answer within the {self.limits.timeout:g} s of timeout",
                "Overloaded",
                retry_after=self.batcher.retry_after(),
            )
        finally:
            task.cancel()
            left.cancel()

    def _overloaded(self, message: str) -> Refused:
        return Refused(
            429,
            f"{message}; try again later",
            "Overloaded",
            "rate_limit_exceeded",
            self.batcher.retry_after(),
        )

    async def _http_error(self, request: Request, error: HTTPException) -> Response:
        said = {404: "there is no such path", 405: "the path has no such method"}
        message = f"{said.get(error.status_code, error.detail)}; GET /docs lists them"
        response = refusal(request.url.path, Refused(error.status_code, message))
        response.headers.update(error.headers or {})
        return response

    # What every answer needs

    def _pick(self, kind: type[S], name: str | None, fits: Callable[[S], bool], lack: str) -> S:
        """The model of that name, or the first that fits.

        Raises:
            Refused: there is none of that name, or it does not fit.
        """
        if name is not None:
            found = self.models.get(name)
            if found is None:
                raise Refused(
                    404,
                    f"there is no model {name!r}; there is {', '.join(self.models)}",
                    "NotFound",
                    "model_not_found",
                )
            if not isinstance(found, kind) or not fits(found):
                raise Refused(424, f"the model {name} is for {found.kind}; {lack}", "Backend")
            return found
        for model in self.models.values():
            if isinstance(model, kind) and fits(model):
                return model
        has = ", ".join(f"{model.name} ({model.kind})" for model in self.models.values())
        raise Refused(424, f"{lack}, and there is {has}", "Backend")

    def _embedder(self, name: str | None) -> Embedder:
        return self._pick(Embedder, name, lambda _: True, "a sentence encoder is wanted")

    @contextmanager
    def _taken(self, texts: Sequence[str]) -> Iterator[None]:
        """Texts that the server works on: few enough, short enough, and room in the queue.

        Raises:
            Refused: there is none of it.
        """
        limits, count = self.limits, len(texts)
        if not count:
            raise Refused(422, "there are no inputs; give one at least")
        if count > limits.max_batch:
            raise Refused(422, f"there are {count} inputs; max_batch is {limits.max_batch}")
        longest = max(map(len, texts))
        if longest > limits.max_chars:
            raise Refused(413, f"a text has {longest} characters; max_chars is {limits.max_chars}")
        if self.texts + count > limits.max_queue:
            raise self._overloaded(
                f"{self.texts} texts are waited for; max_queue is {limits.max_queue}"
            )
        self.texts += count
        try:
            yield
        finally:
            self.texts -= count

    async def _off(self, model: Served, call: Callable[..., T], *args: Any) -> T:
        """A call on the model's own thread."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self.threads[model.name], partial(call, *args))

    async def _computed(self, model: Served, operation: str, items: Sequence[Any]) -> list[Any]:
        """The outputs of items, or of a task's inputs."""
        payloads = [item.payload if isinstance(item, Item) else item for item in items]
        job = self.batcher.submit(model.name, operation, payloads, [item.tokens for item in items])
        try:
            return await job.done
        finally:
            if not job.done.done() or job.done.cancelled():
                self.batcher.forget(job)

    def _truncate(self, form: Any) -> bool:
        return self.limits.truncate if form.truncate is None else bool(form.truncate)

    async def _vectors(
        self,
        model: Embedder,
        inputs: str | list[str] | list[int] | list[list[int]],
        truncate: bool,
        prompt_name: str | None = None,
        dimensions: int | None = None,
        normalize: bool = True,
    ) -> tuple[NDArray[np.float32], int]:
        """(inputs, width), and how many tokens the inputs had."""
        if dimensions is not None and not 1 <= dimensions <= model.width:
            raise Refused(422, f"dimensions is {dimensions}; it must be from 1 to {model.width}")
        items: list[Item] = []
        operation = ""
        if isinstance(inputs, list) and inputs and not isinstance(inputs[0], str):
            rows: Any = inputs if isinstance(inputs[0], list) else [inputs]
            if not all(rows):
                raise Refused(422, "a list of token ids is empty; give one id at least")
            # A token has a few characters at most, but never less than one.
            with self._taken([" " * len(row) for row in rows]):
                operation, items = await self._off(model, model.encode_ids, rows, truncate)
                found = await self._computed(model, operation, items)
        else:
            texts: Any = [inputs] if isinstance(inputs, str) else inputs
            with self._taken(texts):
                for run in chunks(texts, AT_ONCE):
                    operation, some = await self._off(
                        model, model.encode_texts, texts[run], prompt_name, truncate
                    )
                    items += some
                found = await self._computed(model, operation, items)
        vectors = np.stack(found)[:, :dimensions]
        if normalize:
            lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
            vectors = vectors / np.maximum(lengths, np.finfo(np.float32).tiny)
        return np.ascontiguousarray(vectors), sum(item.tokens for item in items)

    async def _said(
        self, model: Tasked, examples: Sequence[Any], truncate: bool, say: Callable[..., T]
    ) -> T:
        """What `Tasked` says of examples: its ``predictions`` or its ``values``."""
        operation, inputs = await self._off(model, model.encode, examples, truncate)
        outputs = await self._computed(model, operation, inputs)
        return await self._off(model, say, outputs, inputs, examples)

    # The answers

    async def openai(self, form: forms.OpenAIEmbeddings) -> Any:
        """OpenAI's embeddings."""
        model = self._embedder(form.model)
        vectors, tokens = await self._vectors(
            model, form.input, self.limits.truncate, dimensions=form.dimensions
        )
        made: Any = list(vectors)
        if form.encoding_format == "base64":
            made = [base64.b64encode(row.astype("<f4").tobytes()).decode() for row in vectors]
        return {
            "object": "list",
            "data": [
                {"object": "embedding", "index": number, "embedding": one}
                for number, one in enumerate(made)
            ],
            "model": model.name,
            "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
        }

    async def embed(self, form: forms.Embed) -> Any:
        """A list of vectors."""
        vectors, _ = await self._vectors(
            self._embedder(form.model),
            form.inputs,
            self._truncate(form),
            form.prompt_name,
            form.dimensions,
            form.normalize is not False,
        )
        return vectors

    async def embed_sparse(self, form: forms.EmbedSparse) -> Any:
        """Refused: no folder that is read here is SPLADE's."""
        self._pick(Served, form.model, lambda _: False, "a SPLADE model is wanted")

    async def similarity(self, form: forms.Similarity) -> Any:
        """The cosine of the source with each sentence."""
        options = form.parameters or forms.SimilarityOptions(truncate=None, prompt_name=None)
        if not form.inputs.sentences:
            raise Refused(422, "inputs.sentences is empty; give one at least")
        vectors, _ = await self._vectors(
            self._embedder(form.model),
            [form.inputs.source_sentence, *form.inputs.sentences],
            self._truncate(options),
            options.prompt_name,
        )
        return vectors[1:] @ vectors[0]

    async def rerank(self, form: forms.Rerank) -> Any:
        """The texts' places with their scores, the best first."""
        model = self._pick(Tasked, form.model, lambda one: one.reranks, "a cross-encoder is wanted")
        with self._taken([form.query, *form.texts] if form.texts else []):
            examples = model.examples([(form.query, text) for text in form.texts])
            found = await self._said(
                model,
                examples,
                self._truncate(form),
                lambda outputs, *_: model.ranking(outputs, form.raw_scores),
            )
        scores = np.array(found)
        return [
            {"index": int(place), "score": float(scores[place])}
            | ({"text": form.texts[place]} if form.return_text else {})
            for place in np.argsort(-scores, kind="stable")
        ]

    async def predict(self, form: forms.Predict) -> Any:
        """Labels with their scores, the highest first; of a batch a list for each input."""
        model = self._pick(
            Tasked,
            form.model,
            lambda one: one.classifies,
            "a model that classifies texts is wanted",
        )
        inputs = form.inputs
        batch = isinstance(inputs, list) and bool(inputs) and isinstance(inputs[0], list)
        rows: Any = inputs if batch else [[inputs] if isinstance(inputs, str) else inputs]
        for row in rows:
            if len(row) not in (1, 2):
                raise Refused(422, f"an input has {len(row)} texts; give one, or a pair")
        with self._taken(["".join(row) for row in rows]):
            examples = model.examples([row[0] if len(row) == 1 else tuple(row) for row in rows])
            say = (lambda outputs, *_: model.logits(outputs)) if form.raw_scores else model.values
            found = await self._said(model, examples, self._truncate(form), say)
        made = [entries(values) for values in found]
        return made if batch else made[0]

    async def tokenize(self, form: forms.Tokenize) -> Any:
        """Each text's tokens."""
        model = self._pick(Served, form.model, lambda _: True, "a model is wanted")
        texts = [form.inputs] if isinstance(form.inputs, str) else form.inputs

        def tokens() -> Any:
            special = form.add_special_tokens
            found = model.tokenizer.encode_batch(texts, add_special_tokens=special)
            return [
                [
                    {"id": index, "text": token, "special": bool(mark)}
                    | ({} if mark else {"start": start, "stop": stop})
                    for index, token, mark, (start, stop) in zip(
                        one.ids, one.tokens, one.special_tokens_mask, one.offsets, strict=True
                    )
                ]
                for one in found
            ]

        with self._taken(texts):
            return await self._off(model, tokens)

    async def decode(self, form: forms.Decode) -> Any:
        """Each list's text."""
        model = self._pick(Served, form.model, lambda _: True, "a model is wanted")
        rows: Any = form.ids if form.ids and isinstance(form.ids[0], list) else [form.ids]
        for index in (index for row in rows for index in row):
            if not 0 <= index < model.config.vocab_size:
                raise Refused(
                    422,
                    f"a token id is {index}; the ids of the model {model.name} are 0 to "
                    f"{model.config.vocab_size - 1}",
                )
        decode = partial(
            model.tokenizer.decode_batch, rows, skip_special_tokens=form.skip_special_tokens
        )
        with self._taken([" " * len(row) for row in rows]):
            return await self._off(model, decode)

    async def entities(self, form: forms.Entities) -> Any:
        """What the tagger says of each text, in order."""
        model = self._tasked(form.model, "token-classification", "a tagger is wanted")
        texts = [form.inputs] if isinstance(form.inputs, str) else form.inputs
        with self._taken(texts):
            return await self._said(
                model, model.examples(texts), self._truncate(form), model.predictions
            )

    async def answers(self, form: forms.Answers) -> Any:
        """The answer to each question, in order."""
        model = self._tasked(
            form.model, "question-answering", "a model of question answering is wanted"
        )
        asked = [form.inputs] if isinstance(form.inputs, forms.Asked) else form.inputs
        with self._taken([one.question + one.context for one in asked]):
            examples = [question(one.context, one.question, n) for n, one in enumerate(asked, 1)]
            return await self._said(model, examples, self._truncate(form), model.predictions)

    async def fill(self, form: forms.Fill) -> Any:
        """For each text, for each of its masks, the likeliest words."""
        texts = [form.inputs] if isinstance(form.inputs, str) else form.inputs
        with self._taken(texts):
            return await self._filled(form.model, texts, form.top, self._truncate(form))

    async def _filled(
        self, name: str | None, texts: list[str], top: int, truncate: bool
    ) -> list[list[list[dict[str, Any]]]]:
        model = self._pick(Filler, name, lambda _: True, "a masked-LM model is wanted")
        top = min(top, model.config.vocab_size)
        operation, items, blanks = await self._off(model, model.encode, texts, top, truncate)
        found = await self._computed(model, operation, items)

        def words() -> list[list[list[dict[str, Any]]]]:
            made = []
            for one, likeliest in zip(blanks, found, strict=True):
                kept = type(likeliest)(*(part[:, :top] for part in likeliest))
                ids = kept.words.tolist()
                made.append(
                    [
                        [
                            {
                                "word": filler.word,
                                "probability": filler.probability,
                                "text": filler.text,
                                "token": token,
                            }
                            for filler, token in zip(fillers, tokens, strict=True)
                        ]
                        for fillers, tokens in zip(model.filler.words(one, kept), ids, strict=True)
                    ]
                )
            return made

        return await self._off(model, words)

    async def choose(self, form: forms.Choose) -> Any:
        """The likeliest choice, and each one's probability."""
        model = self._tasked(form.model, "multiple-choice", "a model of multiple choice is wanted")
        with self._taken([f"{form.text}{form.question}{one}" for one in form.choices]):
            example = choice(form.text, form.question, form.choices)
            found = await self._said(model, [example], self._truncate(form), model.predictions)
            return found[0]

    async def explain(self, form: forms.Explain) -> Any:
        """What each word adds to each label's value: the value of the whole less that without the
        word (occlusion).
        """
        model = self._pick(
            Tasked,
            form.model,
            lambda one: one.classifies,
            "a model that classifies texts is wanted",
        )
        texts = [form.inputs] if isinstance(form.inputs, str) else form.inputs
        if len(texts) not in (1, 2):
            raise Refused(422, f"there are {len(texts)} texts; give one, or a pair")
        whole: Any = texts[0] if len(texts) == 1 else tuple(texts)
        with self._taken(["".join(texts)]):
            parts = [occluded(text) for text in texts]
            variants: list[Any] = [whole]
            for place, (_, without) in enumerate(parts):
                for text in without:
                    changed = [*texts[:place], text, *texts[place + 1 :]]
                    variants.append(text if len(texts) == 1 else tuple(changed))
            found = await self._said(
                model, model.examples(variants), self._truncate(form), model.values
            )
        rest = iter(found[1:])
        return {
            "values": found[0],
            "words": [
                [
                    {
                        "start": start,
                        "end": end,
                        "text": text[start:end],
                        "effect": {
                            label: found[0][label] - value for label, value in next(rest).items()
                        },
                    }
                    for start, end in spans
                ]
                for text, (spans, _) in zip(texts, parts, strict=True)
            ],
        }

    async def pipeline(self, form: forms.Pipeline) -> Any:
        """What the Hub's pipeline of the model's task gives."""
        model = self._pick(Served, form.model, lambda _: True, "a model is wanted")
        options, name = form.parameters or {}, model.name
        given = {"model": name, "inputs": form.inputs}
        if isinstance(model, Embedder):
            if isinstance(form.inputs, dict):
                return await self.similarity(forms.check_form(forms.Similarity, given))
            more = {"normalize", "truncate", "prompt_name"}
            return await self.embed(
                forms.check_form(forms.Embed, given | form.model_dump(include=more))
            )
        if isinstance(model, Filler):
            top = options.get("top_k", 5)
            filled = await self.fill(forms.check_form(forms.Fill, given | {"top": top}))
            made = [
                [
                    {
                        "score": one["probability"],
                        "token": one["token"],
                        "token_str": one["word"],
                        "sequence": one["text"],
                    }
                    for one in words
                ]
                for masks in filled
                for words in masks
            ]
            return made[0] if len(made) == 1 else made
        if model.kind == "token-classification":
            found = await self.entities(forms.check_form(forms.Entities, given))
            spans = [[_entity(one) for one in row.get("entities", [])] for row in found]
            return spans[0] if isinstance(form.inputs, str) else spans
        if model.kind == "question-answering":
            answered = await self.answers(forms.check_form(forms.Answers, given))
            return answered[0] if isinstance(form.inputs, dict) else answered
        top = options.get("top_k")
        if top is not None and (not isinstance(top, int) or isinstance(top, bool) or top < 1):
            raise Refused(422, "parameters.top_k must be a whole number from 1 on")
        if isinstance(form.inputs, list):  # the Hub's lists are of texts, not pairs
            given["inputs"] = [[one] if isinstance(one, str) else one for one in form.inputs]
        labels = await self.predict(forms.check_form(forms.Predict, given))
        rows = labels if isinstance(form.inputs, list) else [labels]
        return [row[:top] for row in rows]

    def _tasked(self, name: str | None, kind: str, lack: str) -> Tasked:
        return self._pick(Tasked, name, lambda one: one.kind == kind, lack)

    # What is asked without a body

    def _health(self, _: Request) -> Response:
        return respond_json({"status": "ok"})

    def _ready(self, request: Request) -> Response:
        if not self.batcher.ready:
            raise Refused(503, "no worker is ready", "Unhealthy", retry_after=1.0)
        return respond_json({"status": "ready"})

    def _metrics(self, request: Request) -> Response:
        self.access.check(request)
        text = self.measures.text(self.batcher, self.texts)
        return Response(text, media_type="text/plain; version=0.0.4", headers=PLAIN)

    def _info(self, request: Request) -> Response:
        self.access.check(request)
        first = next(iter(self.models.values()))
        described = [model.described() for model in self.models.values()]
        limits = self.limits
        return respond_json(
            {
                "model_id": first.name,
                "model_sha": None,
                "model_dtype": described[0]["dtype"],
                "model_type": _tei_type(first),
                "max_concurrent_requests": limits.max_connections,
                "max_input_length": first.max_length,
                "max_batch_tokens": limits.max_batch_tokens,
                "max_client_batch_size": limits.max_batch,
                "auto_truncate": limits.truncate,
                "max_chars": limits.max_chars,
                "max_body": limits.max_body,
                "version": __version__,
                "models": described,
            }
        )

    def _openai_models(self, request: Request) -> Response:
        self.access.check(request)
        return respond_json(
            {"object": "list", "data": [self._openai_card(name) for name in self.models]}
        )

    def _openai_model(self, request: Request) -> Response:
        self.access.check(request)
        name = request.path_params["name"]
        self._pick(Served, name, lambda _: True, "a model is wanted")
        return respond_json(self._openai_card(name))

    def _openai_card(self, name: str) -> dict[str, Any]:
        return {"id": name, "object": "model", "created": self.started, "owned_by": "bertfast"}

    def _openapi(self, _: Request) -> Response:
        return respond_json(self.openapi())

    def openapi(self) -> dict[str, Any]:
        """The description of the endpoints, of OpenAPI 3.1."""
        return page.openapi([(one.path, one.form, one.tag, one.summary) for one in self.endpoints])


async def _called(answer: Callable[[Request], Response], request: Request) -> Response:
    return answer(request)


async def _left(request: Request) -> None:
    """Returns when the client has gone."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _entity(found: dict[str, Any]) -> dict[str, Any]:
    """An entity under the names of the Hub's pipeline."""
    return {
        "entity_group": found["label"],
        "score": found["score"],
        "word": found["text"],
        "start": found["start"],
        "end": found["end"],
    }


def _tei_type(model: Served) -> dict[str, Any]:
    """What text-embeddings-inference calls a model."""
    if isinstance(model, Embedder):
        return {"embedding": {"pooling": "+".join(model.encoder.pooling)}}
    labels = {str(number): label for number, label in model.config.id2label.items()}
    kind = "reranker" if isinstance(model, Tasked) and model.reranks else "classifier"
    if not isinstance(model, Tasked) or not model.classifies:
        return {model.kind: {}}
    return {kind: {"id2label": labels, "label2id": model.config.label2id}}


def respond_json(value: Any) -> Response:
    """JSON of plain values and arrays."""
    body = orjson.dumps(value, option=orjson.OPT_SERIALIZE_NUMPY)
    return Response(body, media_type="application/json", headers=PLAIN)


def refusal(path: str, error: Refused) -> Response:
    """An error as OpenAI's clients read it, or as text-embeddings-inference's do."""
    message = " ".join(str(error).split())
    value: Any = {"error": message, "error_type": error.kind}
    if path.startswith("/v1/"):
        kind = "invalid_request_error" if error.status < 500 else "server_error"
        value = {"error": {"message": message, "type": kind, "param": None, "code": error.code}}
    headers = dict(PLAIN)
    if error.retry_after is not None:
        headers["Retry-After"] = str(int(error.retry_after))
    if error.status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    return Response(
        orjson.dumps(value), error.status, headers=headers, media_type="application/json"
    )
