"""The members' tokenizers over a given vocabulary."""

from __future__ import annotations

from collections.abc import Sequence

from tokenizers import AddedToken, Tokenizer
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.decoders import WordPiece as WordPieceDecoder
from tokenizers.models import BPE, WordPiece
from tokenizers.normalizers import BertNormalizer
from tokenizers.pre_tokenizers import BertPreTokenizer, ByteLevel
from tokenizers.processors import RobertaProcessing, TemplateProcessing

from bertfast.errors import BertfastError

from .special import ROBERTA_TOKENS, SPECIAL_TOKENS


def wordpiece_tokenizer(
    vocabulary: dict[str, int],
    lowercase: bool,
    source: str = "vocabulary",
    names: Sequence[str] = SPECIAL_TOKENS,
    as_roberta: bool = False,
) -> Tokenizer:
    """BERT's tokenizer over this vocabulary, or MPNet's. Devlin et al., section 3, and the released
    code's normalisation.

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
            f"{source}: has no {', '.join(missing)}; its special tokens are to be "
            f"{', '.join(names)}"
        )
