"""A model card: the README.md beside a model, with the metadata that the Hugging Face Hub reads."""

from __future__ import annotations

from typing import Any

CARD_FILE = "README.md"


def model_card(metadata: dict[str, Any], body: str) -> str:
    """The text of a card.

    Args:
        metadata: fields of `huggingface_hub.ModelCardData`; ``library_name`` is transformers unless
            it says otherwise.
        body: Markdown.
    """
    from huggingface_hub import ModelCard, ModelCardData

    values = {"library_name": "transformers", **metadata}
    values["tags"] = ["bertfast", *values.get("tags", [])]
    header = ModelCardData(**values).to_yaml()
    return str(ModelCard(f"---\n{header}\n---\n\n{body}"))
