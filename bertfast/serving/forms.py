"""The bodies of requests: OpenAI's, text-embeddings-inference's, the Hub's pipelines', and ours.

A field's description is what an error says is wanted, and what the OpenAPI page shows.
"""

from __future__ import annotations

from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from .limits import Refused

TOP = 100  # words for a mask at most
Ids = list[int]
Sequence_ = str | list[str]


class Form(BaseModel):
    """A JSON object; what it has beside these fields is passed over."""

    model_config = ConfigDict(strict=True, extra="ignore", protected_namespaces=())

    model: str | None = Field(
        None, description="the name of a model; by default the first that serves the request"
    )


class Truncating(Form):
    """A request whose inputs may be longer than the model takes."""

    truncate: bool | None = Field(
        None, description="true or false: whether inputs longer than the model takes are cut"
    )


INPUTS = "a text, a list of texts, a list of token ids, or a list of such lists"


class OpenAIEmbeddings(Form):
    """OpenAI's request for embeddings."""

    input: str | list[str] | Ids | list[Ids] = Field(description=INPUTS)
    encoding_format: Literal["float", "base64"] | None = Field(
        None, description='"float" or "base64", of little-endian float32'
    )
    dimensions: int | None = Field(
        None, description="how many numbers of a vector to keep, from 1 to its width"
    )
    user: str | None = Field(None, description="a text, which is passed over")


class Embed(Truncating):
    """text-embeddings-inference's request for embeddings."""

    inputs: str | list[str] | Ids | list[Ids] = Field(description=INPUTS)
    normalize: bool | None = Field(None, description="true or false; true by default")
    prompt_name: str | None = Field(None, description="the name of one of the model's prompts")
    dimensions: int | None = Field(
        None, description="how many numbers of a vector to keep, from 1 to its width"
    )


class EmbedSparse(Truncating):
    """text-embeddings-inference's request for sparse vectors."""

    inputs: str | list[str] = Field(description="a text or a list of texts")
    prompt_name: str | None = Field(None, description="the name of one of the model's prompts")


class Rerank(Truncating):
    """Texts to be ordered for a query."""

    query: str = Field(description="a text")
    texts: list[str] = Field(description="a list of texts")
    raw_scores: bool = Field(False, description="true or false: leave the sigmoid out")
    return_text: bool = Field(False, description="true or false: repeat each text")


class Predict(Truncating):
    """A text ("a"), a pair (["a", "b"]), or a list of lists of one or two ([["a"], ["a", "b"]])."""

    inputs: str | list[str] | list[list[str]] = Field(
        description="a text, a pair of texts, or a list of lists of one or two texts"
    )
    raw_scores: bool = Field(False, description="true or false: logits, not probabilities")


class Compared(BaseModel):
    """A text, and texts that it is compared with."""

    model_config = ConfigDict(strict=True, extra="ignore")

    source_sentence: str = Field(description="a text")
    sentences: list[str] = Field(description="a list of texts")


class SimilarityOptions(BaseModel):
    """Of a comparison."""

    model_config = ConfigDict(strict=True, extra="ignore")

    truncate: bool | None = Field(None, description="true or false")
    prompt_name: str | None = Field(None, description="the name of one of the model's prompts")


class Similarity(Form):
    """Cosines of a text with others."""

    inputs: Compared = Field(description="an object of source_sentence and sentences")
    parameters: SimilarityOptions | None = Field(None, description="an object")


class Tokenize(Form):
    """Texts to be split into tokens."""

    inputs: str | list[str] = Field(description="a text or a list of texts")
    add_special_tokens: bool = Field(True, description="true or false")


class Decode(Form):
    """Token ids to be joined to texts."""

    ids: Ids | list[Ids] = Field(description="a list of token ids, or a list of such lists")
    skip_special_tokens: bool = Field(True, description="true or false")


class Entities(Truncating):
    """Texts whose words are to be tagged."""

    inputs: str | list[str] = Field(description="a text or a list of texts")


class Asked(BaseModel):
    """A question about a context."""

    model_config = ConfigDict(strict=True, extra="ignore")

    question: str = Field(description="a text")
    context: str = Field(description="a text")


class Answers(Truncating):
    """Questions, each about a context."""

    inputs: Asked | list[Asked] = Field(
        description="an object of question and context, or a list of such objects"
    )


class Fill(Truncating):
    """Texts with [MASK] where a word is to go."""

    inputs: str | list[str] = Field(description="a text with [MASK], or a list of such texts")
    top: int = Field(5, ge=1, le=TOP, description=f"a whole number from 1 to {TOP}")


class Choose(Truncating):
    """Choices for a question, one of which is right."""

    text: str = Field(description="a text: the question, or what it is about")
    question: str = Field("", description="a text, where the question is another one")
    choices: list[str] = Field(
        min_length=2, max_length=100, description="a list of two to a hundred texts"
    )


class Explain(Truncating):
    """A text whose words' part in the model's answer is wanted."""

    inputs: str | list[str] = Field(description="a text, or a pair of texts in a list")


class Pipeline(Form):
    """What `huggingface_hub.InferenceClient` sends to a model: the inputs of the model's task."""

    inputs: Any = Field(
        description="a text or a list of texts; of question answering an object of question and "
        "context, of sentence similarity one of source_sentence and sentences"
    )
    parameters: dict[str, Any] | None = Field(None, description="an object of options")
    normalize: bool | None = Field(None, description="true or false")
    truncate: bool | None = Field(None, description="true or false")
    prompt_name: str | None = Field(None, description="the name of one of the model's prompts")


F = TypeVar("F", bound=BaseModel)


def read_form(form: type[F], body: bytes) -> F:
    """The form that a body holds.

    Raises:
        Refused: it is no JSON (400), or it is not what the form wants (422): the first field that
            is wrong is named.
    """
    try:
        return form.model_validate_json(body)
    except ValidationError as error:
        raise _refusal(form, error) from None


def check_form(form: type[F], values: Any) -> F:
    """Likewise of values that were read before."""
    try:
        return form.model_validate(values)
    except ValidationError as error:
        raise _refusal(form, error) from None


def _refusal(form: type[BaseModel], error: ValidationError) -> Refused:
    first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    if first["type"] == "json_invalid":
        return Refused(400, f"the body is no JSON: {first['msg'].partition(': ')[2]}")
    if not first["loc"]:
        return Refused(422, "the body must be a JSON object")
    names: list[str] = []
    wanted = ""
    at: Any = form
    for part in first["loc"]:
        fields = getattr(at, "model_fields", {})
        if not isinstance(part, str) or part not in fields:
            break
        names.append(part)
        wanted, at = fields[part].description or "", fields[part].annotation
    name = ".".join(names)
    if first["type"] == "missing" and len(names) == len(first["loc"]):
        return Refused(422, f"{name} is missing; it must be {wanted}")
    return Refused(422, f"{name} must be {wanted}")
