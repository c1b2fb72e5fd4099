"""Two models in one run: ELECTRA's generator and discriminator, DistilBERT's student and
teacher.
"""

import dataclasses
import json

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from tiny import sentences, write_model

from bertfast import (
    BertfastError,
    DistilBertForMaskedLM,
    ElectraForMaskedLM,
    ElectraForPreTraining,
    load,
    pretrain,
)
from bertfast.config import BertConfig, DistilBertConfig, ElectraConfig, RobertaConfig
from bertfast.model import BertForMaskedLM, BertForPreTraining, RobertaForMaskedLM
from bertfast.objectives.joint import (
    Distillation,
    ReplacedTokenDetection,
    generator_config,
    start_from_teacher,
)
from bertfast.packed import PackedBatch

SHAPE = {
    "vocab_size": 97,
    "hidden_size": 32,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "intermediate_size": 48,
    "max_position_embeddings": 40,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
}


def masked_batch(lengths=(7, 1, 12), seed=0):
    torch.manual_seed(seed)
    batch = PackedBatch.from_sequences(
        [torch.randint(5, 97, (length,)).tolist() for length in lengths]
    )
    positions = torch.tensor([1, 4, 9, 15])
    labels = batch.input_ids[positions]
    ids = batch.input_ids.index_fill(0, positions, 4)
    return dataclasses.replace(
        batch, input_ids=ids, masked_positions=positions, masked_labels=labels
    )


def detection():
    config = ElectraConfig(**SHAPE, embedding_size=16)
    torch.manual_seed(1)
    both = ReplacedTokenDetection(
        ElectraForPreTraining(config), ElectraForMaskedLM(generator_config(config, 0.5))
    )
    for parameter in both.parameters():
        parameter.data.normal_(std=0.2)
    return both.train()


def test_generator_and_discriminator_share_their_embeddings_and_nothing_else():
    both = detection()
    shared = {id(p) for p in both.generator.parameters()} & {
        id(p) for p in both.discriminator.parameters()
    }
    assert shared == {id(p) for p in both.discriminator.electra.embeddings.parameters()}
    assert both.generator.config.hidden_size == 16
    assert both.generator.config.num_attention_heads == 1


def test_the_loss_is_the_generators_and_fifty_times_the_discriminators():
    both, batch = detection(), masked_batch()
    output = both(batch, seed=3)
    torch.testing.assert_close(output.loss, output.mlm_loss + 50 * output.rtd_loss)
    torch.testing.assert_close(output.mlm_loss, both.generator(batch, seed=3).loss)
    assert output.mlm_count == 4
    assert output.rtd_count == batch.num_tokens
    assert 0 <= output.rtd_correct <= batch.num_tokens


def test_the_discriminators_loss_sends_no_gradient_into_the_generators_own_weights():
    both, batch = detection(), masked_batch()
    both(batch, seed=3).rtd_loss.backward()
    shared = {id(p) for p in both.discriminator.parameters()}
    assert all(
        p.grad is None or not p.grad.any()
        for p in both.generator.parameters()
        if id(p) not in shared
    )
    assert both.discriminator.electra.encoder.get_parameter(
        "layer.0.output.dense.weight"
    ).grad.any()


def test_a_seed_decides_the_samples():
    both, batch = detection(), masked_batch()
    first, again, other = (both(batch, seed=seed) for seed in (3, 3, 4))
    assert torch.equal(first.loss, again.loss)
    assert torch.equal(first.mlm_loss, other.mlm_loss)
    assert not torch.equal(first.rtd_loss, other.rtd_loss)


def test_slack_changes_no_loss_of_detection():
    both, batch = detection(), masked_batch()
    exact, padded = both(batch, seed=5), both(batch.pad_to(32, 5, 9, 16), seed=5)
    for name in ("mlm_loss", "rtd_loss", "rtd_correct", "rtd_count"):
        torch.testing.assert_close(getattr(padded, name), getattr(exact, name))


def distilled(student=DistilBertConfig, hidden=32, layers=2):
    torch.manual_seed(2)
    teacher = BertForPreTraining(BertConfig(**SHAPE))
    own = DistilBertForMaskedLM(
        student(**{**SHAPE, "num_hidden_layers": layers, "hidden_size": hidden})
    )
    for model in (teacher, own):
        for parameter in model.parameters():
            parameter.data.normal_(std=0.2)
    return own, teacher


def test_the_triple_loss_is_that_of_plain_pytorch():
    student, teacher = distilled()
    batch = masked_batch()
    both = Distillation(student, teacher).train()
    output = both(batch, seed=1)
    output.loss.backward()
    found = {name: p.grad.clone() for name, p in student.named_parameters()}
    student.zero_grad()

    plain = dataclasses.replace(batch, masked_positions=None, masked_labels=None)
    mine, theirs = (m(plain, output_hidden_states=True) for m in (student, teacher.eval()))
    places, labels = batch.masked_positions, batch.masked_labels
    logits, targets = mine.logits[places], theirs.prediction_logits[places].detach()
    soft = (
        F.kl_div((logits / 2).log_softmax(-1), (targets / 2).softmax(-1), reduction="batchmean") * 4
    )
    cosine = (
        1 - F.cosine_similarity(mine.hidden_states[-1], theirs.hidden_states[-1].detach()).mean()
    )
    loss = 5 * soft + 2 * F.cross_entropy(logits, labels) + cosine
    loss.backward()
    torch.testing.assert_close(output.loss, loss)
    for name, parameter in student.named_parameters():
        torch.testing.assert_close(found[name], parameter.grad, rtol=1e-4, atol=1e-5)


def test_the_teacher_is_frozen_and_goes_where_the_student_goes():
    student, teacher = distilled()
    both = Distillation(student, teacher)
    assert {name.split(".")[0] for name, _ in both.named_parameters()} == {"student"}
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    both.train()(masked_batch(), seed=1).loss.backward()
    assert not teacher.training
    assert all(p.grad is None for p in teacher.parameters())
    assert all(torch.equal(before[name], value) for name, value in teacher.state_dict().items())
    both.bfloat16()
    assert {p.dtype for p in teacher.parameters()} == {torch.bfloat16}
    assert torch.isfinite(both(masked_batch(), seed=1).loss)


def test_another_width_leaves_the_cosine_out():
    student, teacher = distilled(hidden=64)
    output = Distillation(student, teacher)(masked_batch(), seed=1)
    assert output.cosine_loss is None
    torch.testing.assert_close(output.loss, 5 * output.soft_loss + 2 * output.mlm_loss)
    assert not start_from_teacher(student, teacher)


def test_the_student_starts_from_every_other_layer():
    student, teacher = distilled()
    assert start_from_teacher(student, teacher)
    mine, theirs = student.state_dict(), teacher.state_dict()
    for own, other in ((0, 0), (1, 3)):
        wanted = theirs[f"bert.encoder.layer.{other}.attention.self.query.weight"]
        assert torch.equal(
            mine[f"distilbert.transformer.layer.{own}.attention.q_lin.weight"], wanted
        )
        wanted = theirs[f"bert.encoder.layer.{other}.output.LayerNorm.bias"]
        assert torch.equal(
            mine[f"distilbert.transformer.layer.{own}.output_layer_norm.bias"], wanted
        )
    for own, other in (
        ("distilbert.embeddings.word_embeddings.weight", "bert.embeddings.word_embeddings.weight"),
        (
            "distilbert.embeddings.position_embeddings.weight",
            "bert.embeddings.position_embeddings.weight",
        ),
        ("vocab_transform.weight", "cls.predictions.transform.dense.weight"),
        ("vocab_projector.bias", "cls.predictions.bias"),
    ):
        assert torch.equal(mine[own], theirs[other]), own


def test_positions_start_where_each_members_do():
    teacher = RobertaForMaskedLM(RobertaConfig(**SHAPE))
    student = BertForMaskedLM(BertConfig(**{**SHAPE, "num_hidden_layers": 2}))
    assert start_from_teacher(student, teacher)
    mine = student.bert.embeddings.position_embeddings.weight
    assert torch.equal(mine[:38], teacher.roberta.embeddings.position_embeddings.weight[2:])


# --- whole runs ---


@pytest.fixture
def corpus(tmp_path):
    texts = [text for text, _ in sentences(300)]
    documents = ("\n".join(texts[start : start + 5]) for start in range(0, len(texts), 5))
    path = tmp_path / "corpus.txt"
    path.write_text("\n\n".join(documents) + "\n")
    return path


def shape_file(tmp_path, **values):
    path = tmp_path / "shape.json"
    path.write_text(json.dumps({**SHAPE, "max_position_embeddings": 24, **values}))
    return str(path)


OPTIONS = {"batch_tokens": 256, "seq_len": 24, "lr": 1e-3, "log_every": 1, "seed": 3}


def numbers(run):
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    timed = ("tokens_per_second", "seconds")
    return [{name: value for name, value in line.items() if name not in timed} for line in lines]


def test_a_detection_run_resumes_bit_for_bit_and_both_models_load(tmp_path, corpus):
    tokenizer = str(write_model(tmp_path / "model"))
    model = shape_file(tmp_path, model_type="electra", embedding_size=16)
    told = {
        **OPTIONS,
        "shape": model,
        "objective": "rtd",
        "generator_size": 0.5,
        "checkpoint_every": 3,
    }
    pretrain([str(corpus)], tokenizer, str(tmp_path / "whole"), steps=6, **told)

    class Stop(Exception):
        pass

    def stop(line):
        if line["step"] == 4:
            raise Stop

    with pytest.raises(BertfastError, match="failed in on_log") as stopped:
        pretrain([str(corpus)], tokenizer, str(tmp_path / "cut"), steps=6, on_log=stop, **told)
    assert isinstance(stopped.value.__cause__, Stop)
    pretrain([str(corpus)], tokenizer, str(tmp_path / "cut"), steps=6, resume=True, **told)
    assert numbers(tmp_path / "cut") == numbers(tmp_path / "whole")
    for name in ("model.safetensors", "generator/model.safetensors"):
        whole, cut = (load_file(tmp_path / run / name) for run in ("whole", "cut"))
        assert all(torch.equal(whole[key], cut[key]) for key in whole)

    line = numbers(tmp_path / "whole")[-1]
    assert line["loss"] == pytest.approx(line["mlm_loss"] + 50 * line["rtd_loss"])
    assert 0 < line["rtd_accuracy"] <= 1
    for folder in (tmp_path / "whole", tmp_path / "whole" / "checkpoints" / "step-00000006"):
        discriminator, generator = load(folder), load(folder / "generator")
        assert (type(discriminator), type(generator)) == (ElectraForPreTraining, ElectraForMaskedLM)
        a, b = (m.electra.embeddings.word_embeddings.weight for m in (discriminator, generator))
        assert torch.equal(a, b)


def test_a_student_runs_under_its_teacher_and_loads(tmp_path, corpus):
    teacher = write_model(tmp_path / "teacher", hidden_size=32, intermediate_size=48)
    model = shape_file(
        tmp_path, model_type="distilbert", dim=32, n_layers=1, n_heads=2, hidden_dim=48
    )
    told = {**OPTIONS, "shape": model, "objective": "distill", "teacher": str(teacher)}
    pretrain([str(corpus)], str(teacher), str(tmp_path / "run"), steps=4, **told)
    lines = numbers(tmp_path / "run")
    assert {"loss", "mlm_loss", "soft_loss", "cosine_loss"} <= set(lines[-1])
    for line in lines:
        assert line["loss"] == pytest.approx(
            5 * line["soft_loss"] + 2 * line["mlm_loss"] + line["cosine_loss"]
        )
    assert isinstance(load(tmp_path / "run"), DistilBertForMaskedLM)


def test_transformers_loads_what_the_runs_leave(tmp_path, corpus):
    transformers = pytest.importorskip(
        "transformers", reason="transformers is an extra: pip install 'bertfast[hf]'"
    )
    teacher = write_model(tmp_path / "teacher", hidden_size=32, intermediate_size=48)
    rtd = shape_file(tmp_path, model_type="electra", embedding_size=16)
    pretrain(
        [str(corpus)],
        str(teacher),
        str(tmp_path / "rtd"),
        steps=1,
        **OPTIONS,
        shape=rtd,
        objective="rtd",
    )
    sop = shape_file(tmp_path, model_type="albert", embedding_size=16)
    pretrain(
        [str(corpus)],
        str(teacher),
        str(tmp_path / "sop"),
        steps=1,
        **OPTIONS,
        shape=sop,
        objective="mlm+sop",
    )
    for cls, folder in (
        (transformers.ElectraForPreTraining, "rtd"),
        (transformers.ElectraForMaskedLM, "rtd/generator"),
        (transformers.AlbertForPreTraining, "sop"),
    ):
        theirs, report = cls.from_pretrained(tmp_path / folder, output_loading_info=True)
        assert not any(
            report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys")
        )
        ids = torch.randint(5, 90, (2, 9))
        with torch.no_grad():
            wanted, got = theirs.eval()(ids), load(tmp_path / folder)(ids)
        for name in ("logits", "prediction_logits", "sop_logits"):
            if getattr(wanted, name, None) is not None:
                torch.testing.assert_close(
                    getattr(got, name), getattr(wanted, name), rtol=1e-5, atol=1e-5
                )


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"objective": "rtd", "shape": "bert-tiny"}, "take one of electra-small"),
        ({"objective": "mlm+sop", "shape": "bert-tiny"}, "take one of albert-base"),
        ({"objective": "mlm+nsp", "shape": "roberta-base"}, "take one of bert-tiny"),
        (
            {"objective": "rtd", "shape": "electra-small", "generator_size": 2.0},
            "generator-size is 2.0",
        ),
        ({"objective": "distill", "shape": "distilbert-base"}, "needs a teacher"),
    ],
)
def test_what_cannot_be_trained_is_refused(tmp_path, corpus, options, named):
    tokenizer = str(write_model(tmp_path / "model"))
    with pytest.raises(BertfastError, match=named):
        pretrain([str(corpus)], tokenizer, str(tmp_path / "run"), steps=1, **{**OPTIONS, **options})
    assert not (tmp_path / "run").exists()


def test_a_teacher_of_another_vocabulary_or_without_a_head_is_refused(tmp_path, corpus):
    from bertfast.model import BertModel

    tokenizer = str(write_model(tmp_path / "model"))
    headless = write_model(tmp_path / "headless", BertModel)
    told = {**OPTIONS, "shape": "bert-tiny", "objective": "distill"}
    with pytest.raises(BertfastError, match="no masked-LM head"):
        pretrain(
            [str(corpus)], tokenizer, str(tmp_path / "run"), steps=1, teacher=str(headless), **told
        )
    other = write_model(tmp_path / "other")
    vocabulary = json.loads((other / "tokenizer.json").read_text())
    words = vocabulary["model"]["vocab"]
    last = max(words, key=words.get)
    words["unheard"] = words.pop(last)
    (other / "tokenizer.json").write_text(json.dumps(vocabulary))
    with pytest.raises(BertfastError, match="is not the tokenizer of the teacher"):
        pretrain(
            [str(corpus)], tokenizer, str(tmp_path / "run"), steps=1, teacher=str(other), **told
        )
