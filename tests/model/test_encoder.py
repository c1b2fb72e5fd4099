"""What the encoder and its heads promise, with no other library beside them."""

import copy
import math
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F

import bertfast.model.functional
from bertfast import (
    BertConfig,
    BertfastError,
    BertForMaskedLM,
    BertForPreTraining,
    BertForSequenceClassification,
    BertModel,
    PackedBatch,
    kernels,
)
from support import forced

BACKENDS = ("reference", "cpp")
VOCAB = 211
LENGTHS = (7, 1, 23, 12)


def small(**overrides):
    values = {
        "vocab_size": VOCAB,
        "hidden_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 128,
        "max_position_embeddings": 40,
    }
    return BertConfig(**{**values, **overrides})


def built(cls, seed=0, **overrides):
    torch.manual_seed(seed)
    return cls(small(**overrides))


def pretraining_batch(lengths=LENGTHS):
    generator = torch.Generator().manual_seed(0)
    ids = [torch.randint(5, VOCAB, (length,), generator=generator).tolist() for length in lengths]
    batch = PackedBatch.from_sequences(
        ids, [[int(i > len(row) // 2) for i in range(len(row))] for row in ids]
    )
    batch.masked_positions = torch.tensor([0, 7, 9, 30, batch.num_tokens - 1])
    batch.masked_labels = torch.tensor([5, 210, 17, 9, 100])
    batch.pair_labels = torch.tensor([0, 1, 1, 0])[: len(lengths)]
    return batch


def with_slack(batch, tokens=9, positions=4):
    """The same batch padded to a budget; what stands in the slack must not matter, so it is no
    zeros.
    """
    return PackedBatch(
        torch.cat([batch.input_ids, torch.randint(5, VOCAB, (tokens,))]),
        torch.cat([batch.segment_ids, torch.ones(tokens, dtype=torch.int64)]),
        torch.cat([batch.position_ids, torch.arange(tokens)]),
        batch.cu_seqlens,
        batch.max_seqlen + 5,
        torch.cat([batch.masked_positions, torch.full((positions,), -1)]),
        torch.cat([batch.masked_labels, torch.full((positions,), -100)]),
        batch.pair_labels,
    )


def gradients(model):
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters()}


def step(model, batch, seed=None):
    model.zero_grad()
    output = model(batch, seed=seed)
    output.loss.backward()
    return output, gradients(model)


# --- initialisation ---


def test_weights_are_drawn_as_published():
    model = built(BertForPreTraining, hidden_size=128, vocab_size=3000, initializer_range=0.05)
    for name, parameter in model.state_dict().items():
        if name.endswith("bias"):
            assert not parameter.any(), name
        elif "LayerNorm" in name:
            assert (parameter == 1).all(), name
        else:
            assert parameter.abs().max() <= 0.1, f"{name}: beyond two deviations"
            # A normal cut at two deviations keeps 0.8796 of its deviation.
            assert parameter.std() == pytest.approx(0.05 * 0.8796, rel=0.1), name
            assert abs(parameter.mean()) < 5 * 0.05 / math.sqrt(parameter.numel()), name
    table = model.bert.embeddings.word_embeddings.weight
    assert not table[0].any()
    assert table[1:].any(1).all()


def test_the_decoder_is_the_word_embedding_table():
    model = built(BertForMaskedLM)
    assert model.num_parameters() == sum(tensor.numel() for tensor in model.state_dict().values())
    assert not any("decoder" in name for name in model.state_dict())


def test_the_same_torch_seed_draws_the_same_weights():
    first, second = built(BertForPreTraining, 3), built(BertForPreTraining, 3)
    assert all(
        torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True)
    )


# --- packed batches ---


@pytest.mark.parametrize("training", [False, True], ids=["evaluating", "training"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_slack_changes_no_output_and_no_gradient(backend, training):
    model, batch = built(BertForPreTraining).train(training), pretraining_batch()
    with forced(backend):
        exact, exact_gradients = step(model, batch, seed=5)
        slack, slack_gradients = step(model, with_slack(batch), seed=5)
    torch.testing.assert_close(slack.loss, exact.loss)
    torch.testing.assert_close(slack.seq_relationship_logits, exact.seq_relationship_logits)
    assert (slack.mlm_correct, slack.mlm_count, slack.nsp_correct) == (
        exact.mlm_correct,
        exact.mlm_count,
        exact.nsp_correct,
    )
    torch.testing.assert_close(slack_gradients, exact_gradients, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("cls", [BertForMaskedLM, BertForPreTraining])
@pytest.mark.parametrize("backend", [*BACKENDS, "triton"])
@pytest.mark.slow_unless(lambda backend: backend != "triton")
def test_a_batch_padded_to_a_budget_gives_the_same_losses_counts_and_gradients(backend, cls):
    lengths = (5, 1, 7)
    model, batch = built(cls).train(), pretraining_batch(lengths)
    batch.masked_positions, batch.masked_labels = (
        torch.tensor([0, 7, 9]),
        torch.tensor([5, 210, 17]),
    )
    with forced(backend):
        exact, exact_gradients = step(model, batch, seed=5)
        padded, padded_gradients = step(model, batch.pad_to(19, 6, 5, 11), seed=5)
    for name in ("loss", "mlm_loss", "nsp_loss", "mlm_correct", "mlm_count", "nsp_correct"):
        torch.testing.assert_close(getattr(padded, name, None), getattr(exact, name, None))
    torch.testing.assert_close(padded_gradients, exact_gradients, rtol=1e-5, atol=1e-6)


def test_a_classifiers_loss_ignores_slack_sequences():
    model = built(BertForSequenceClassification).train()
    batch = PackedBatch.from_sequences([[5, 6, 7], [8, 9]], labels=[1, 0])
    exact, exact_gradients = step(model, batch, seed=5)
    padded, padded_gradients = step(model, batch.pad_to(9, 4, 0, 3), seed=5)
    torch.testing.assert_close(padded.loss, exact.loss)
    torch.testing.assert_close(padded_gradients, exact_gradients, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_sequence_is_encoded_alike_alone_and_among_others(backend):
    model = built(BertModel).eval()
    batch = pretraining_batch()
    bounds = batch.cu_seqlens.tolist()
    with forced(backend), torch.no_grad():
        together = model(batch)
        for row, (start, end) in enumerate(pairwise(bounds)):
            alone = model(
                PackedBatch.from_sequences(
                    [batch.input_ids[start:end].tolist()], [batch.segment_ids[start:end].tolist()]
                )
            )
            torch.testing.assert_close(
                together.last_hidden_state[start:end], alone.last_hidden_state
            )
            torch.testing.assert_close(together.pooler_output[row], alone.pooler_output[0])


@pytest.mark.parametrize("backend", BACKENDS)
def test_empty_sequences_take_part_with_finite_numbers(backend):
    model = built(BertForPreTraining)
    batch = pretraining_batch((7, 0, 23, 12))
    batch.pair_labels[1] = -100
    with forced(backend):
        output, found = step(model, batch, seed=1)
    assert output.loss.isfinite()
    assert all(gradient.isfinite().all() for gradient in found.values())


def test_the_loss_is_that_of_the_full_logits_at_the_masked_positions():
    model, batch = built(BertForPreTraining).eval(), pretraining_batch()
    output = model(batch)
    hidden = model.bert(batch).last_hidden_state
    logits = model.word_logits(hidden)[batch.masked_positions]
    torch.testing.assert_close(output.mlm_loss, F.cross_entropy(logits, batch.masked_labels))
    torch.testing.assert_close(
        output.nsp_loss, F.cross_entropy(output.seq_relationship_logits, batch.pair_labels)
    )
    torch.testing.assert_close(output.loss, output.mlm_loss + output.nsp_loss)
    assert output.prediction_logits is None
    assert output.mlm_correct == (logits.argmax(-1) == batch.masked_labels).sum()
    assert output.mlm_count == len(batch.masked_labels)


@pytest.mark.parametrize(
    "cls", [BertForMaskedLM, BertForPreTraining, BertForSequenceClassification]
)
@pytest.mark.parametrize("lengths", [LENGTHS, (7, 0, 23, 13)])
def test_rows_that_no_head_reads_are_left_out_and_nothing_changes(cls, lengths):
    model = built(cls).eval()
    batch = with_slack(pretraining_batch(lengths))
    batch.labels = torch.tensor([0, 1, 1, 0])
    found, rows = [], []
    model.bert.get_submodule(
        f"encoder.layer.{len(model.bert.encoder.layer._modules) - 1}.output.dense"
    ).register_forward_hook(lambda *call: rows.append(call[2].shape[0]))
    for every_row in (True, False):  # all hidden states are wanted, or the loss alone
        model.zero_grad()
        output = model(batch, output_hidden_states=every_row)
        output.loss.backward()
        found.append(
            [
                output.loss.detach(),
                *(p.grad.clone() for p in model.parameters() if p.grad is not None),
            ]
        )
    sizes = batch.sizes.rounded()
    masked = 0 if cls is BertForSequenceClassification else sizes.masked
    pooled = 0 if cls is BertForMaskedLM else sizes.sequences
    assert rows == [sizes.tokens, masked + pooled]
    for full, less in zip(*found, strict=True):
        torch.testing.assert_close(less, full)


def test_without_pair_labels_the_loss_is_the_masked_one():
    model, batch = built(BertForPreTraining).eval(), pretraining_batch()
    batch.pair_labels = None
    output = model(batch)
    assert output.loss is output.mlm_loss
    assert output.nsp_loss is None


# --- padded input ---


def test_the_pooler_takes_the_first_real_token():
    model = built(BertModel).eval()
    ids = torch.randint(5, VOCAB, (2, 9))
    mask = torch.tensor([[0, 0, 1, 1, 1, 1, 1, 1, 1], [0, 1, 0, 1, 1, 0, 0, 0, 1]])
    output = model(ids, mask)
    first = output.last_hidden_state[torch.arange(2), mask.argmax(1)]
    torch.testing.assert_close(output.pooler_output, model.pooler.dense(first).tanh())


@pytest.mark.parametrize("backend", BACKENDS)
def test_tokens_at_the_padding_change_nothing(backend):
    model = built(BertForMaskedLM).eval()
    ids = torch.randint(5, VOCAB, (3, 8))
    mask = torch.tensor([[1] * 8, [0, 1, 0, 1, 1, 1, 0, 0], [0] * 8])
    other = torch.where(mask == 1, ids, VOCAB + 1000)  # not even ids of the vocabulary
    with forced(backend), torch.no_grad():
        assert torch.equal(model(ids, mask).logits, model(other, mask).logits)


def test_positions_count_the_columns_unless_they_are_given():
    model = built(BertModel).eval()
    ids = torch.randint(5, VOCAB, (1, 6))
    mask = torch.tensor([[0, 0, 1, 1, 1, 1]])
    with torch.no_grad():
        left = model(ids, mask).last_hidden_state[0, 2:]
        shifted = model(ids[:, 2:], position_ids=torch.arange(2, 6)[None]).last_hidden_state[0]
        restarted = model(
            ids, mask, position_ids=torch.tensor([[0, 0, 0, 1, 2, 3]])
        ).last_hidden_state[0, 2:]
        plain = model(ids[:, 2:]).last_hidden_state[0]
    torch.testing.assert_close(left, shifted)
    torch.testing.assert_close(restarted, plain)


def test_gradients_reach_the_given_embeddings():
    model = built(BertModel).eval()
    embeds = torch.randn(2, 5, 64, requires_grad=True)
    mask = torch.tensor([[1, 1, 1, 0, 0], [1] * 5])
    model(inputs_embeds=embeds, attention_mask=mask).pooler_output.sum().backward()
    assert embeds.grad[mask == 1].any(-1).all()
    assert not embeds.grad[mask == 0].any()


def test_logits_can_be_left_out():
    model = built(BertForMaskedLM).eval()
    ids = torch.randint(5, VOCAB, (2, 6))
    labels = torch.full_like(ids, -100)
    labels[0, 2] = 9
    full, spare = model(ids, labels=labels), model(ids, labels=labels, return_logits=False)
    assert spare.logits is None
    assert torch.equal(full.loss, spare.loss)


def test_outputs_answer_by_name_and_by_place():
    output = built(BertModel).eval()(torch.randint(5, VOCAB, (2, 6)))
    assert output["last_hidden_state"] is output.last_hidden_state is output[0]
    assert output[1] is output.pooler_output
    assert len(output.to_tuple()) == 2


# --- dropout ---


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_seed_fixes_the_dropout_and_another_changes_it(backend):
    model, batch = built(BertForPreTraining).train(), pretraining_batch()
    with forced(backend):
        first, first_gradients = step(model, batch, seed=5)
        again, again_gradients = step(model, batch, seed=torch.tensor([5]))
        other, _ = step(model, batch, seed=6)
    assert torch.equal(first.loss, again.loss)
    assert all(
        torch.equal(first_gradients[name], again_gradients[name]) for name in first_gradients
    )
    assert not torch.equal(first.loss, other.loss)


def test_with_no_seed_torch_s_generator_draws_one():
    model, batch = built(BertForPreTraining).train(), pretraining_batch()
    torch.manual_seed(1)
    first, second = model(batch).loss, model(batch).loss
    torch.manual_seed(1)
    assert torch.equal(model(batch).loss, first)
    assert not torch.equal(first, second)


def test_backends_drop_the_same_elements():
    model, batch = built(BertForPreTraining).train(), pretraining_batch()
    found = []
    for backend in BACKENDS:
        with forced(backend):
            found.append(step(model, batch, seed=5))
    torch.testing.assert_close(found[0][0].loss, found[1][0].loss)
    torch.testing.assert_close(found[0][1], found[1][1], rtol=1e-4, atol=1e-6)


def test_every_place_of_dropout_has_a_seed_of_its_own():
    model = built(BertModel, num_hidden_layers=24).train()
    seeds = [int(seed) for seed in model.encoder_run._site_seeds(7, torch.device("cpu"), True)]
    following = [int(seed) for seed in model.encoder_run._site_seeds(8, torch.device("cpu"), True)]
    assert len(set(seeds + following)) == 2 * len(seeds)


def test_evaluation_has_no_dropout():
    model, batch = built(BertForPreTraining).eval(), pretraining_batch()
    assert torch.equal(model(batch, seed=1).loss, model(batch, seed=2).loss)


def test_the_classifier_has_a_rate_of_its_own():
    batch = PackedBatch.from_sequences([[5, 6, 7], [8, 9]], labels=[0, 1])
    rates = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    still = built(BertForSequenceClassification, classifier_dropout=0.0, **rates).train()
    assert torch.equal(still(batch, seed=1).logits, still(batch, seed=2).logits)
    noisy = built(BertForSequenceClassification, classifier_dropout=0.5, **rates).train()
    assert not torch.equal(noisy(batch, seed=1).logits, noisy(batch, seed=2).logits)


# --- precision and compilation ---


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    "cls", [BertForPreTraining, BertForSequenceClassification], ids=lambda cls: cls.__name__
)
def test_half_precision_follows_single_precision(cls, backend):
    model, batch = built(cls).eval(), pretraining_batch()
    batch.labels = torch.tensor([0, 1, 1, 0])
    with forced(backend, torch.bfloat16):
        exact, exact_gradients = step(model, batch)
        half, half_gradients = step(copy.deepcopy(model).bfloat16(), batch)
        model.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            cast = model(batch)
        cast.loss.backward()
    for output, found in ((half, half_gradients), (cast, gradients(model))):
        assert output.loss.dtype == torch.float32
        torch.testing.assert_close(output.loss, exact.loss, rtol=0.02, atol=0)
        for name, gradient in found.items():
            error = (gradient.float() - exact_gradients[name]).norm()
            assert error <= 0.05 * exact_gradients[name].norm() + 1e-3, name


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.slow_unless(lambda backend: backend == "cpp")
def test_a_training_step_compiles_without_a_graph_break(backend):
    model, batch = built(BertForPreTraining).train(), with_slack(pretraining_batch())
    seed = torch.tensor([5])
    with forced(backend):
        eager, eager_gradients = step(model, batch, seed)
        torch._dynamo.reset()
        compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
        model.zero_grad()
        output = compiled(batch, seed=seed)
        output.loss.backward()
    torch.testing.assert_close(output.loss, eager.loss)
    torch.testing.assert_close(gradients(model), eager_gradients, rtol=1e-5, atol=1e-6)


# --- what users get wrong ---


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "either input_ids or inputs_embeds"),
        ({"input_ids": torch.ones(5, dtype=torch.int64)}, r"shape \(5,\)"),
        ({"input_ids": torch.ones(2, 3)}, "whole numbers"),
        ({"input_ids": torch.ones(1, 41, dtype=torch.int64)}, "41 positions and the model 40"),
        (
            {"input_ids": torch.full((1, 3), VOCAB)},
            f"input_ids hold {VOCAB}; vocab_size is {VOCAB}",
        ),
        ({"input_ids": torch.full((1, 3), -1)}, "input_ids hold -1"),
        (
            {
                "input_ids": torch.ones(1, 3, dtype=torch.int64),
                "token_type_ids": torch.full((1, 3), 2),
            },
            "token_type_ids",
        ),
        (
            {
                "input_ids": torch.ones(1, 3, dtype=torch.int64),
                "position_ids": torch.full((1, 3), 40),
            },
            "position_ids",
        ),
        (
            {"input_ids": torch.ones(1, 3, dtype=torch.int64), "token_type_ids": torch.zeros(1, 4)},
            "token_type_ids",
        ),
        (
            {
                "input_ids": torch.ones(1, 3, dtype=torch.int64),
                "attention_mask": torch.ones(1, 3, 3),
            },
            "attention_mask",
        ),
        ({"inputs_embeds": torch.ones(1, 3, 32)}, "32 features and the model 64"),
    ],
)
def test_input_that_does_not_fit_is_one_clear_line(arguments, message):
    with pytest.raises(BertfastError, match=message) as caught:
        built(BertModel)(**arguments)
    assert "\n" not in str(caught.value)


def test_a_packed_batch_takes_nothing_beside_it():
    model, batch = built(BertForMaskedLM), pretraining_batch()
    with pytest.raises(BertfastError, match="nothing beside it"):
        model(batch, torch.ones(4, 23))
    with pytest.raises(BertfastError, match="labels"):
        model(batch, labels=torch.ones(4, 23))


@pytest.mark.parametrize("activation", ["gelu_new", "gelu_pytorch_tanh", "relu"])
def test_other_activations_are_taken(activation):
    ids = torch.randint(5, VOCAB, (1, 6))
    exact = built(BertModel).eval()(ids).last_hidden_state
    other = built(BertModel, hidden_act=activation).eval()(ids).last_hidden_state
    assert not torch.equal(exact, other)
    torch.testing.assert_close(exact, other, rtol=0, atol=0.5 if activation == "relu" else 1e-2)


def test_kernels_are_what_the_encoder_runs_on():
    model, batch = built(BertModel).double().eval(), pretraining_batch()
    with kernels.use_backend("cpp"), pytest.raises(kernels.BackendError, match="float64"):
        model(batch)


@pytest.mark.parametrize("p", [0.0, 0.1])
def test_biases_that_the_norms_add_change_neither_output_nor_gradient(monkeypatch, p):
    """As on a GPU, where the norms sum these biases' gradients."""
    results = []
    for apart in (False, True):
        functional = bertfast.model.functional
        monkeypatch.setattr(functional, "_adds_bias_on_the_way", lambda x, apart=apart: not apart)
        model = built(BertForPreTraining, hidden_dropout_prob=p)
        loss = model(pretraining_batch(), seed=3).loss
        loss.backward()
        results.append([loss.detach(), *(x.grad for x in model.parameters())])
    torch.testing.assert_close(results[1], results[0])
