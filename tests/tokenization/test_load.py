"""A folder's tokenizer: from every kind of file, the same ids as `transformers`, and refused where
it does not fit.
"""

import importlib.util
import json
import shutil

import pytest
from tokenizers import AddedToken, Tokenizer
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import BPE
from tokenizers.normalizers import NFC
from tokenizers.pre_tokenizers import ByteLevel

from bertfast import BertConfig, BertfastError
from bertfast.tokenization import (
    SpecialIds,
    byte_level_bpe_tokenizer,
    check_tokenizer_fits,
    load_tokenizer,
    save_tokenizer,
    train_byte_level_bpe,
    train_wordpiece,
)
from bertfast.tokenization.build import bert_template
from support import SHARED_DATA, needs_shared_data

WORDS = [
    "[PAD]",
    "[UNK]",
    "[CLS]",
    "[SEP]",
    "[MASK]",
    "the",
    "cafe",
    "##s",
    "Cafe",
    "walk",
    "##ing",
    ".",
    "東",
    "京",
]
TEXT = "The Cafés walking . 東京 [MASK] zebra"
CORPUS = [
    "The quick brown fox jumps over the lazy dog.",
    "Café naïve — the fox's dens, 1,234!",
    "walk walks walking",
] * 20
HARD_TEXTS = (
    TEXT,
    "",
    "  ",
    " The  quick\tfox\n— CAFÉ cafe\u0301 ",
    "\uff21\uff22\uff23 \ufb01ne 😀 \u200b\u00a0x",
    "``quoted'' 1,234 dog.",
    "the [MASK] fox and <mask> fox<mask>",
    "[CLS] over </s>",
)


def folder_with(tmp_path, words=WORDS, **settings):
    (tmp_path / "vocab.txt").write_text("\n".join(words) + "\n", encoding="utf-8")
    if settings:
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    return tmp_path


def test_a_vocabulary_makes_berts_tokenizer(tmp_path):
    encoding = load_tokenizer(folder_with(tmp_path)).encode(TEXT, "walk")
    assert encoding.tokens == (
        [
            "[CLS]",
            "the",
            "cafe",
            "##s",
            "walk",
            "##ing",
            ".",
            "東",
            "京",
            "[MASK]",
            "[UNK]",
            "[SEP]",
            "walk",
            "[SEP]",
        ]
    )
    assert encoding.type_ids == [0] * 12 + [1] * 2
    assert encoding.ids == [WORDS.index(token) for token in encoding.tokens]


def test_a_cased_vocabulary_keeps_its_case(tmp_path):
    tokenizer = load_tokenizer(folder_with(tmp_path, do_lower_case=False))
    assert tokenizer.encode("Cafe cafe", add_special_tokens=False).tokens == ["Cafe", "cafe"]


@pytest.mark.parametrize("lowercase", [True, False], ids=["uncased", "cased"])
def test_ids_equal_those_of_transformers(tmp_path, lowercase):
    transformers = pytest.importorskip(
        "transformers", reason="transformers is an extra: pip install 'bertfast[hf]'"
    )
    folder = folder_with(tmp_path, do_lower_case=lowercase, tokenizer_class="BertTokenizer")
    theirs = transformers.BertTokenizerFast.from_pretrained(folder)
    ours = load_tokenizer(folder)
    for text in (TEXT, "", "  ", "walking" * 30, "Cafe\tcafés\u00a0the."):
        assert ours.encode(text).ids == theirs(text)["input_ids"]


def test_a_tokenizer_file_comes_first_and_neither_pads_nor_truncates(tmp_path):
    tokenizer = load_tokenizer(folder_with(tmp_path))
    tokenizer.enable_padding(length=50)
    tokenizer.enable_truncation(3)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "vocab.txt").write_text("not read")
    assert len(load_tokenizer(tmp_path).encode("the the the the").ids) == 6


@pytest.mark.parametrize("content", [b"", b"{", b"{}", b"\xff\xfe\x00", b"[1, 2]"])
def test_a_broken_tokenizer_file_is_one_line(tmp_path, content):
    (tmp_path / "tokenizer.json").write_bytes(content)
    with pytest.raises(BertfastError, match=r"tokenizer\.json") as caught:
        load_tokenizer(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\xff\xfe\x00", "is not UTF-8"),
        (b"the\ncafe\n", r"has no \[PAD\]"),
        (b"", r"has no \[PAD\]"),
    ],
)
def test_a_broken_vocabulary_is_one_line(tmp_path, content, message):
    (tmp_path / "vocab.txt").write_bytes(content)
    with pytest.raises(BertfastError, match=message):
        load_tokenizer(tmp_path)


def test_a_folder_without_a_tokenizer_is_refused(tmp_path):
    with pytest.raises(BertfastError, match=r"neither tokenizer\.json nor vocab\.txt"):
        load_tokenizer(tmp_path)
    with pytest.raises(BertfastError, match="no such folder"):
        load_tokenizer(tmp_path / "nowhere")


def test_a_tokenizer_beyond_the_models_vocabulary_does_not_fit(tmp_path):
    tokenizer = load_tokenizer(folder_with(tmp_path))
    check_tokenizer_fits(tokenizer, BertConfig(vocab_size=len(WORDS)))
    with pytest.raises(BertfastError, match="ids up to 13 and the model has 13 word embeddings"):
        check_tokenizer_fits(tokenizer, BertConfig(vocab_size=len(WORDS) - 1))
    tokenizer.add_tokens(["[NEW]"])
    with pytest.raises(BertfastError, match="ids up to 14"):
        check_tokenizer_fits(tokenizer, BertConfig(vocab_size=len(WORDS)))


def assert_alike(folder, **options):
    """Every id and segment equal to what `transformers` gives for the folder, and the special
    tokens.
    """
    transformers = pytest.importorskip(
        "transformers", reason="transformers is an extra: pip install 'bertfast[hf]'"
    )
    theirs = transformers.AutoTokenizer.from_pretrained(folder, **options)
    ours = load_tokenizer(folder)
    for text in HARD_TEXTS:
        assert ours.encode(text).ids == theirs(text)["input_ids"]
        pair = theirs(text, "a walk", return_token_type_ids=True)
        assert ours.encode(text, "a walk").ids == pair["input_ids"]
        assert ours.encode(text, "a walk").type_ids == pair["token_type_ids"]
    special = SpecialIds(ours, folder)
    for name in ("pad", "unk", "cls", "sep", "mask"):
        assert getattr(special, name) == getattr(theirs, f"{name}_token_id")
    return theirs


@pytest.mark.parametrize(
    "name", ["BertTokenizer", "BertTokenizerFast", "DistilBertTokenizer", "ElectraTokenizer"]
)
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"do_lower_case": False},
        {"do_lower_case": False, "strip_accents": True},
        {"tokenize_chinese_chars": False},
    ],
    ids=["uncased", "cased", "stripped", "chinese"],
)
@pytest.mark.parametrize("saved", [False, True], ids=["vocabulary", "saved"])
def test_the_wordpiece_members_ids_equal_those_of_transformers(tmp_path, name, settings, saved):
    words = [
        *WORDS,
        *(prefix + letter for prefix in ("", "##") for letter in "abcdefghijklmnopqrstuvwxyzéÉ"),
    ]
    folder = folder_with(tmp_path, words, tokenizer_class=name, **settings)
    if saved:
        transformers = pytest.importorskip("transformers", reason="transformers is an extra")
        getattr(transformers, name).from_pretrained(folder, **settings).save_pretrained(
            folder / "saved"
        )
        folder = folder / "saved"
    assert_alike(folder)


@pytest.mark.parametrize("add_prefix_space", [False, True])
@pytest.mark.parametrize("saved", [False, True], ids=["vocabulary", "saved"])
def test_robertas_ids_equal_those_of_transformers(tmp_path, add_prefix_space, saved):
    transformers = pytest.importorskip("transformers", reason="transformers is an extra")
    mask = {
        "__type": "AddedToken",
        "content": "<mask>",
        "lstrip": True,
        "rstrip": False,
        "single_word": False,
    }
    settings = {"tokenizer_class": "RobertaTokenizer", "add_prefix_space": add_prefix_space}
    save_tokenizer(train_byte_level_bpe(CORPUS, 330), tmp_path)
    for name in ("tokenizer.json", "special_tokens_map.json"):
        (tmp_path / name).unlink()
    (tmp_path / "tokenizer_config.json").write_text(
        json.dumps({**settings, "mask_token": {**mask, "normalized": False}})
    )
    if saved:
        transformers.RobertaTokenizer.from_pretrained(tmp_path).save_pretrained(tmp_path / "saved")
    theirs = assert_alike(tmp_path / "saved" if saved else tmp_path)
    assert theirs("a", "b")["input_ids"][0] == theirs.bos_token_id


@needs_shared_data
def test_the_published_robertas_ids_equal_those_of_transformers(tmp_path):
    shutil.copy(SHARED_DATA / "vocab_roberta" / "roberta-base-vocab.json", tmp_path / "vocab.json")
    shutil.copy(SHARED_DATA / "vocab_roberta" / "vocab.bpe", tmp_path / "merges.txt")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "roberta"}))
    tokenizer = load_tokenizer(tmp_path)
    # As fairseq's examples/roberta/README.md shows them.
    assert tokenizer.encode("Hello world!").ids == [0, 31414, 232, 328, 2]
    transformers = pytest.importorskip("transformers", reason="transformers is an extra")
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    for text in (text for text in HARD_TEXTS if "<mask>" not in text):
        assert tokenizer.encode(text, "a walk").ids == theirs(text, "a walk")["input_ids"]


@needs_shared_data
@pytest.mark.parametrize("name", ["bert", "distilbert", "electra"])
def test_the_published_berts_ids_equal_those_of_transformers(tmp_path, name):
    shutil.copy(SHARED_DATA / "vocab_bert" / "vocab.txt", tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": name}))
    assert_alike(tmp_path)


def test_modernberts_ids_equal_those_of_transformers(tmp_path):
    # Byte-level BPE after NFC, framed as BERT's, its special tokens after the words: a class of its
    # own was never made for it.
    trained = json.loads(train_byte_level_bpe(CORPUS, 330).to_str())["model"]
    vocabulary = {
        token: index
        for index, token in enumerate(token for token in trained["vocab"] if token[0] != "<")
    }
    tokenizer = Tokenizer(BPE(vocabulary, [tuple(pair) for pair in trained["merges"]]))
    tokenizer.normalizer, tokenizer.pre_tokenizer = NFC(), ByteLevel(add_prefix_space=False)
    tokenizer.decoder = ByteLevelDecoder()
    tokenizer.add_special_tokens(
        ["[UNK]", "[CLS]", "[SEP]", "[PAD]", AddedToken("[MASK]", lstrip=True)]
    )
    tokenizer.post_processor = bert_template("[CLS]", "[SEP]", tokenizer.get_vocab())
    names = {
        f"{token}_token": f"[{token.upper()}]" for token in ("unk", "cls", "sep", "pad", "mask")
    }
    inputs = ["input_ids", "attention_mask"]
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "model_input_names": inputs, **names}
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "modernbert"}))
    assert_alike(tmp_path)
    save_tokenizer(load_tokenizer(tmp_path), tmp_path / "again", segments=False)
    assert set(assert_alike(tmp_path / "again")("a")) == set(inputs)


MPNET_WORDS = ["<s>", "<pad>", "</s>", "<unk>", *WORDS, "##<", "<", "mask", "<mask>"]


@pytest.mark.parametrize(
    "settings",
    [
        None,
        {"tokenizer_class": "MPNetTokenizer"},
        {"tokenizer_class": "MPNetTokenizerFast", "do_lower_case": False},
        {"tokenizer_class": "MPNetTokenizer", "tokenize_chinese_chars": False},
    ],
    ids=["by-its-config", "uncased", "cased", "chinese"],
)
@pytest.mark.parametrize("saved", ["vocabulary", "saved", "by us"])
def test_mpnets_ids_equal_those_of_transformers(tmp_path, settings, saved):
    transformers = pytest.importorskip("transformers", reason="transformers is an extra")
    words = [*MPNET_WORDS, *(a + b for a in ("", "##") for b in "abcdefghijklmnopqrstuvwxyzéÉ")]
    folder = folder_with(tmp_path, words, **(settings or {}))
    (folder / "config.json").write_text(json.dumps({"model_type": "mpnet"}))
    if saved == "saved":
        transformers.AutoTokenizer.from_pretrained(folder).save_pretrained(folder / "again")
    elif saved == "by us":
        special = SpecialIds(load_tokenizer(folder), folder)
        save_tokenizer(load_tokenizer(folder), folder / "again", special=special, segments=False)
    theirs = assert_alike(folder / "again" if saved != "vocabulary" else folder)
    assert theirs("a", "b")["input_ids"] == [0, words.index("a"), 2, 2, words.index("b"), 2]


def test_a_trained_mpnet_tokenizer_is_read_by_transformers(tmp_path):
    trained = train_wordpiece(CORPUS, 80, mpnet=True)
    names = ["<s>", "<pad>", "</s>", "[UNK]", "<mask>"]
    assert [trained.id_to_token(index) for index in range(5)] == names
    save_tokenizer(trained, tmp_path, segments=False)
    assert type(assert_alike(tmp_path)).__name__.startswith("MPNetTokenizer")


SENTENCEPIECE = {
    "albert": (
        "spiece.model",
        {
            "pad_id": 0,
            "unk_id": 1,
            "bos_id": -1,
            "eos_id": -1,
            "control_symbols": "[CLS],[SEP]",
            "user_defined_symbols": "[MASK]",
        },
    ),
    "deberta-v2": (
        "spm.model",
        {
            "pad_id": 0,
            "bos_id": 1,
            "eos_id": 2,
            "unk_id": 3,
            "pad_piece": "[PAD]",
            "bos_piece": "[CLS]",
            "eos_piece": "[SEP]",
            "unk_piece": "[UNK]",
        },
    ),
    "xlm-roberta": ("sentencepiece.bpe.model", {}),
    "camembert": ("sentencepiece.bpe.model", {}),
}


@pytest.fixture(scope="module", params=SENTENCEPIECE)
def sentencepiece_folder(request, tmp_path_factory):
    sentencepiece = pytest.importorskip(
        "sentencepiece", reason="SentencePiece is an extra: pip install 'bertfast[hf]'"
    )
    folder = tmp_path_factory.mktemp(request.param)
    name, options = SENTENCEPIECE[request.param]
    (folder / "corpus.txt").write_text("\n".join(CORPUS))
    sentencepiece.SentencePieceTrainer.train(
        input=str(folder / "corpus.txt"),
        model_prefix=str(folder / "model"),
        vocab_size=80,
        hard_vocab_limit=False,
        minloglevel=2,
        **options,
    )
    (folder / "model.model").rename(folder / name)
    (folder / "config.json").write_text(json.dumps({"model_type": request.param}))
    return folder


def test_a_sentencepiece_models_ids_equal_those_of_transformers(sentencepiece_folder, tmp_path):
    assert_alike(sentencepiece_folder)
    ours = load_tokenizer(sentencepiece_folder)
    save_tokenizer(ours, tmp_path / "saved")
    again = load_tokenizer(tmp_path / "saved")
    assert [again.encode(text).ids for text in HARD_TEXTS] == [
        ours.encode(text).ids for text in HARD_TEXTS
    ]
    assert_alike(tmp_path / "saved")


def test_a_sentencepiece_folder_that_transformers_saved_reads_alike(sentencepiece_folder, tmp_path):
    transformers = pytest.importorskip("transformers", reason="transformers is an extra")
    transformers.AutoTokenizer.from_pretrained(sentencepiece_folder).save_pretrained(tmp_path)
    assert_alike(tmp_path)


def test_a_sentencepiece_model_needs_the_extra_and_says_so(tmp_path, monkeypatch):
    (tmp_path / "spm.model").write_bytes(b"")
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "sentencepiece" else found(name)
    )
    with pytest.raises(
        BertfastError, match=r"sentencepiece is not installed: pip install 'bertfast\[hf\]'"
    ):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize("name", ["spm.model", "spiece.model", "sentencepiece.bpe.model"])
def test_a_broken_sentencepiece_model_is_one_line(tmp_path, name):
    pytest.importorskip(
        "sentencepiece", reason="SentencePiece is an extra: pip install 'bertfast[hf]'"
    )
    (tmp_path / name).write_bytes(b"\x00\xffnothing")
    with pytest.raises(BertfastError, match="cannot be read as the SentencePiece model") as caught:
        load_tokenizer(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("vocabulary", "merges", "message"),
    [
        ("{", "", "cannot be read as a BPE"),
        ('{"a": 0}', "", r"has no <pad>, <unk>, <s>, </s>, <mask>"),
        ('{"a": 0}', None, r"without merges\.txt"),
        ('{"a": 0}', "a b c", "cannot be read as a BPE"),
    ],
)
def test_a_broken_bpe_is_one_line(tmp_path, vocabulary, merges, message):
    (tmp_path / "vocab.json").write_text(vocabulary)
    if merges is not None:
        (tmp_path / "merges.txt").write_text(merges)
    with pytest.raises(BertfastError, match=message):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize(
    "settings",
    [
        {"strip_accents": "yes"},
        {"added_tokens_decoder": {"a": {"content": "b"}}},
        {"added_tokens_decoder": {"0": "b"}},
        {"added_tokens_decoder": {"14": {}}},
    ],
)
def test_a_setting_that_cannot_be_used_is_one_line(tmp_path, settings):
    with pytest.raises(BertfastError, match=r"tokenizer_config\.json"):
        load_tokenizer(folder_with(tmp_path, **settings))


def test_the_folders_settings_override_its_tokenizer_file(tmp_path):
    pytest.importorskip("transformers", reason="transformers is an extra")
    save_tokenizer(train_wordpiece(CORPUS, 150), tmp_path)
    settings = json.loads((tmp_path / "tokenizer_config.json").read_text())
    (tmp_path / "tokenizer_config.json").write_text(
        json.dumps({**settings, "do_lower_case": False})
    )
    assert_alike(tmp_path)
    assert "[UNK]" in load_tokenizer(tmp_path).encode("The").tokens


def test_tokens_added_beyond_the_vocabulary_are_read(tmp_path):
    token = {
        "content": "<new>",
        "lstrip": True,
        "rstrip": False,
        "single_word": False,
        "normalized": False,
        "special": True,
    }
    folder = folder_with(
        tmp_path, tokenizer_class="BertTokenizer", added_tokens_decoder={str(len(WORDS)): token}
    )
    assert load_tokenizer(folder).encode("the <new>", add_special_tokens=False).ids == [
        5,
        len(WORDS),
    ]


def test_the_mask_takes_up_the_space_before_it():
    # In RoBERTa a word holds that space, and the mask stands for a word.
    tokenizer = byte_level_bpe_tokenizer(
        {
            token: index
            for index, token in enumerate(["<s>", "<pad>", "</s>", "<unk>", "<mask>", "a", "Ġ"])
        },
        [],
    )
    assert tokenizer.encode("a <mask> a").ids == [0, 5, 4, 6, 5, 2]


@pytest.mark.parametrize(
    ("pad", "said"), [(0, False), (None, False), (2, False), (5, True), (20, False)]
)
def test_a_word_with_the_models_padding_id_is_said(tmp_path, capsys, pad, said):
    # 2 is [CLS]: the multilingual MiniLMs have that; 20 is beyond the tokenizer.
    check_tokenizer_fits(
        load_tokenizer(folder_with(tmp_path)), BertConfig(vocab_size=30, pad_token_id=pad)
    )
    assert ("'the'" in capsys.readouterr().err) == said
