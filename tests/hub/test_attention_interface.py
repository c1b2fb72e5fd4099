"""`attn_implementation="bertfast"` gives transformers' models their own numbers, and leaves to
transformers what it cannot serve.
"""

import inspect
import subprocess
import sys

import pytest
import torch

import bertfast
from bertfast import BertfastError, kernels, registration
from bertfast.hub import attention_interface
from support import BACKENDS, COMPILE_BACKEND, DEVICE, forced

transformers = pytest.importorskip(
    "transformers", reason="transformers is an extra: pip install 'bertfast[hf]'"
)
SIZES = {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 80,
}
NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
TEXT = {**SIZES, **NO_DROPOUT, "vocab_size": 99, "max_position_embeddings": 40, "pad_token_id": 1}
IMAGE = {"image_size": 12, "patch_size": 4}
AUDIO = {
    **SIZES,
    **dict.fromkeys(
        ("hidden_dropout", "attention_dropout", "activation_dropout", "feat_proj_dropout"), 0.0
    ),
    **dict.fromkeys(("layerdrop", "mask_time_prob"), 0.0),
    "conv_dim": (16, 16),
    "conv_kernel": (5, 3),
    "conv_stride": (4, 2),
    "num_feat_extract_layers": 2,
    "num_conv_pos_embeddings": 4,
    "num_conv_pos_embedding_groups": 2,
    "vocab_size": 12,
}
EURO = {
    **TEXT,
    "num_key_value_heads": 2,
    "attention_dropout": 0.0,
    "pad_token_id": 1,
    "bos_token_id": 0,
    "eos_token_id": 2,
    "mask_token_id": 3,
}
MODELS = {  # name of the class before "Model", what its configuration is made of
    "Camembert": TEXT,
    "Xmod": {**TEXT, "languages": ["en_XX"], "default_language": "en_XX"},
    "Esm": {
        **TEXT,
        "position_embedding_type": "rotary",
        "token_dropout": False,
        "mask_token_id": 32,
    },
    "EuroBert": EURO,
    "ViT": {**SIZES, **NO_DROPOUT, **IMAGE},
    "CLIPVision": {**SIZES, **IMAGE},
    "Wav2Vec2": AUDIO,
}
LENGTHS = (11, 4, 8)
POSITIONS = torch.arange(11)
MASKS = {
    "none": None,
    "full": torch.ones(3, 11, dtype=torch.int64),
    "right": torch.stack([length > POSITIONS for length in LENGTHS]).long(),
    "left": torch.stack([11 - length <= POSITIONS for length in LENGTHS]).long(),
    "holes": torch.stack([POSITIONS % step != 1 for step in (2, 3, 5)]).long(),
    "one sequence masked out": torch.stack([length > POSITIONS for length in (11, 0, 3)]).long(),
}


@pytest.fixture(autouse=True)
def _nothing_said_yet():
    attention_interface._said.clear()


def make(name, implementation, **overrides):
    """A model with weights of a fixed seed."""
    cls = getattr(transformers, f"{name}Model", None)
    if not hasattr(sys.modules[getattr(cls, "__module__", __name__)], "ALL_ATTENTION_FUNCTIONS"):
        pytest.skip(f"in this transformers no {name} calls the attention interface")
    config = getattr(transformers, f"{name}Config")(**{**MODELS[name], **overrides})
    config._attn_implementation = implementation
    torch.manual_seed(5)
    model = cls(config)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return model.to(DEVICE).eval()


def run(model, mask=None, seed=1):
    """The last hidden state of random input, with zeros at the padding."""
    generator = torch.Generator().manual_seed(seed)
    name = model.main_input_name
    if name == "pixel_values":
        return model(torch.randn(3, 3, 12, 12, generator=generator).to(DEVICE)).last_hidden_state
    if name == "input_values":
        return model(torch.randn(3, 90, generator=generator).to(DEVICE)).last_hidden_state
    ids = torch.randint(4, 32, (3, 11), generator=generator).to(DEVICE)
    if mask is None:
        return model(ids).last_hidden_state
    mask = mask.to(DEVICE)
    return model(ids, attention_mask=mask).last_hidden_state * mask[..., None]


def outputs_and_gradients(model, mask):
    out = run(model, mask)
    out.square().sum().backward()
    return [
        out.detach(),
        *(torch.zeros_like(p) if p.grad is None else p.grad for p in model.parameters()),
    ]


def assert_same(mine, theirs):
    assert len(mine) == len(theirs)
    for one, other in zip(mine, theirs, strict=True):
        torch.testing.assert_close(
            one, other, rtol=1e-5, atol=1e-5 * max(1.0, other.abs().max().item())
        )


MODELS_AND_MASKS = [
    (name, mask)
    for name in MODELS
    for mask in (MASKS if "max_position_embeddings" in MODELS[name] else ["none"])
]


@pytest.mark.parametrize(("name", "mask"), MODELS_AND_MASKS)
def test_outputs_and_gradients_equal_eager(name, mask, monkeypatch):
    attend, calls = kernels.attention, []
    monkeypatch.setattr(
        kernels, "attention", lambda *args, **kwargs: calls.append(1) or attend(*args, **kwargs)
    )
    mine = outputs_and_gradients(make(name, "bertfast"), MASKS[mask])
    assert len(calls) == 2  # one a layer
    assert not attention_interface._said
    assert_same(mine, outputs_and_gradients(make(name, "eager"), MASKS[mask]))


def test_audio_of_many_lengths_equals_eager_where_it_is_heard():
    audio = torch.randn(2, 90).to(DEVICE)
    heard = torch.tensor([[1] * 90, [1] * 50 + [0] * 40]).to(DEVICE)
    mine, theirs = (
        make("Wav2Vec2", implementation)(audio, attention_mask=heard).last_hidden_state
        for implementation in ("bertfast", "eager")
    )
    assert not attention_interface._said
    torch.testing.assert_close(mine[0], theirs[0], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(mine[1, :5], theirs[1, :5], rtol=1e-5, atol=1e-5)


def test_a_model_that_calls_no_attention_interface_keeps_its_numbers():
    config = transformers.MegatronBertConfig(**TEXT)
    outputs = []
    for config._attn_implementation in ("bertfast", "eager"):
        torch.manual_seed(4)
        outputs.append(
            run(transformers.MegatronBertModel(config).to(DEVICE).eval(), MASKS["right"])
        )
    torch.testing.assert_close(*outputs, rtol=0, atol=0)


def test_clips_images_are_served_and_its_causal_text_is_left_to_sdpa():
    make("CLIPVision", "bertfast")  # skips where there is no interface
    text, images = (
        {**SIZES, "max_position_embeddings": 20, "vocab_size": 50},
        torch.ones(2, 3, 12, 12, device=DEVICE),
    )
    ids = torch.arange(14, device=DEVICE).view(2, 7)

    def logits(implementation):
        config = transformers.CLIPConfig(text_config=text, vision_config={**SIZES, **IMAGE})
        config._attn_implementation = implementation
        torch.manual_seed(3)
        model = transformers.CLIPModel(config).to(DEVICE).eval()
        return model(input_ids=ids, pixel_values=images, attention_mask=ids != 13).logits_per_text

    with pytest.warns(UserWarning, match="CLIP.*leaves this attention") as said:
        mine = logits("bertfast")
    assert len(said) == 1
    torch.testing.assert_close(mine, logits("eager"), rtol=1e-5, atol=1e-5)


class Attention(torch.nn.Module):
    """A bidirectional layer of a model."""

    is_causal = False

    def forward(self, hidden_states):
        """Not called."""


class SharedAttention(Attention):
    def forward(self, hidden_states, key_value_states=None):
        """Not called."""


def qkv(heads=4, key_heads=4, head_dim=16, dtype=torch.float32, positions=11):
    generator = torch.Generator().manual_seed(2)
    shapes = [(3, count, positions, head_dim) for count in (heads, key_heads, key_heads)]
    return [
        torch.randn(*shape, generator=generator).to(DEVICE, dtype).requires_grad_()
        for shape in shapes
    ]


def sdpa(module, q, k, v, mask, **kwargs):
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    return sdpa_attention_forward(module, q, k, v, mask, **kwargs)[0]


def pairs(real, window=None):
    """(sequences, 1, positions, positions): which key each query sees."""
    distance = (POSITIONS[:, None] - POSITIONS).abs()
    near = distance <= (len(POSITIONS) if window is None else window)
    return (real[:, None, None, :] & near).contiguous()


RIGHT, LEFT, HOLES = (MASKS[name].bool() for name in ("right", "left", "holes"))
FORMS = {  # of a mask with its real tokens
    "2-D int64": lambda real: real.long(),
    "2-D bool": lambda real: real,
    "one row a sequence": lambda real: real[:, None, None, :],
    "a row a query": pairs,
    "a row a query and head": lambda real: pairs(real).repeat(1, 4, 1, 1),
    "nothing sees nor is padding": lambda real: pairs(real) & real[:, None, :, None],
    "added minimum": lambda real: torch.zeros(3, 1, 11, 11).masked_fill(
        ~pairs(real), torch.finfo(torch.float32).min
    ),
    "added -inf": lambda real: torch.zeros(3, 1, 1, 11).masked_fill(
        ~real[:, None, None, :], -torch.inf
    ),
    "added -10000": lambda real: (1.0 - real[:, None, None, :].float()) * -10000.0,
}


@pytest.mark.parametrize("real", [RIGHT, LEFT, HOLES], ids=["right", "left", "holes"])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.slow_unless(lambda real: real is HOLES)
def test_every_form_of_a_padding_mask_is_packed(form, real):
    q, k, v = qkv()
    real = real.to(DEVICE)
    out = attention_interface.attention(Attention(), q, k, v, FORMS[form](real.cpu()).to(DEVICE))[0]
    assert not attention_interface._said
    assert out.is_contiguous()
    expected = sdpa(Attention(), q, k, v, real[:, None, None, :]) * real[..., None, None]
    torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("window", [0, 2, 7])
@pytest.mark.parametrize("real", [RIGHT, LEFT, RIGHT | True], ids=["right", "left", "full"])
def test_a_sliding_window_is_read_off_the_mask(real, window):
    q, k, v = qkv()
    mask, real = pairs(real, window).to(DEVICE), real.to(DEVICE)
    # Flash attention's argument does not count: sdpa, which is the measure, looks at the mask
    # alone.
    out = attention_interface.attention(Attention(), q, k, v, mask, sliding_window=5)[0]
    assert not attention_interface._said
    expected = sdpa(Attention(), q, k, v, mask) * real[..., None, None]
    torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("backend", BACKENDS)
def test_grouped_heads_equal_sdpa_on_every_backend(backend):
    class Grouped(Attention):
        num_key_value_groups = 2

    q, k, v = leaves = qkv(key_heads=2)
    real = HOLES.to(DEVICE)
    with forced(backend):
        mine = attention_interface.attention(Grouped(), q, k, v, real, scaling=0.3)[0]
        gradients = torch.autograd.grad(mine.square().sum(), leaves)
    assert not attention_interface._said
    expected = sdpa(Grouped(), q, k, v, real[:, None, None, :], scaling=0.3) * real[..., None, None]
    assert_same(
        [mine, *gradients], [expected, *torch.autograd.grad(expected.square().sum(), leaves)]
    )


class Causal(Attention):
    is_causal = True


CAUSAL_MASK = pairs(RIGHT) & (POSITIONS[:, None] >= POSITIONS)
LEFT_TO_SDPA = {  # the module, how its q, k, v are made, mask, further arguments, the reason
    "causal module": (Causal(), {}, None, {}, "causal"),
    "causal argument": (Attention(), {}, None, {"is_causal": True}, "causal"),
    "causal mask": (Attention(), {}, CAUSAL_MASK, {}, "neither of padding nor of a sliding window"),
    "no token sees itself": (
        Attention(),
        {},
        pairs(RIGHT) & ~torch.eye(11, dtype=bool),
        {},
        "neither of padding",
    ),
    "window over holes": (Attention(), {}, pairs(HOLES, 2), {}, "holes"),
    "biased scores": (
        Attention(),
        {},
        torch.linspace(0, 1, 11)[None, None, None],
        {},
        "more to the scores",
    ),
    "learned mask": (Attention(), {}, torch.zeros(1, 4, 11, 11).requires_grad_(), {}, "learned"),
    "mask of another shape": (Attention(), {}, torch.ones(1, 1, 1, 1, dtype=bool), {}, "shape"),
    "shared with a decoder": (SharedAttention(), {}, pairs(RIGHT), {}, "another sequence"),
    "head size": (Attention(), {"head_dim": 20}, None, {}, "head size is 20"),
    "float64": (Attention(), {"dtype": torch.float64}, RIGHT[:, None, None, :], {}, "float64"),
}


@pytest.mark.parametrize("case", LEFT_TO_SDPA)
def test_what_cannot_be_served_is_left_to_sdpa_and_said_once(case):
    module, making, mask, kwargs, reason = LEFT_TO_SDPA[case]
    q, k, v = qkv(**making)
    mask = None if mask is None else mask.to(DEVICE)
    with pytest.warns(UserWarning, match=reason) as said:
        outs = [attention_interface.attention(module, q, k, v, mask, **kwargs)[0] for _ in range(2)]
    assert len(said) == 1
    assert type(module).__name__ in str(said[0].message)
    for out in outs:
        torch.testing.assert_close(out, sdpa(module, q, k, v, mask, **kwargs), rtol=0, atol=0)


def test_queries_of_another_sequence_are_left_to_sdpa():
    (q, _, _), (_, k, v) = qkv(positions=5), qkv()
    with pytest.warns(UserWarning, match="5 queries and 11 keys"):
        out = attention_interface.attention(Attention(), q, k, v, RIGHT.long().to(DEVICE))[0]
    mask = RIGHT[:, None, None, :].expand(-1, 1, 5, -1).to(DEVICE)
    torch.testing.assert_close(out, sdpa(Attention(), q, k, v, mask), rtol=0, atol=0)


def test_a_position_bias_is_left_to_sdpa():
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    if "position_bias" not in inspect.signature(sdpa_attention_forward).parameters:
        pytest.skip("this transformers adds its position biases to the mask")
    q, k, v = qkv()
    bias = torch.randn(1, 4, 11, 11).to(DEVICE)
    with pytest.warns(UserWarning, match="position_bias"):
        out = attention_interface.attention(Attention(), q, k, v, None, position_bias=bias)[0]
    torch.testing.assert_close(
        out, sdpa(Attention(), q, k, v, None, position_bias=bias), rtol=0, atol=0
    )


@pytest.mark.parametrize("name", ["s_aux", "softcap"])
def test_what_sdpa_would_ignore_is_an_error(name):
    q, k, v = qkv()
    with pytest.raises(BertfastError, match=f"Attention asks for {name}.*eager"):
        attention_interface.attention(Attention(), q, k, v, None, **{name: 30.0})


def test_a_mask_is_read_once_for_all_layers(monkeypatch):
    read, calls = attention_interface._read, []
    monkeypatch.setattr(attention_interface, "_read", lambda *args: calls.append(1) or read(*args))
    model = make("Camembert", "bertfast", num_hidden_layers=5)
    with torch.inference_mode():
        run(model, MASKS["right"])
    run(model, MASKS["left"])
    assert len(calls) == 2


@pytest.mark.parametrize("mode", [torch.inference_mode, torch.no_grad])
def test_a_mask_that_was_written_to_is_read_again(mode):
    with mode():
        q, k, v = (x.detach() for x in qkv())
        mask = pairs(RIGHT).to(DEVICE)
        outs = [attention_interface.attention(Attention(), q, k, v, mask)[0].clone()]
        mask.copy_(pairs(HOLES))
        outs.append(attention_interface.attention(Attention(), q, k, v, mask)[0])
    for out, real in zip(outs, (RIGHT.to(DEVICE), HOLES.to(DEVICE)), strict=True):
        expected = sdpa(Attention(), q, k, v, real[:, None, None, :]) * real[..., None, None]
        torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-6)


def test_dropout_comes_from_torchs_generator_and_survives_gradient_checkpointing():
    results = []
    for checkpointing in (False, True):
        model = make("Camembert", "bertfast", attention_probs_dropout_prob=0.3).train()
        if checkpointing:
            model.gradient_checkpointing_enable(
                gradient_checkpointing_kwargs={"use_reentrant": False}
            )
        torch.manual_seed(9)
        results.append(outputs_and_gradients(model, MASKS["right"]))
    assert_same(*results)
    torch.manual_seed(10)
    assert not torch.allclose(run(model, MASKS["right"]), results[0][0])
    q, k, _ = qkv()
    kept = attention_interface.attention(Attention(), q, k, torch.ones_like(q), None, dropout=0.3)[
        0
    ]
    assert abs(kept.mean().item() - 1) < 0.1
    assert kept.std() > 0.05


def test_bfloat16_is_as_near_to_float64_as_eager():
    exact = run(make("Camembert", "eager").double(), MASKS["right"])
    mine, theirs = (
        run(make("Camembert", kind).bfloat16(), MASKS["right"]) for kind in ("bertfast", "eager")
    )
    assert mine.dtype == torch.bfloat16
    assert not attention_interface._said
    assert (mine - exact).abs().mean() < 1.2 * (theirs - exact).abs().mean()


def test_autocast_computes_in_bfloat16():
    model = make("Camembert", "bertfast")
    with torch.autocast(DEVICE.type, torch.bfloat16):
        mine = run(model, MASKS["left"])
    assert not attention_interface._said
    torch.testing.assert_close(mine.float(), run(model, MASKS["left"]), rtol=0.05, atol=0.05)


@pytest.mark.parametrize("mask", ["none", "right", "holes"])
@pytest.mark.slow
def test_torch_compile_takes_the_whole_model_as_one_graph(mask):
    model = make("Camembert", "bertfast")
    expected = outputs_and_gradients(model, MASKS[mask])
    model.zero_grad()
    model.forward = torch.compile(model.forward, fullgraph=True, backend=COMPILE_BACKEND)
    assert_same(outputs_and_gradients(model, MASKS[mask]), expected)
    assert not attention_interface._said


@pytest.mark.slow
def test_torch_compile_takes_what_is_left_to_sdpa_too():
    model = make("Camembert", "bertfast", num_attention_heads=8)
    expected = run(make("Camembert", "eager", num_attention_heads=8), MASKS["right"])
    model.forward = torch.compile(model.forward, fullgraph=True, backend="aot_eager")
    with pytest.warns(UserWarning, match="head size is 8"):
        torch.testing.assert_close(run(model, MASKS["right"]), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "imports", ["import bertfast, transformers", "import transformers, bertfast"]
)
@pytest.mark.slow
def test_either_order_of_imports_registers_it(imports):
    program = f"""{imports}
config = transformers.ViTConfig(
    image_size=8, patch_size=4, hidden_size=32, num_hidden_layers=1, num_attention_heads=2,
    intermediate_size=8,
)
model = transformers.AutoModel.from_config(config, attn_implementation="bertfast")
assert model.config._attn_implementation == "bertfast"
assert type(transformers.modeling_utils.__spec__.loader).__module__ != "bertfast.registration"
"""
    subprocess.run(
        [sys.executable, "-W", "error::UserWarning", "-c", program], check=True, timeout=120
    )


def test_without_transformers_registering_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers.modeling_utils", None)
    with pytest.raises(BertfastError, match=r"pip install 'bertfast\[hf\]'"):
        bertfast.register_attention()


def test_importing_transformers_goes_on_when_its_interface_has_changed(monkeypatch):
    monkeypatch.setattr(transformers.modeling_utils, "ALL_ATTENTION_FUNCTIONS", None)
    with pytest.warns(UserWarning, match="cannot be registered"):
        registration.register_attention_on_import()
