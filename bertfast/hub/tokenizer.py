"""A folder's tokenizer, and whether it fits the model beside it."""

from __future__ import annotations

from pathlib import Path

from tokenizers import Tokenizer
from tokenizers.decoders import WordPiece as WordPieceDecoder
from tokenizers.models import WordPiece
from tokenizers.normalizers import BertNormalizer
from tokenizers.pre_tokenizers import BertPreTokenizer
from tokenizers.processors import TemplateProcessing

from bertfast.config import EncoderConfig
from bertfast.errors import BertfastError

SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


def load_tokenizer(folder: str | Path) -> Tokenizer:
    """From ``tokenizer.json``, or from a BERT ``vocab.txt`` (lower-casing, unless the folder's tokenizer_config.json says otherwise).

    Raises:
        BertfastError: the folder has neither, or the file cannot be read.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise BertfastError(f"{folder}: no such folder; a tokenizer is a folder with tokenizer.json or vocab.txt")
    if (folder / "tokenizer.json").is_file():
        path = folder / "tokenizer.json"
        try:
            tokenizer = Tokenizer.from_file(str(path))
        except Exception as error:  # tokenizers raises bare Exceptions
            raise BertfastError(f"{path}: cannot be read as a tokenizer ({error})") from error
        tokenizer.no_padding()
        tokenizer.no_truncation()
        return tokenizer
    path = folder / "vocab.txt"
    if not path.is_file():
        raise BertfastError(f"{folder}: holds neither tokenizer.json nor vocab.txt")
    try:
        words = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise BertfastError(f"{path}: cannot be read as a vocabulary ({error})") from error
    words = words[:-1] if words and not words[-1] else words
    return wordpiece_tokenizer({word: index for index, word in enumerate(words)}, _lowercase(folder), str(path))


def _lowercase(folder: Path) -> bool:
    import json

    try:
        settings = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return True
    return bool(settings.get("do_lower_case", True)) if isinstance(settings, dict) else True


def wordpiece_tokenizer(vocabulary: dict[str, int], lowercase: bool, source: str = "vocabulary") -> Tokenizer:
    """BERT's tokenizer over this vocabulary. Devlin et al., section 3, and the released code's normalisation.

    Raises:
        BertfastError: a special token is missing.
    """
    missing = [token for token in SPECIAL_TOKENS if token not in vocabulary]
    if missing:
        raise BertfastError(
            f"{source}: has no {', '.join(missing)}; a BERT vocabulary holds {', '.join(SPECIAL_TOKENS)}"
        )
    tokenizer = Tokenizer(WordPiece(vocabulary, unk_token="[UNK]", max_input_chars_per_word=100))
    tokenizer.normalizer = BertNormalizer(lowercase=lowercase)
    tokenizer.pre_tokenizer = BertPreTokenizer()
    tokenizer.decoder = WordPieceDecoder(prefix="##")
    tokenizer.add_special_tokens(list(SPECIAL_TOKENS))
    tokenizer.post_processor = TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[(token, vocabulary[token]) for token in ("[CLS]", "[SEP]")],
    )
    return tokenizer


def check_tokenizer_fits(tokenizer: Tokenizer, config: EncoderConfig, source: str = "the tokenizer") -> None:
    """Raises BertfastError if the tokenizer can give an id that the model's word embeddings do not have."""
    largest = max(tokenizer.get_vocab(with_added_tokens=True).values(), default=-1)
    if largest >= config.vocab_size:
        raise BertfastError(
            f"{source} gives ids up to {largest} and the model has {config.vocab_size} word embeddings; "
            "use the tokenizer that the model was trained with"
        )
