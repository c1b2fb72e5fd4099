"""Prepared stores are trained on alone and together, by weight, from any step on; a shard that is
missing or damaged is said.
"""

import shutil
from itertools import islice, pairwise

import numpy as np
import pytest
import torch
from data.test_packing import SPECIAL, VOCAB, batches, make_store, same

from bertfast import BertfastError
from bertfast.data import shards as module
from bertfast.data.mixture import Growth, Mixture, one_batch, sources_of
from bertfast.data.packing import Batches
from bertfast.data.shards import MANIFEST, ShardedStore, describe, write_shard
from bertfast.tokenization import train_wordpiece

TOKENIZER = train_wordpiece(["fox den"], 30)
OPTIONS = {"seq_len": 32, "batch_tokens": 128, "seed": 3, "objective": "mlm"}


def write_store(folder, stores):
    folder.mkdir()
    shards = [
        write_shard(folder / f"shard-{n}", store.ids, store.sentences, store.documents)
        for n, store in enumerate(stores)
    ]
    (folder / MANIFEST).write_text(describe(TOKENIZER, shards))
    return folder


@pytest.fixture
def store(tmp_path, monkeypatch):
    """Five shards, of which about two are shuffled together."""
    stores = [make_store(30, seed) for seed in range(5)]
    monkeypatch.setattr(module, "MIXED_TOKENS", 2 * max(one.num_tokens for one in stores))
    return ShardedStore(str(write_store(tmp_path / "store", stores)))


def run_of(store, **options):
    return Batches(store, SPECIAL, VOCAB, **{**OPTIONS, **options})


def tokens_of(batch):
    ids = batch.input_ids.clone()
    ids[batch.masked_positions] = batch.masked_labels
    return sorted(ids[ids >= 5].tolist())


def test_a_store_of_one_shard_gives_the_batches_of_its_text(tmp_path):
    one = ShardedStore(str(write_store(tmp_path / "store", [make_store()])))
    for objective in ("mlm", "mlm+nsp"):
        made, wanted = run_of(one, objective=objective), batches(objective=objective)
        for (epoch, batch), (other, same_batch) in islice(
            zip(made.iterate(5), wanted.iterate(5), strict=True), 30
        ):
            assert epoch == other
            assert same(batch, same_batch)


@pytest.mark.parametrize("masking", ["dynamic", "static"])
def test_an_epoch_of_shards_has_every_token_once_and_any_start_goes_on(store, masking):
    assert 1 < len(list(store.windows(range(5)))) < 5
    whole = list(islice(run_of(store, masking=masking).iterate(), 120))
    wanted = sorted(store.load(store.shards).ids[np.arange(store.num_tokens)].tolist())
    for epoch in (0, 1):
        found = [token for e, batch in whole if e == epoch for token in tokens_of(batch)]
        assert sorted(found) == wanted
    for start in (0, 23, 99):
        epoch, batch = next(run_of(store, masking=masking).iterate(start))
        assert epoch == whole[start][0]
        assert same(batch, whole[start][1])


def test_static_masking_hides_the_same_in_every_epoch(store):
    seen: dict[int, set] = {}
    for epoch, batch in run_of(store, masking="static").iterate():
        if epoch == 2:
            break
        bounds = batch.cu_seqlens.tolist()
        seen.setdefault(epoch, set()).update(
            tuple(batch.input_ids[a:b].tolist()) for a, b in pairwise(bounds)
        )
    assert seen[0] == seen[1]


def test_an_epoch_begins_with_other_shards_than_the_last(store):
    orders = {str([shards for _, shards in run_of(store).windows(epoch)]) for epoch in range(6)}
    assert len(orders) > 1


@pytest.mark.parametrize("share", [0.02, 0.3, 0.7])
def test_the_last_documents_are_held_out(store, share):
    first, rest = store.split(share)
    assert rest.num_documents == round(share * 150)
    assert first.num_documents + rest.num_documents == 150
    assert len({store.digest, first.digest, rest.digest}) == 3
    both = [part.load(part.shards) for part in (first, rest)]
    ids = np.concatenate([one.ids[np.arange(one.num_tokens)] for one in both])
    whole = store.load(store.shards)
    assert np.array_equal(ids, whole.ids[np.arange(whole.num_tokens)])
    for bad in (0, 1, 1.5):
        with pytest.raises(BertfastError, match="valid-split"):
            store.split(bad)


def mixed(weights, growth=None, **options):
    sizes = {**OPTIONS, **options}
    return Mixture(
        ["a", "b", "a"][: len(weights)],
        weights,
        lambda n, sizes_of: Batches(
            make_store(20, n), SPECIAL, VOCAB, **sizes, source=n, sizes=sizes_of
        ),
        growth or Growth(sizes["batch_tokens"]),
        sizes["seq_len"],
    )


@pytest.mark.parametrize("weights", [[1, 1], [0.9, 0.1], [3, 1, 1]])
def test_each_source_has_its_share_of_every_run_of_batches(weights):
    run = mixed(weights)
    for number in (1, 10, 1000):
        had = [sum(map(source.sizes, range(number))) / 32 for source in run.sources]
        assert sum(had) == 4 * number
        for count, weight in zip(had, weights, strict=True):
            assert abs(count - weight / sum(weights) * 4 * number) <= 1


def test_a_mixture_goes_on_from_any_step_and_counts_each_sources_epochs():
    whole = list(islice(mixed([3, 1, 1]).iterate(), 80))
    for start in (0, 11, 79):
        epoch, batch = next(mixed([3, 1, 1]).iterate(start))
        assert epoch == whole[start][0]
        assert same(batch, whole[start][1])
    run = mixed([3, 1, 1])
    for number, (_, batch) in enumerate(islice(run.iterate(), 80)):
        batch.check()
        assert batch.num_tokens <= 128
        epochs = run.logged(number)
    assert list(epochs) == ["epoch_a", "epoch_b", "epoch_a_2"]
    assert epochs["epoch_a"] > epochs["epoch_b"]


def test_batches_joined_are_those_of_each_one_after_another():
    parts = [batch for _, batch in islice(batches(objective="mlm+nsp").iterate(), 3)]
    whole = one_batch(parts)
    whole.check()
    assert whole.num_sequences == sum(part.num_sequences for part in parts)
    assert torch.equal(whole.input_ids, torch.cat([part.input_ids for part in parts]))
    bounds = whole.cu_seqlens.diff()
    assert torch.equal(bounds, torch.cat([part.cu_seqlens.diff() for part in parts]))
    before = parts[0].num_tokens
    second = whole.masked_positions[len(parts[0].masked_positions) :][
        : len(parts[1].masked_positions)
    ]
    assert torch.equal(second - before, parts[1].masked_positions)


def test_batches_grow_evenly_to_their_last_size():
    growth = Growth(1024, 128, 8)
    assert [growth.tokens(n) for n in (0, 4, 8, 100)] == [128, 576, 1024, 1024]
    before = growth.slots(32)
    assert [before(n + 1) - before(n) for n in (0, 4, 8)] == [4, 18, 32]
    assert before(20) - before(19) == 32


def test_sources_are_named_with_their_weights(tmp_path):
    for name in ("a", "b:2"):
        write_store(tmp_path / name, [make_store()])
    (tmp_path / "text.txt").write_text("fox")
    (tmp_path / "folder").mkdir()

    def found(*names):
        return [weight for _, weight in sources_of([f"{tmp_path}/{n}" for n in names], tmp_path, 1)]

    assert found("a", "b:2", "a:0.25", "b:2:3", "a:0") == [1, 1, 0.25, 3]
    assert found("text.txt") == found("nowhere") == []
    for names, message in (
        (("a:x",), "the weight is 'x'"),
        (("a:-1",), "the weight is '-1'"),
        (("a:inf",), "the weight is 'inf'"),
        (("a:0", "b:2:0"), "sum to nothing"),
        (("a", "text.txt"), "is text and no prepared store"),
        (("folder",), "is a folder and no prepared store"),
    ):
        with pytest.raises(BertfastError, match=message):
            found(*names)


@pytest.mark.parametrize("name", ["ids.npy", "sentences.npy", "documents.npy"])
def test_a_shard_that_is_missing_or_damaged_is_said(tmp_path, name):
    folder = write_store(tmp_path / "store", [make_store(), make_store(seed=1)])
    file = folder / "shard-1" / name
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    store = ShardedStore(str(folder))
    store.load(store.shards[:1])
    with pytest.raises(BertfastError, match=f"shard-1/{name}: is damaged: its checksum"):
        store.load(store.shards)
    file.write_bytes(content[:-1])
    with pytest.raises(BertfastError, match=f"shard-1/{name}: is damaged: it has"):
        ShardedStore(str(folder))
    file.unlink()
    with pytest.raises(BertfastError, match=f"shard-1/{name}: is missing"):
        ShardedStore(str(folder))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "cannot be read as JSON|is no"),
        ("[]", "holds a list"),
        ("{}", "is damaged"),
        ('{"format": 9}', "is a store of form 9"),
        ('{"format": 1, "tokenizer": "", "shards": []}', "of no shard"),
        ('{"format": 1, "tokenizer": "", "shards": [{"name": ".."}]}', "is damaged"),
    ],
)
def test_a_manifest_that_is_none_is_refused(tmp_path, text, message):
    (tmp_path / MANIFEST).write_text(text)
    with pytest.raises(BertfastError, match=message):
        ShardedStore(str(tmp_path))


def test_a_store_of_another_tokenizer_is_refused(store):
    store.check_tokenizer(TOKENIZER, "tok")
    with pytest.raises(BertfastError, match="prepared with another tokenizer than other"):
        store.check_tokenizer(train_wordpiece(["dog"], 30), "other")


def test_shards_of_an_address_come_through_a_bounded_cache(tmp_path, monkeypatch):
    fsspec = pytest.importorskip("fsspec")
    stores = [make_store(30, seed) for seed in range(5)]
    local = write_store(tmp_path / "store", stores)
    fsspec.filesystem("memory").put(str(local), "/stores/one", recursive=True)
    size = sum(file.stat().st_size for file in (local / "shard-0").iterdir())
    monkeypatch.setattr(module, "MIXED_TOKENS", stores[0].num_tokens // 2)
    remote = ShardedStore("memory://stores/one", tmp_path / "cache", 3 * size)
    wanted = islice(run_of(ShardedStore(str(local))).iterate(), 80)
    for (epoch, batch), (other, same_batch) in zip(
        islice(run_of(remote).iterate(), 80), wanted, strict=True
    ):
        assert epoch == other
        assert same(batch, same_batch)
        kept = sum(f.stat().st_size for f in (tmp_path / "cache").rglob("*") if f.is_file())
        assert kept <= 4 * size
    fsspec.filesystem("memory").rm("/stores/one/shard-0", recursive=True)
    shutil.rmtree(tmp_path / "cache")
    gone = ShardedStore("memory://stores/one", tmp_path / "cache", 3 * size)
    with pytest.raises(BertfastError, match="memory://stores/one/shard-0/ids.npy: no such file"):
        gone.load(gone.shards)
