"""A folder's tokenizer, its special tokens, and whether it fits the model beside it."""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.decoders import WordPiece as WordPieceDecoder
from tokenizers.models import BPE, WordPiece
from tokenizers.normalizers import BertNormalizer
from tokenizers.pre_tokenizers import BertPreTokenizer, ByteLevel
from tokenizers.processors import RobertaProcessing, TemplateProcessing

from bertfast.config import EncoderConfig
from bertfast.errors import BertfastError
from bertfast.files import VOCABULARY, check_file, read_object, read_text
from bertfast.model.family import FAMILY

from .patterns import check_patterns

# Hugging Face's names; special tokens come in this order throughout.
ROLES = ("pad_token", "unk_token", "cls_token", "sep_token", "mask_token")
SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
ROBERTA_TOKENS = ("<pad>", "<unk>", "<s>", "</s>", "<mask>")
MPNET_TOKENS = ("<pad>", "[UNK]", "<s>", "</s>", "<mask>")
# Of WordPiece's classes: the special tokens, where a folder names none.
WORDPIECE_TOKENS = {"MPNetTokenizer": MPNET_TOKENS}
# A SentencePiece model does not say how its tokenizer cleans and frames text: the class that the
# file is named for does.
SENTENCEPIECE_FILES = {
    "spiece.model": "AlbertTokenizer",
    "spm.model": "DebertaV2Tokenizer",
    "sentencepiece.bpe.model": "XLMRobertaTokenizer",
}
SENTENCEPIECE_CLASSES = (*SENTENCEPIECE_FILES.values(), "CamembertTokenizer")
# What a folder's tokenizer_config.json overrides in its tokenizer.json, as in `transformers`.
BERT_SETTINGS = {
    "do_lower_case": "lowercase",
    "strip_accents": "strip_accents",
    "tokenize_chinese_chars": "handle_chinese_chars",
}


def load_tokenizer(folder: str | Path) -> Tokenizer:
    """The tokenizer of any member's folder, the same ids as `transformers`.

    From ``tokenizer.json``; or else BERT's ``vocab.txt`` (lower-casing, unless the folder's
    tokenizer_config.json says otherwise), RoBERTa's ``vocab.json`` and ``merges.txt``, or a
    SentencePiece model, which is read through `transformers`.

    Raises:
        BertfastError: the folder has none of these, the file cannot be read, or it is a
            SentencePiece model and the extra is not installed.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise BertfastError(
            f"{folder}: no such folder; a tokenizer is a folder with tokenizer.json or vocab.txt"
        )
    settings = _settings(folder)
    try:
        tokenizer = _read(folder, settings, special_names(folder))
        _add_tokens(tokenizer, settings)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise BertfastError(
            f"{folder}: its tokenizer_config.json has a setting that cannot be used ({error})"
        ) from error
    tokenizer.no_padding()
    tokenizer.no_truncation()
    check_patterns(tokenizer, folder)
    return tokenizer


def _read(folder: Path, settings: dict[str, Any], names: dict[str, str]) -> Tokenizer:
    """From the first kind of file that the folder has."""
    if os.path.lexists(folder / "tokenizer.json"):
        return _read_tokenizer_json(folder / "tokenizer.json", settings)
    if os.path.lexists(folder / "vocab.txt"):
        return _read_wordpiece(folder / "vocab.txt", settings, names, tokenizer_class(folder))
    if os.path.lexists(folder / "vocab.json"):
        return _read_byte_level_bpe(folder, settings, names)
    for name in SENTENCEPIECE_FILES:
        if os.path.lexists(folder / name):
            return _read_sentencepiece(folder / name, tokenizer_class(folder))
    raise BertfastError(
        f"{folder}: holds neither tokenizer.json nor vocab.txt, vocab.json or a SentencePiece model "
        f"({', '.join(SENTENCEPIECE_FILES)})"
    )


def special_names(folder: str | Path) -> dict[str, str]:
    """Role (``mask_token`` and the like) to token, as far as tokenizer_config.json,
    special_tokens_map.json and the tokenizer's class say.
    """
    folder = Path(folder)
    defaults = WORDPIECE_TOKENS.get(tokenizer_class(folder) or "", ())
    said = {
        **dict(zip(ROLES, defaults, strict=False)),
        **read_object(folder / "special_tokens_map.json", optional=True),
        **_settings(folder),
    }
    contents = {
        role: value.get("content") if isinstance(value, dict) else value
        for role, value in said.items()
        if role in ROLES
    }
    return {role: content for role, content in contents.items() if isinstance(content, str)}


def special_tokens(tokenizer: Tokenizer, folder: str | Path | None = None) -> dict[str, int | None]:
    """Role to id, None where there is no such token: by the folder's names, or else by the
    spellings of BERT and RoBERTa.
    """
    named = special_names(folder) if folder is not None else {}
    found = {}
    for role, *spellings in zip(ROLES, SPECIAL_TOKENS, ROBERTA_TOKENS, strict=True):
        ids = [
            tokenizer.token_to_id(token)
            for token in (named.get(role), *spellings)
            if token is not None
        ]
        found[role] = next((index for index in ids if index is not None), None)
    return found


def _settings(folder: Path) -> dict[str, Any]:
    return read_object(folder / "tokenizer_config.json", optional=True)


def _tokenizer_class(settings: dict[str, Any]) -> str | None:
    name = settings.get("tokenizer_class")
    return name.removesuffix("Fast") if isinstance(name, str) else None


def tokenizer_class(folder: Path) -> str | None:
    """The class that a folder's tokenizer_config.json names, or else that of the member which its
    config.json names; None where neither does.
    """
    kind = read_object(folder / "config.json", optional=True).get("model_type")
    member = FAMILY.get(kind) if isinstance(kind, str) else None
    return _tokenizer_class(_settings(folder)) or (member.tokenizer if member else None)


def _read_tokenizer_json(path: Path, settings: dict[str, Any]) -> Tokenizer:
    text = read_text(path, VOCABULARY)
    try:
        tokenizer = Tokenizer.from_str(text)
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # tokenizers raises bare Exceptions, and panics that are none
        raise BertfastError(f"{path}: cannot be read as a tokenizer ({error})") from error
    if _tokenizer_class(settings) not in ("PreTrainedTokenizer", "TokenizersBackend"):
        if isinstance(tokenizer.normalizer, BertNormalizer):
            for setting, attribute in BERT_SETTINGS.items():
                if setting in settings:
                    setattr(tokenizer.normalizer, attribute, settings[setting])
        if isinstance(tokenizer.pre_tokenizer, ByteLevel) and "add_prefix_space" in settings:
            tokenizer.pre_tokenizer.add_prefix_space = bool(settings["add_prefix_space"])
    return tokenizer


def _read_wordpiece(
    path: Path, settings: dict[str, Any], names: dict[str, str], kind: str | None
) -> Tokenizer:
    words = read_text(path, VOCABULARY).split("\n")
    words = words[:-1] if words and not words[-1] else words
    tokenizer = wordpiece_tokenizer(
        {word: index for index, word in enumerate(words)},
        bool(settings.get("do_lower_case", True)),
        str(path),
        tuple(names.get(role, token) for role, token in zip(ROLES, SPECIAL_TOKENS, strict=True)),
        as_roberta=kind in WORDPIECE_TOKENS,
    )
    tokenizer.normalizer.strip_accents = settings.get("strip_accents")
    tokenizer.normalizer.handle_chinese_chars = bool(settings.get("tokenize_chinese_chars", True))
    return tokenizer


def _read_byte_level_bpe(
    folder: Path, settings: dict[str, Any], names: dict[str, str]
) -> Tokenizer:
    vocabulary, merges = folder / "vocab.json", folder / "merges.txt"
    if not os.path.lexists(merges):
        raise BertfastError(
            f"{folder}: holds vocab.json without merges.txt; a byte-level BPE is both"
        )
    for path in (vocabulary, merges):
        _check_size(path)
    try:
        words, pairs = BPE.read_file(str(vocabulary), str(merges))
        return byte_level_bpe_tokenizer(
            words,
            pairs,
            str(vocabulary),
            tuple(
                names.get(role, token) for role, token in zip(ROLES, ROBERTA_TOKENS, strict=True)
            ),
            bool(settings.get("add_prefix_space", False)),
        )
    except BertfastError:
        raise
    except Exception as error:  # tokenizers raises bare Exceptions
        raise BertfastError(
            f"{folder}: vocab.json and merges.txt cannot be read as a BPE ({error})"
        ) from error


def _read_sentencepiece(path: Path, kind: str | None) -> Tokenizer:
    missing = [
        name
        for name in ("transformers", "sentencepiece", "google.protobuf")
        if not _installed(name)
    ]
    if missing:
        raise BertfastError(
            f"{path}: a SentencePiece model is read through transformers, and {', '.join(missing)} "
            "is not installed: pip install 'bertfast[hf]'"
        )
    import transformers

    _check_size(path)
    for file in path.parent.iterdir():  # any of which transformers may open
        if not file.is_dir() and file.suffix in (".json", ".model", ".jinja", ".txt"):
            _check_size(file)
    name = kind if kind in SENTENCEPIECE_CLASSES else SENTENCEPIECE_FILES[path.name]
    try:
        # 4.x converts in the class whose name ends in Fast; to 5.x the two names are one class.
        loaded = getattr(transformers, f"{name}Fast").from_pretrained(
            str(path.parent), local_files_only=True
        )
    except Exception as error:  # of the converter, of protobuf or of tokenizers
        reason = " ".join(str(error).split())[:200]
        raise BertfastError(
            f"{path}: cannot be read as the SentencePiece model of a {name} ({reason})"
        ) from error
    return loaded.backend_tokenizer


def _check_size(path: Path) -> None:
    size = check_file(path)
    if size > VOCABULARY:
        raise BertfastError(
            f"{path}: has {size:,} bytes; a file of this kind has at most {VOCABULARY:,}"
        )


def _installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # of a package around it
        return False


def _add_tokens(tokenizer: Tokenizer, settings: dict[str, Any]) -> None:
    """Adds the tokens that tokenizer_config.json lists beyond the vocabulary, where the ids come
    out as it says.
    """
    listed = settings.get("added_tokens_decoder")
    for index, token in (
        sorted(listed.items(), key=lambda item: int(item[0])) if isinstance(listed, dict) else ()
    ):
        if (
            tokenizer.token_to_id(token["content"]) is None
            and int(index) == tokenizer.get_vocab_size()
        ):
            flags = {
                name: bool(token.get(name))
                for name in ("single_word", "lstrip", "rstrip", "normalized", "special")
            }
            tokenizer.add_tokens([AddedToken(token["content"], **flags)])


def wordpiece_tokenizer(
    vocabulary: dict[str, int],
    lowercase: bool,
    source: str = "vocabulary",
    names: Sequence[str] = SPECIAL_TOKENS,
    as_roberta: bool = False,
) -> Tokenizer:
    """BERT's tokenizer over this vocabulary, or MPNet's. Devlin et al., section 3, and the released code's
    normalisation.

    Args:
        vocabulary: token to id.
        lowercase: lower case, and take accents away.
        source: for messages.
        names: of the special tokens, in the order of `ROLES`.
        as_roberta: frame sequences as RoBERTa does, of one segment, and have the mask take up the
            space before it: MPNet's way.

    Raises:
        BertfastError: a special token is missing.
    """
    _require(names, vocabulary, source)
    *others, mask = names
    _, unk, cls, sep = others
    tokenizer = Tokenizer(WordPiece(vocabulary, unk_token=unk, max_input_chars_per_word=100))
    tokenizer.normalizer = BertNormalizer(lowercase=lowercase)
    tokenizer.pre_tokenizer = BertPreTokenizer()
    tokenizer.decoder = WordPieceDecoder(prefix="##")
    if as_roberta:
        tokenizer.add_special_tokens([*others, AddedToken(mask, lstrip=True, normalized=False)])
        tokenizer.post_processor = RobertaProcessing(
            (sep, vocabulary[sep]), (cls, vocabulary[cls]), add_prefix_space=False
        )
    else:
        tokenizer.add_special_tokens(list(names))
        tokenizer.post_processor = bert_template(cls, sep, vocabulary)
    return tokenizer


def bert_template(cls: str, sep: str, vocabulary: dict[str, int]) -> TemplateProcessing:
    """[CLS] A [SEP] with segment 0 throughout, [CLS] A [SEP] B [SEP] with segment 1 from B on."""
    return TemplateProcessing(
        single=[cls, "$A", sep],
        pair=[cls, "$A", sep, "$B:1", f"{sep}:1"],
        special_tokens=[(token, vocabulary[token]) for token in (cls, sep)],
    )


def byte_level_bpe_tokenizer(
    vocabulary: dict[str, int],
    merges: Sequence[tuple[str, str]],
    source: str = "vocabulary",
    names: Sequence[str] = ROBERTA_TOKENS,
    add_prefix_space: bool = False,
) -> Tokenizer:
    """RoBERTa's tokenizer over this vocabulary: <s> A </s></s> B </s>, one segment. Liu et al.,
    section 4.4; Radford et al., "GPT-2", section 2.2.

    Args:
        vocabulary: token to id.
        merges: pairs of tokens, the first to be merged first.
        source: for messages.
        names: of the special tokens, in the order of `ROLES`.
        add_prefix_space: treat the first word as one after a space.

    Raises:
        BertfastError: a special token is missing.
    """
    _require(names, vocabulary, source)
    *others, mask = names
    _, _, cls, sep = others
    tokenizer = Tokenizer(BPE(vocabulary, list(merges)))
    tokenizer.pre_tokenizer = ByteLevel(add_prefix_space=add_prefix_space)
    tokenizer.decoder = ByteLevelDecoder()
    # A word holds the space before it, so the mask, which stands for a word, takes that space up.
    tokenizer.add_special_tokens(
        [*others, AddedToken(mask, lstrip=True, normalized=False, special=True)]
    )
    tokenizer.post_processor = RobertaProcessing(
        (sep, vocabulary[sep]), (cls, vocabulary[cls]), add_prefix_space=add_prefix_space
    )
    return tokenizer


def _require(names: Sequence[str], vocabulary: dict[str, int], source: str) -> None:
    missing = [token for token in names if token not in vocabulary]
    if missing:
        raise BertfastError(
            f"{source}: has no {', '.join(missing)}; its special tokens are to be {', '.join(names)}"
        )


def check_tokenizer_fits(
    tokenizer: Tokenizer, config: EncoderConfig, source: str = "the tokenizer"
) -> None:
    """Raises BertfastError if the tokenizer can give an id that the model's word embeddings do not
    have.

    Says on standard error if a word of the tokenizer has the id that the model keeps for padding:
    that row is not trained, and a RoBERTa in `transformers` counts no position there. It is no
    error, since such a checkpoint still gives the numbers that it gives. Another special token may
    have that id, as in the published multilingual MiniLMs.
    """
    largest = max(tokenizer.get_vocab(with_added_tokens=True).values(), default=-1)
    if largest >= config.vocab_size:
        raise BertfastError(
            f"{source} gives ids up to {largest} and the model has {config.vocab_size} word embeddings; "
            "use the tokenizer that the model was trained with"
        )
    word = tokenizer.id_to_token(config.pad_token_id) if config.pad_token_id is not None else None
    added = tokenizer.get_added_tokens_decoder()
    if (
        word is not None
        and config.pad_token_id not in added
        and word not in (*SPECIAL_TOKENS, *ROBERTA_TOKENS)
    ):
        print(
            f"bertfast: {source} gives {word!r} the id {config.pad_token_id}, which the model keeps for padding "
            "(pad_token_id); is it the model's own tokenizer?",
            file=sys.stderr,
        )
