"""`bertfast.accelerate`: live models of `transformers` give what they gave, with our encoder
inside.
"""

import copy
import inspect
import io
import pickle
import re
import warnings

import pytest
import torch
from live import (
    BASES,
    CLASSES,
    FIVE,
    LENGTHS,
    SHAPE,
    WIDTH,
    assert_same,
    assert_same_gradients,
    assert_same_outputs,
    inputs_for,
    make,
    objective,
    served,
    transformers,
    warned,
)
from torch import nn

from bertfast import BertfastError, accelerate, kernels, restore

__all__ = ["served"]  # a fixture


@pytest.mark.parametrize("pattern", ["right", "left", "holes"])
@pytest.mark.parametrize("name", CLASSES)
@pytest.mark.slow_unless(lambda pattern: pattern == "left")
def test_outputs_and_gradients_are_those_of_the_original(name, pattern, served):
    theirs = make(name)
    ours = accelerate(copy.deepcopy(theirs))
    arguments = inputs_for(name, pattern)
    normed = FIVE or not name.startswith("ModernBert")
    assert_same(ours, theirs, {**arguments, "output_hidden_states": normed})
    sees_nothing = name.startswith("ModernBert") and (
        pattern != "right" or name.endswith("ForQuestionAnswering")
    )
    assert served or sees_nothing
    if served and not served[0] and name in BASES:
        padding = arguments["attention_mask"] == 0
        with torch.no_grad():
            assert not ours(**arguments).last_hidden_state[padding].any()


@pytest.mark.parametrize("name", BASES)
def test_a_row_of_padding_alone_changes_nothing(name):
    theirs = make(name)
    assert_same(accelerate(copy.deepcopy(theirs)), theirs, inputs_for(name, "empty row"))


@pytest.mark.parametrize(
    "name", [name for name in CLASSES if name.endswith(("MaskedLM", "TokenClassification"))]
)
def test_labels_at_padding_count_as_in_the_original(name):
    theirs = make(name)
    arguments = inputs_for(name)
    arguments["labels"] = arguments["labels"].clamp(min=0)
    assert_same(accelerate(copy.deepcopy(theirs)), theirs, arguments)


def test_outputs_at_padding_are_made_only_where_something_reads_them(served):
    for name, pattern, kept in (
        ("BertForTokenClassification", "left", False),
        ("BertForMaskedLM", "left", False),
        ("BertForSequenceClassification", "right", False),
        ("BertForSequenceClassification", "left", True),
        ("DistilBertForSequenceClassification", "left", True),
        ("BertForQuestionAnswering", "right", True),
    ):
        served.clear()
        accelerate(make(name))(**inputs_for(name, pattern))
        assert served == [kept], name
    served.clear()
    model, arguments = (
        accelerate(make("BertForQuestionAnswering")),
        inputs_for("BertForQuestionAnswering"),
    )
    model(**arguments)
    model(arguments["input_ids"], arguments["attention_mask"])  # no loss, no need
    assert served == [True, False]


def test_an_encoder_below_two_heads_serves_both(served):
    pair = nn.ModuleList(
        [make("BertForSequenceClassification"), make("BertForTokenClassification")]
    )
    pair[1].bert = pair[0].bert = pair[
        1
    ].bert  # without a pooler, which would read the first column by itself
    pair[0].forward = lambda **inputs: pair[0].bert(**inputs).last_hidden_state[:, 0]
    inputs = inputs_for("BertModel", "left")
    wanted = pair[0](**inputs)
    torch.testing.assert_close(accelerate(pair)[0](**inputs), wanted, rtol=1e-5, atol=1e-5)
    assert served == [True]


@pytest.mark.parametrize("name", BASES)
def test_the_model_is_to_all_appearances_what_it_was(name, tmp_path):
    theirs = make(name)
    ours = copy.deepcopy(theirs)
    parameters = list(ours.parameters())
    assert accelerate(ours) is ours
    assert all(x is y for x, y in zip(ours.parameters(), parameters, strict=True))
    for listing in ("named_parameters", "named_modules", "named_buffers"):
        assert [key for key, _ in getattr(ours, listing)()] == [
            key for key, _ in getattr(theirs, listing)()
        ]
    assert list(ours.state_dict()) == list(theirs.state_dict())
    assert inspect.signature(ours.forward) == inspect.signature(theirs.forward)
    assert repr(ours) == repr(theirs)
    for model, folder in ((ours, "ours"), (theirs, "theirs")):
        model.save_pretrained(tmp_path / folder)
    for file in ("config.json", "model.safetensors"):
        assert (tmp_path / "ours" / file).read_bytes() == (tmp_path / "theirs" / file).read_bytes()


def test_an_optimizer_made_before_trains_the_accelerated_model():
    theirs = make("BertForSequenceClassification")
    ours = copy.deepcopy(theirs)
    arguments = inputs_for("BertForSequenceClassification")
    losses = []
    for model in (ours, theirs):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
        if model is ours:
            accelerate(model)
        losses.append([])
        for _ in range(4):
            optimizer.zero_grad()
            loss = model(**arguments).loss
            loss.backward()
            optimizer.step()
            losses[-1].append(loss.item())
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    assert losses[0][-1] < losses[0][0]


def test_restore_gives_the_original_back(served):
    model = make("BertForQuestionAnswering")
    arguments = inputs_for("BertForQuestionAnswering")
    before, attributes = model(**arguments), [set(module.__dict__) for module in model.modules()]
    accelerate(model)
    assert accelerate(model) is model  # again changes nothing
    model(**arguments)
    assert len(served) == 1
    assert restore(model) is model
    assert torch.equal(model(**arguments).start_logits, before.start_logits)
    assert [set(module.__dict__) for module in model.modules()] == attributes
    assert len(served) == 1
    restore(model)


@pytest.mark.parametrize("name", BASES)
def test_options_of_what_is_returned_are_honoured(name, served):
    theirs = make(name).eval()
    ours = accelerate(copy.deepcopy(theirs))
    arguments = inputs_for(name)
    real = arguments["attention_mask"].bool()
    hidden = FIVE or not name.startswith("ModernBert")
    for options in ({"return_dict": False}, {"return_dict": False, "output_hidden_states": hidden}):
        got, wanted = ours(**arguments, **options), theirs(**arguments, **options)
        assert type(got) is tuple
        assert [type(x) for x in got] == [type(x) for x in wanted]
        torch.testing.assert_close(got[0][real], wanted[0][real], rtol=1e-5, atol=1e-5)
        for x, y in zip(got[-1], wanted[-1], strict=True) if hidden and len(options) == 2 else ():
            torch.testing.assert_close(x[real], y[real], rtol=1e-5, atol=1e-5)
    for field in ("output_hidden_states", "return_dict"):
        for model in (ours, theirs):
            setattr(model.config, field, field == "output_hidden_states" and hidden)
        got, wanted = ours(**arguments), theirs(**arguments)
        assert type(got) is type(wanted)
        assert len(got) == len(wanted)
    assert len(served) == 4


def test_hidden_states_are_chosen_by_index_as_in_the_original():
    theirs = make("BertModel")
    ours = accelerate(copy.deepcopy(theirs))
    arguments = inputs_for("BertModel")
    real = arguments["attention_mask"].bool()
    for wanted in (1, [0, -1], [7], -2):
        got, other = (
            model(**arguments, output_hidden_states=wanted).hidden_states
            for model in (ours, theirs)
        )
        assert [x is None for x in got] == [x is None for x in other]
        for x, y in zip(got, other, strict=True):
            assert x is None or torch.allclose(x[real], y[real], atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bool, torch.int32, torch.float32, torch.float16], ids=str)
def test_the_mask_may_be_of_any_dtype(dtype, served):
    model = accelerate(make("BertModel"))
    arguments = inputs_for("BertModel", "holes")
    wanted = model(**arguments).last_hidden_state
    arguments["attention_mask"] = arguments["attention_mask"].to(dtype)
    assert torch.equal(model(**arguments).last_hidden_state, wanted)
    assert len(served) == 2


@pytest.mark.parametrize("name", BASES)
def test_embeddings_may_be_given_in_place_of_ids(name, served):
    theirs = make(name)
    ours = accelerate(copy.deepcopy(theirs))
    arguments = inputs_for(name)
    ids = arguments.pop("input_ids")
    gradients = []
    for model in (ours, theirs):
        embeds = model.get_input_embeddings()(ids).detach().requires_grad_()
        output = model(**arguments, inputs_embeds=embeds)
        objective(output, arguments["attention_mask"].bool()).backward()
        gradients.append(embeds.grad)
    torch.testing.assert_close(*gradients, rtol=1e-5, atol=1e-5)
    assert_same_gradients(ours, theirs)
    assert len(served) == 1


@pytest.mark.parametrize(
    "name", [base for base in BASES if base not in ("DistilBertModel", "DebertaV2Model")]
)
def test_position_ids_are_honoured(name, served):
    theirs = make(name)
    ours = accelerate(copy.deepcopy(theirs))
    arguments = inputs_for(name)
    for positions in (
        torch.arange(WIDTH).flip(0)[None] + 2,
        torch.randint(2, 20, (len(LENGTHS), WIDTH)),
    ):
        assert_same(ours, theirs, {**arguments, "position_ids": positions})
    assert len(served) == 2


def test_a_call_that_cannot_be_served_runs_the_original_and_says_so_once(served):
    theirs = make("BertModel", attn_implementation="eager").eval()
    ours = accelerate(copy.deepcopy(theirs))
    arguments = inputs_for("BertModel")
    pairs = torch.ones(len(LENGTHS), WIDTH, WIDTH, dtype=torch.int64).tril()
    four = torch.zeros(len(LENGTHS), 1, 1, WIDTH).masked_fill(
        arguments["attention_mask"][:, None, None] == 0, -1e9
    )
    for options, reason in (
        ({"output_attentions": True}, "output_attentions"),
        (
            {"attention_mask": pairs} if not FIVE else {"attention_mask": four},
            "attention_mask has [34] dimensions",
        ),
        ({"encoder_hidden_states": torch.zeros(4, 2, 32)}, "encoder_hidden_states is given"),
    ):
        call = {**arguments, **options}
        (first, said), (_, again) = (
            warned(lambda c=call: ours(**c)),
            warned(lambda c=call: ours(**c)),
        )
        assert torch.equal(first.last_hidden_state, theirs(**call).last_hidden_state)
        assert len(said) == 1
        assert re.search(reason, said[0])
        assert not again
    assert not served
    assert len(ours(**arguments, output_attentions=True).attentions) == 2
    assert warned(lambda: ours(**arguments))[1] == []
    assert len(served) == 1


def test_what_the_original_refuses_is_refused_in_its_words(served):
    ours = accelerate(make("BertModel"))
    ids = torch.ones(2, 3, dtype=torch.int64)
    with pytest.raises(ValueError, match="input_ids"):
        ours()
    with pytest.raises(ValueError, match="input_ids"):
        ours(ids, inputs_embeds=torch.zeros(2, 3, 32))
    with pytest.raises(TypeError, match="input_ids"):
        ours(ids, input_ids=ids)
    assert not served
    with pytest.raises(BertfastError, match="vocab_size is 97"):
        ours(ids + 96)
    with pytest.raises(BertfastError, match="25 positions and the model 24"):
        ours(torch.ones(1, 25, dtype=torch.int64))


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize(
    "name",
    ["BertForMaskedLM", "DistilBertForMaskedLM", "DebertaV2ForMaskedLM", "ModernBertForMaskedLM"],
)
def test_gradient_checkpointing_recomputes_layers_to_the_same_gradients(name, when, monkeypatch):
    theirs = make(name)
    ours = copy.deepcopy(theirs)
    if when == "after":
        accelerate(ours)
    ours.gradient_checkpointing_enable()
    accelerate(ours)
    calls, run = [], torch.utils.checkpoint.checkpoint
    monkeypatch.setattr(
        torch.utils.checkpoint, "checkpoint", lambda *a, **k: (calls.append(k), run(*a, **k))[1]
    )
    arguments = inputs_for(name)
    assert_same(ours, theirs, arguments)
    assert len(calls) == ours.config.num_hidden_layers
    ours.gradient_checkpointing_disable()
    ours(**arguments)
    ours.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": True})
    ours.eval()(**arguments)
    assert len(calls) == ours.config.num_hidden_layers
    ours.train()
    assert_same(ours, theirs, arguments)


@pytest.mark.parametrize("mode", ["bfloat16", "half", "autocast"])
@pytest.mark.parametrize("name", BASES)
@pytest.mark.slow_unless(lambda mode: mode == "autocast")
def test_half_precision_is_as_close_to_float64_as_the_original(name, mode, served):
    theirs = make(name).eval()
    for parameter in theirs.parameters():  # so that half precision does not round the weights
        parameter.data = parameter.data.to(
            torch.float16 if mode == "half" else torch.bfloat16
        ).float()
    exact = copy.deepcopy(theirs).double()
    ours = accelerate(copy.deepcopy(theirs))
    arguments = inputs_for(name)
    real = arguments["attention_mask"].bool()
    wanted = exact(**arguments).last_hidden_state[real]
    errors = []
    for model in (ours, theirs):
        if mode != "autocast":
            getattr(model, mode)()
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=mode == "autocast"):
            output = model(**arguments).last_hidden_state
        errors.append((output[real].double() - wanted).abs().mean().item())
        dtype = output.dtype if model is ours else dtype  # noqa: F821
        assert output.dtype == dtype
    assert errors[0] < 1.2 * errors[1]
    assert len(served) == 1


def test_double_precision_is_served(served):
    theirs = make("BertModel").double()
    assert_same(accelerate(copy.deepcopy(theirs)), theirs, inputs_for("BertModel"))
    assert len(served) == 1


def test_a_model_that_was_moved_is_served(served):
    theirs = make("BertModel")
    ours = accelerate(copy.deepcopy(theirs)).to(torch.bfloat16).to("cpu").float()
    theirs.to(torch.bfloat16).float()
    assert_same(ours, theirs, inputs_for("BertModel"))
    ours.train(False)
    with torch.inference_mode():
        ours(**inputs_for("BertModel"))
    assert len(served) == 2


def test_a_copy_is_independent(served):
    model = accelerate(make("BertForSequenceClassification"))
    arguments = inputs_for("BertForSequenceClassification")
    before = model(**arguments).logits
    twin = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.mul_(0.5)
    assert torch.equal(model(**arguments).logits, before)
    restored = copy.deepcopy(twin)
    torch.testing.assert_close(
        twin(**arguments).logits, restore(restored)(**arguments).logits, rtol=1e-5, atol=1e-5
    )
    assert len(served) == 3


def test_weights_and_whole_models_go_through_files():
    model = accelerate(make("BertForSequenceClassification"))
    arguments = inputs_for("BertForSequenceClassification")
    buffer = io.BytesIO()
    torch.save(model.state_dict(), buffer)
    buffer.seek(0)
    other = accelerate(make("BertForSequenceClassification", seed=2))
    other.load_state_dict(torch.load(buffer, weights_only=True))
    assert torch.equal(other(**arguments).logits, model(**arguments).logits)
    thawed = pickle.loads(pickle.dumps(model))
    torch.testing.assert_close(
        thawed(**arguments).logits, model(**arguments).logits, rtol=1e-5, atol=1e-5
    )
    assert torch.equal(accelerate(thawed)(**arguments).logits, model(**arguments).logits)


def test_the_vocabulary_may_be_resized(served):
    theirs = make("BertForMaskedLM")
    ours = accelerate(copy.deepcopy(theirs))
    for model in (ours, theirs):
        torch.manual_seed(0)
        model.resize_token_embeddings(120, mean_resizing=False)
    arguments = inputs_for("BertForMaskedLM")
    arguments["input_ids"][0, 0] = 119
    assert_same(ours, theirs, arguments)
    assert len(served) == 1


def test_layers_taken_out_later_are_noticed(served):
    ours = accelerate(make("BertModel"))
    arguments = inputs_for("BertModel")
    del ours.encoder.layer[1]
    got, said = warned(lambda: ours(**arguments))
    assert "1 layers and its config 2" in said[0]
    assert not served
    ours.config.num_hidden_layers = 1
    torch.testing.assert_close(
        ours(**arguments).pooler_output, got.pooler_output, rtol=1e-5, atol=1e-5
    )
    assert len(served) == 1


@pytest.mark.skipif(FIVE, reason="transformers 5 prunes no heads")
def test_pruned_heads_are_left_to_the_original():
    theirs = make("BertModel")
    ours = accelerate(copy.deepcopy(theirs))
    for model in (ours, theirs):
        model.prune_heads({0: [1]})
    with pytest.warns(UserWarning, match="query has the shapes"):
        assert_same(ours, theirs, inputs_for("BertModel"))
    with pytest.raises(BertfastError, match="query has the shapes"):
        accelerate(theirs)


def test_hooks_on_inner_modules_are_called(served):
    model = accelerate(make("BertModel"))
    arguments = inputs_for("BertModel")
    model(**arguments, output_attentions=True)  # transformers 5 leaves its own hooks behind
    shapes = []
    for module in (model.encoder.layer[0], model.encoder.layer[0].attention.self.query):
        handle = module.register_forward_hook(lambda m, i, o: shapes.append(i[0].shape))
        with (
            pytest.warns(UserWarning, match="has hooks")
            if len(shapes) == 0
            else warnings.catch_warnings()
        ):
            model(**arguments)
        handle.remove()
    assert shapes == [(len(LENGTHS), WIDTH, 32)] * 2
    assert not served
    model(**arguments)
    assert len(served) == 1
    outputs = []
    model.register_forward_hook(lambda m, i, o: outputs.append(o))  # its own fire as ever
    assert model(**arguments) is outputs[0]
    assert len(served) == 2


def test_exchanged_leaves_take_part():
    class Scaled(nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner = inner

        def forward(self, x):
            return 2 * self.inner(x)

    theirs = make("BertModel")
    ours = accelerate(copy.deepcopy(theirs))
    for model in (ours, theirs):
        attention = model.encoder.layer[1].attention
        attention.self.query = Scaled(attention.self.query)
        model.encoder.layer[0].output.LayerNorm = Scaled(model.encoder.layer[0].output.LayerNorm)
        model.embeddings.word_embeddings = Scaled(model.embeddings.word_embeddings)
        model.embeddings.word_embeddings.weight = model.embeddings.word_embeddings.inner.weight
    arguments = inputs_for("BertModel")
    real = arguments["attention_mask"].bool()
    assert_same_outputs(ours(**arguments), theirs(**arguments), real)


def test_exchanged_blocks_are_left_to_the_original(served):
    class Doubled(transformers.models.bert.modeling_bert.BertIntermediate):
        def forward(self, hidden_states):
            return 2 * super().forward(hidden_states)

    theirs = make("BertModel")
    ours = accelerate(copy.deepcopy(theirs))
    for model in (ours, theirs):
        torch.manual_seed(0)
        model.encoder.layer[1].intermediate = Doubled(model.config)
    with pytest.warns(UserWarning, match="intermediate is a Doubled"):
        assert_same(ours, theirs, inputs_for("BertModel"))
    for model in (ours, theirs):
        model.encoder.layer[1].intermediate = model.encoder.layer[0].intermediate
        model.encoder.layer[1].intermediate.intermediate_act_fn = nn.ReLU()
    with pytest.warns(UserWarning, match="an activation is a ReLU"):
        assert_same(ours, theirs, inputs_for("BertModel"))
    assert not served


@pytest.mark.parametrize("name", BASES)
def test_dropout_has_the_rates_of_the_models_modules(name, monkeypatch, served):
    rates = {"hidden_dropout_prob": 0.3, "attention_probs_dropout_prob": 0.2}
    if name == "DistilBertModel":
        rates = {"dropout": 0.3, "attention_dropout": 0.2}
    elif name == "ModernBertModel":
        rates = {"embedding_dropout": 0.3, "attention_dropout": 0.2, "mlp_dropout": 0.25}
    theirs = make(
        name, attn_implementation="eager", **rates
    )  # SDPA in transformers 4 has a copy of the rate
    ours = accelerate(copy.deepcopy(theirs))
    arguments = inputs_for(name)
    torch.manual_seed(7)
    first, second = ours(**arguments).last_hidden_state, ours(**arguments).last_hidden_state
    torch.manual_seed(7)
    assert torch.equal(ours(**arguments).last_hidden_state, first)
    assert not torch.equal(first, second)
    config = ours.__dict__["_bertfast"].encoder.config
    assert (config.hidden_dropout_prob, config.attention_probs_dropout_prob) == (0.3, 0.2)
    assert getattr(config, "mlp_dropout", 0.25) == 0.25

    for model in (ours, theirs):
        for module in model.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
            if hasattr(module, "attention_dropout") and isinstance(module.attention_dropout, float):
                module.attention_dropout = 0.0
    assert_same(ours, theirs, arguments)
    assert len(served) == 4


def test_dropouts_of_different_rates_are_left_to_the_original(served):
    model = accelerate(make("BertModel"))
    model.encoder.layer[1].output.dropout.p = 0.5
    with pytest.warns(UserWarning, match="hidden_dropout_prob have different rates"):
        model(**inputs_for("BertModel"))
    assert not served
    model.eval()(**inputs_for("BertModel"))
    assert len(served) == 1


def test_dropout_of_everything_is_left_to_the_original():
    theirs = make("BertModel", hidden_dropout_prob=1.0)
    with pytest.warns(UserWarning, match="hidden_dropout_prob is 1.0"):
        assert_same(accelerate(copy.deepcopy(theirs)), theirs, inputs_for("BertModel"))


def test_dropout_drops_as_often_as_the_original():
    """The mean over many draws of a linear read-out, ours against theirs: the same to a few
    standard errors.
    """
    theirs = make("BertModel", hidden_dropout_prob=0.4, attention_probs_dropout_prob=0.4)
    ours = accelerate(copy.deepcopy(theirs))
    ids = torch.randint(5, 97, (1, 12)).expand(256, -1)
    with torch.no_grad():
        samples = [model(ids).last_hidden_state.std(0) for model in (ours, theirs)]
    ratio = samples[0].mean() / samples[1].mean()
    assert abs(ratio - 1) < 0.02


def test_what_cannot_be_served_is_named_with_its_reason():
    with pytest.raises(BertfastError, match="a dict has none in its attributes"):
        accelerate({})
    with pytest.raises(
        BertfastError,
        match=r"no base model of the family in this Linear. Supported are .* BertModel, ",
    ):
        accelerate(nn.Linear(2, 2))
    for config, reason in (
        ({"is_decoder": True}, "is_decoder is set"),
        ({"hidden_act": "gelu_fast"}, "hidden_act is 'gelu_fast'; supported are gelu, "),
        *(
            []
            if FIVE
            else [
                ({"hidden_act": nn.GELU()}, "hidden_act is GELU"),
                (
                    {"position_embedding_type": "relative_key"},
                    "position_embedding_type is 'relative_key'",
                ),
            ]
        ),
    ):
        with pytest.raises(BertfastError, match=rf"the model \(BertModel\): config: {reason}"):
            accelerate(make("BertModel", attn_implementation="eager", **config))

    class Own(transformers.BertModel):
        def forward(self, *args, **kwargs):
            return super().forward(*args, **kwargs)

    with pytest.raises(BertfastError, match="forward of its own"):
        accelerate(Own(make("BertModel").config))
    patched = make("BertModel")
    patched.forward = lambda *args, **kwargs: None
    with pytest.raises(BertfastError, match="its forward was replaced"):
        accelerate(patched)


def test_a_model_in_which_only_some_can_be_served_says_which_not(served):
    pair = nn.ModuleDict(
        {"good": make("BertModel"), "bad": make("RobertaModel", hidden_act="gelu_fast")}
    )
    (_, said) = warned(lambda: accelerate(pair))
    assert len(said) == 1
    assert "bad (RobertaModel): config: hidden_act is 'gelu_fast'" in said[0]
    pair["good"](**inputs_for("BertModel"))
    pair["bad"](**inputs_for("RobertaModel"))
    assert len(served) == 1


def test_an_encoder_with_a_decoder_has_its_encoder_served(served):
    shape = {key: value for key, value in SHAPE.items() if "dropout" not in key}
    config = transformers.EncoderDecoderConfig.from_encoder_decoder_configs(
        transformers.BertConfig(**shape), transformers.BertConfig(**shape)
    )
    theirs = transformers.EncoderDecoderModel(config).eval()
    theirs.config.decoder_start_token_id = theirs.config.pad_token_id = 0
    ours = copy.deepcopy(theirs)
    _, said = warned(lambda: accelerate(ours))
    assert "decoder.bert (BertModel)" in said[0]
    arguments = {**inputs_for("RobertaModel"), "decoder_input_ids": torch.randint(5, 97, (4, 6))}
    torch.testing.assert_close(
        ours(**arguments).logits, theirs(**arguments).logits, rtol=1e-5, atol=1e-5
    )
    assert len(served) == 1


def test_tracing_and_export_get_the_original(served):
    model = accelerate(make("BertModel")).eval()
    arguments = inputs_for("BertModel")
    inputs = (arguments["input_ids"], arguments["attention_mask"])
    wanted = model(*inputs).pooler_output
    served.clear()
    traced = torch.jit.trace(model, inputs, strict=False, check_trace=False)
    exported = torch.export.export(model, inputs)
    for graph in (traced, exported.module()):
        torch.testing.assert_close(graph(*inputs)["pooler_output"], wanted, rtol=1e-5, atol=1e-5)
    assert not served


def test_a_data_parallel_replica_runs_the_original_on_its_own_weights(served):
    model = accelerate(make("BertModel"))
    replica = model._replicate_for_data_parallel()
    assert replica.forward.__self__ is replica
    assert replica.forward.__func__ is type(model).forward
    model(**inputs_for("BertModel"))
    assert len(served) == 1


def test_groups_of_several_layers_are_served(served):
    theirs = make("AlbertModel", inner_group_num=2)
    arguments = {**inputs_for("AlbertModel"), "output_hidden_states": True}
    assert_same(accelerate(copy.deepcopy(theirs)), theirs, arguments)
    assert len(served) == 1


def test_an_empty_batch_gives_an_empty_batch():
    model = accelerate(make("BertModel"))
    ids = torch.zeros(0, 5, dtype=torch.int64)
    for mask in (None, ids):
        output = model(ids, mask)
        assert output.last_hidden_state.shape == (0, 5, 32)
        assert output.pooler_output.shape == (0, 32)


def test_every_backend_gives_the_same(served):
    theirs = make("BertModel")
    ours = accelerate(copy.deepcopy(theirs))
    with kernels.use_backend("reference"):
        assert_same(ours, theirs, inputs_for("BertModel"))
    assert len(served) == 1
