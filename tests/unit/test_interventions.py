"""Edits of a running model against forward passes that are written out, and against hooks of our own in every family."""

import copy
import re
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from raylens.storage.errors import ModelError
from raylens.storage.record import Failure, Prompt, Record
from raylens.storage.taps import TAPS
from raylens.workers.adapter import Adapter, adapt
from raylens.workers.batching import pad
from raylens.workers.interventions.edits import read_edits
from raylens.workers.interventions.hooks import change_output
from raylens.workers.interventions.intervention import Intervention
from raylens.workers.interventions.opening import open_intervention
from raylens.workers.interventions.places import Span, edited
from raylens.workers.interventions.sources import Sources
from raylens.workers.lens import Lens
from raylens.workers.settings import DType, LensSettings, ModelSettings, WorkerSettings
from raylens.workers.worker import Worker
from tests.models import FAMILIES, Seen, build, make, path, save, see, sentence
from tests.transcribed import FORWARD, Edit
from tests.unit.test_lens import DEVICES, built, compare, logits64, prompts, tokens

#: The prompts that edits name in these tests, as token ids.
OTHERS = {"one": [5, 60, 7, 8, 101], "two": [9, 10, 211]}
LAYERS = (0, 1, 2)
VECTOR = torch.linspace(-2, 2, 32).tolist()


def opened(model: Any, adapter: Adapter, *edits: dict[str, Any]) -> Intervention:
    return open_intervention(model, adapter, read_edits({"edits": list(edits)}), lambda text: OTHERS[text], model.device)


def taps_of(adapter: Adapter) -> tuple[str, ...]:
    return tuple(tap for tap in TAPS if tap not in adapter.certificate["refused"])


def lensed(model: Any, adapter: Adapter, intervention: Intervention, batch: Any = None, **settings: Any) -> list[Record]:
    settings = {"top_k": 10, "logprobs": "float32", **settings}
    lens = Lens(adapter, LensSettings(**settings), LAYERS, taps_of(adapter), 0, None, intervention)
    outcomes = lens(pad(prompts() if batch is None else batch, model.device))
    assert all(isinstance(outcome, Record) for outcome in outcomes)
    return [outcome for outcome in outcomes if isinstance(outcome, Record)]


def plain_edit(tap: str, layers: Sequence[int], chosen: list[int], change: Callable[[int, Tensor], Tensor]) -> Edit:
    """An edit of the written-out forward passes: the chosen rows of a tap at some layers."""

    def edit(here: str, layer: int, value: Tensor) -> Tensor:
        if here != tap or layer not in layers:
            return value
        value = value.clone()
        value[chosen] = change(layer, value[chosen])
        return value

    return edit


#: Positions as they are written, and those they mean of T tokens.
PLACES: dict[str, Callable[[int], list[int]]] = {
    "all": lambda size: list(range(size)),
    "last": lambda size: [size - 1],
    "1:4": lambda size: list(range(size))[1:4],
    "0,-1,7": lambda size: sorted({0, size - 1, 7} & set(range(size))),
}


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("positions", PLACES)
@pytest.mark.parametrize("tap", TAPS)
@pytest.mark.parametrize("name", FORWARD)
def test_every_tap_against_a_forward_in_float64(name: str, tap: str, positions: str, device: str) -> None:
    """A vector added to a tap of the middle layer: every tap of every layer, read as sums and one by one, of a padded batch."""
    model, adapter = built(name, device)
    add = {"values": VECTOR, "scale": 0.5}
    intervention = opened(model, adapter, {"tap": tap, "layers": 1, "positions": positions, "add": add})
    vector = 0.5 * torch.tensor(VECTOR).double()
    plain = build(name)
    walking, direct = (lensed(model, one, intervention) for one in (adapter, replace(adapter, walk=None)))
    for prompt, *both in zip(prompts(), walking, direct, strict=True):
        chosen = PLACES[positions](len(prompt.ids))
        found = FORWARD[name](plain, prompt.ids, plain_edit(tap, [1], chosen, lambda _, value: value + vector))
        for record in both:
            for one, lens in record.taps.items():
                for layer in lens.layers:
                    compare(record, one, layer, torch.log_softmax(logits64(name, plain, found[one, layer]), dim=1))


def of_one(name: str, prompt: str, tap: str, layer: int) -> Tensor:
    return FORWARD[name](build(name), OTHERS[prompt])[tap, layer]


#: What a change is in the file, and by its definition.
CHANGES: dict[str, tuple[dict[str, Any], Callable[[str, str], Callable[[int, Tensor], Tensor]]]] = {
    "scale": ({"scale": -0.5}, lambda _name, _tap: lambda _, value: -0.5 * value),
    "zero": ({"zero": True}, lambda _name, _tap: lambda _, value: 0 * value),
    "add another prompt's tap": (
        {"add": {"prompt": "one", "scale": 0.6}},
        lambda name, tap: lambda layer, value: value + 0.6 * of_one(name, "one", tap, layer)[-1],
    ),
    "add another tap at a position": (
        {"add": {"prompt": "one", "tap": "mlp_out", "layer": 2, "position": 1}},
        lambda name, _tap: lambda _, value: value + of_one(name, "one", "mlp_out", 2)[1],
    ),
    "add a difference": (
        {"add": {"difference": ["one", "two"], "scale": 2}},
        lambda name, tap: (
            lambda layer, value: value + 2 * (of_one(name, "one", tap, layer)[-1] - of_one(name, "two", tap, layer)[-1])
        ),
    ),
    "patch": (
        {"patch": {"prompt": "two"}},
        lambda name, tap: lambda layer, value: of_one(name, "two", tap, layer)[[-1] * len(value)],
    ),
    "patch each": (
        {"patch": {"prompt": "one", "position": "each"}},
        lambda name, tap: lambda layer, _value: of_one(name, "one", tap, layer)[1:4],
    ),
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("tap", TAPS)
@pytest.mark.parametrize("name", FORWARD)
def test_every_change_against_a_forward_in_float64(name: str, tap: str, change: str) -> None:
    """Two layers are changed, each by what it has of the other prompt itself, and read as running sums."""
    model, adapter = built(name)
    given, definition = CHANGES[change]
    intervention = opened(model, adapter, {"tap": tap, "layers": "0,2", "positions": "1:4", **given})
    (prompt,) = prompts(lengths=[5])
    (record,) = lensed(model, adapter, intervention, [prompt])
    found = FORWARD[name](model, prompt.ids, plain_edit(tap, [0, 2], [1, 2, 3], definition(name, tap)))
    # what is left of a middle residual of 0 is the rounding of a sum, which the next norm makes large
    allowed = 1e-3 if (tap, change) == ("resid_mid", "zero") else 1e-4
    for one, lens in record.taps.items():
        for layer in lens.layers:
            near(record, one, layer, torch.log_softmax(logits64(name, model, found[one, layer]), dim=1), allowed)


def near(record: Record, tap: str, layer: int, exact: Tensor, allowed: float) -> None:
    """As ``compare``, but for which of equal tokens are the best, as all are where a tap is 0."""
    lens = record.taps[tap]
    at = lens.layers.index(layer)
    there = exact.gather(1, torch.from_numpy(lens.ids[at].astype(np.int64)))
    for wanted in (there, exact.topk(there.shape[1]).values):
        assert float((torch.from_numpy(lens.logprobs[at]).double() - wanted).abs().max()) < allowed, (tap, layer)


def test_edits_in_order() -> None:
    """Of two edits at one place the second sees what the first left; an edit of another tap sees both."""
    model, adapter = built("llama")
    edits = [
        {"tap": "attn_out", "layers": 1, "add": {"values": VECTOR}},
        {"tap": "attn_out", "layers": 1, "scale": 3},
        {"tap": "resid_mid", "layers": 1, "scale": 0.5},
    ]
    vector = torch.tensor(VECTOR).double()
    both: dict[str, Callable[[Tensor], Tensor]] = {"attn_out": lambda x: (x + vector) * 3, "resid_mid": lambda x: x / 2}
    for prompt, record in zip(prompts(), lensed(model, adapter, opened(model, adapter, *edits)), strict=True):
        found = FORWARD["llama"](model, prompt.ids, lambda tap, layer, x: both[tap](x) if layer == 1 and tap in both else x)
        for one, lens in record.taps.items():
            for layer in lens.layers:
                compare(record, one, layer, torch.log_softmax(logits64("llama", model, found[one, layer]), dim=1))


@pytest.mark.parametrize("backwards", [False, True])
def test_edits_of_other_taps_act_as_the_model_computes(backwards: bool) -> None:
    """In whatever order they are given: the sum is edited after the block's input that is part of it."""
    model, adapter = built("llama")
    edits = [{"tap": "resid_pre", "layers": 1, "add": {"values": VECTOR}}, {"tap": "resid_mid", "layers": 1, "scale": 0.25}]
    vector = torch.tensor(VECTOR).double()
    both: dict[str, Callable[[Tensor], Tensor]] = {"resid_pre": lambda x: x + vector, "resid_mid": lambda x: x / 4}
    intervention = opened(model, adapter, *(edits[::-1] if backwards else edits))
    for prompt, record in zip(prompts(), lensed(model, adapter, intervention), strict=True):
        found = FORWARD["llama"](model, prompt.ids, lambda tap, layer, x: both[tap](x) if layer == 1 and tap in both else x)
        for one, lens in record.taps.items():
            for layer in lens.layers:
                compare(record, one, layer, torch.log_softmax(logits64("llama", model, found[one, layer]), dim=1))


def same(one: Record, other: Record) -> bool:
    return all(
        np.array_equal(getattr(one.taps[tap], field), getattr(other.taps[tap], field))
        for tap in other.taps
        for field in ("ids", "logprobs", "logsumexp", "entropy")
    )


@pytest.mark.parametrize("tap", TAPS)
@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma2", "granite"])
def test_what_changes_nothing(name: str, tap: str) -> None:
    """A vector times 0, a factor of 1, and a tap patched from the prompt itself leave every number as it was, to the last bit."""
    model, adapter = built(name)
    (prompt,) = batch = prompts(lengths=[7])
    (plain,) = lensed(model, adapter, Intervention(), batch)
    for given in (
        {"add": {"values": VECTOR, "scale": 0}},
        {"scale": 1},
        {"patch": {"prompt": "itself", "position": "each"}},
    ):
        edits = read_edits({"edits": [{"tap": tap, "layers": "all", **given}]})
        intervention = open_intervention(model, adapter, edits, lambda _: prompt.ids, model.device)
        assert same(lensed(model, adapter, intervention, batch)[0], plain), given
    other = opened(model, adapter, {"tap": tap, "layers": "all", "patch": {"prompt": "one"}})
    assert not same(lensed(model, adapter, other, batch)[0], plain)


def hand_made(
    model: Any, name: str, tap: str, layer: int, ids: list[int], vector: Tensor, chosen: list[int]
) -> tuple[list[Seen], Tensor]:
    """Blocks and logits while hooks of this test add a vector where the family's row says that the tap is written."""
    family = FAMILIES[name]
    block = model.get_submodule(family.stack)[layer]

    def added(value: Any, by: Tensor) -> Any:
        if isinstance(value, tuple | list):
            return type(value)((added(value[0], by), *value[1:]))
        flat = value.reshape(-1, value.shape[-1]).clone()
        flat[chosen] += by
        return flat.view(value.shape)

    with ExitStack() as hooks:
        if tap == "resid_pre":

            def before(_module: Any, args: Any, kwargs: Any) -> Any:
                if args:
                    return added(args, vector), kwargs
                return args, {**kwargs, "hidden_states": added(kwargs["hidden_states"], vector)}

            hooks.callback(block.register_forward_pre_hook(before, with_kwargs=True).remove)
        else:
            module = {"attn_out": path(block, family.attn), "mlp_out": path(block, family.mlp), "resid_post": block}[tap]
            assert module is not None
            by = vector if tap == "resid_post" else vector / family.scale
            hooks.callback(module.register_forward_hook(lambda _m, _a, output: added(output, by)).remove)
        return see(model, family, torch.tensor([ids]))


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family(name: str) -> None:
    """Each tap of each family, edited at two positions of the middle layer, as hooks of our own do it; before it all stays."""
    model, family = build(name), FAMILIES[name]
    adapter, ids, chosen = adapt(model), tokens(6), [2, 4]
    vector = torch.linspace(-1, 1, model.config.get_text_config().hidden_size)
    plain, _ = see(model, family, torch.tensor([ids]))
    for tap in taps_of(adapter):
        edit = {"tap": tap, "layers": 1, "positions": chosen, "add": {"values": vector.tolist()}}
        if tap == "resid_mid" and "attn_out" in family.refused:
            with pytest.raises(ModelError, match=r"edits\[0\]: tap resid_mid: what leads to it is no one module's output"):
                opened(model, adapter, edit)
            continue
        with opened(model, adapter, edit).during([Span(6, 0, 6)], 6):
            blocks, logits = see(model, family, torch.tensor([ids]))
        # the middle residual is changed as by a change of attn_out that attn_out does not show
        wanted, wanted_logits = hand_made(model, name, tap.replace("resid_mid", "attn_out"), 1, ids, vector, chosen)
        scale = max(1.0, float(wanted_logits.abs().max()))
        torch.testing.assert_close(logits, wanted_logits, rtol=1e-4, atol=1e-4 * scale)
        for layer, (found, other) in enumerate(zip(blocks, wanted, strict=True)):
            for place in ("pre", "attn", "mid", "mlp", "post"):
                value, expected = getattr(found, place), getattr(other, place)
                if (tap, layer, place) == ("resid_mid", 1, "attn"):
                    expected = plain[layer].attn
                if expected is not None:
                    torch.testing.assert_close(value, expected, rtol=1e-4, atol=1e-4 * max(1.0, float(expected.abs().max())))
                if expected is not None and (layer == 0 or (place == "pre" and tap != "resid_pre" and layer == 1)):
                    assert torch.equal(value, getattr(plain[layer], place)), (tap, layer, place)
        assert not torch.equal(blocks[1].post[chosen], plain[1].post[chosen])


def test_refused_taps() -> None:
    """A tap that the model has not got is refused with the lens's own reason, also where only a vector comes from it."""
    model, adapter = built("gpt_neox")
    with pytest.raises(
        ModelError, match=r"--intervene: edits\[1\]: tap resid_mid: no part of the block reads .*; edit another tap"
    ):
        opened(model, adapter, {"tap": "attn_out", "layers": 0, "scale": 2}, {"tap": "resid_mid", "layers": 0, "scale": 2})
    with pytest.raises(ModelError, match=r"edits\[0\]: tap resid_mid: no part of the block reads"):
        opened(model, adapter, {"tap": "attn_out", "layers": 0, "add": {"prompt": "one", "tap": "resid_mid"}})


def attention_aside(block: Any, after: Any) -> None:
    """The module runs, and what it would give is computed anew for the residual."""
    compute, kept = block.self_attn.forward, []

    def attention(**kwargs: Any) -> Any:
        kept[:] = [compute(**kwargs)[0]]
        return kept[0].clone(), None

    def forward(hidden: Tensor, **kwargs: Any) -> Tensor:
        block.self_attn(hidden_states=block.input_layernorm(hidden), **kwargs)
        mid = hidden + kept[0]
        return mid + block.mlp(block.post_attention_layernorm(mid))  # type: ignore[no-any-return]

    block.self_attn.forward, block.forward = attention, forward


def half_an_mlp(block: Any, after: Any) -> None:
    """Half of what is added is what the module gives, and half is computed anew."""
    compute = block.mlp.forward

    def forward(hidden: Tensor, **kwargs: Any) -> Tensor:
        mid = hidden + block.self_attn(hidden_states=block.input_layernorm(hidden), **kwargs)[0]
        normed = block.post_attention_layernorm(mid)
        return mid + block.mlp(normed) / 2 + compute(normed) / 2  # type: ignore[no-any-return]

    block.forward = forward


def output_aside(block: Any, after: Any) -> None:
    """The next block reads the residual from elsewhere than what this one gives."""
    compute, kept = block.forward, []

    def forward(hidden: Tensor, **kwargs: Any) -> Tensor:
        kept[:] = [compute(hidden, **kwargs)]
        return kept[0].clone()

    block.forward = forward
    after.register_forward_pre_hook(lambda _module, args, kwargs: ((kept[0], *args[1:]), kwargs), with_kwargs=True)


@pytest.mark.parametrize(
    ("tap", "change", "problem"),
    [
        ("attn_out", attention_aside, "nothing after it changes"),
        ("mlp_out", half_an_mlp, "resid_mid + mlp_out = resid_post does not hold any more"),
        ("resid_post", output_aside, "block 2 does not read what the block before it gives"),
    ],
)
def test_an_edit_without_the_right_effect_is_refused(tap: str, change: Callable[[Any, Any], None], problem: str) -> None:
    """A module may hold the very numbers of a tap while the model goes on with others: found out when it is tried."""
    model = copy.deepcopy(build("llama"))
    change(model.model.layers[1], model.model.layers[2])
    adapter = adapt(model)
    assert tap in taps_of(adapter)
    opened(model, adapter, {"tap": tap, "layers": 0, "scale": 2})
    with pytest.raises(ModelError, match=rf"--intervene: tap {tap}.*: cannot be edited in this model \({re.escape(problem)}\)"):
        opened(model, adapter, {"tap": tap, "layers": 1, "scale": 2})


@pytest.mark.parametrize("tap", TAPS)
def test_hooks_are_gone_afterwards(tap: str) -> None:
    """Also after a pass that fails between an edit's two hooks."""
    model = copy.deepcopy(build("llama"))
    intervention = opened(model, adapt(model), {"tap": tap, "layers": "all", "scale": 2})

    def fail(*_: Any) -> None:
        raise ValueError("stop")

    spoiler = model.model.layers[1].input_layernorm.register_forward_hook(fail)
    with pytest.raises(ValueError, match="stop"), intervention.during([Span(1, 0, 1)], 1):
        model(input_ids=torch.tensor([[1]]))
    spoiler.remove()
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


@pytest.mark.parametrize(
    ("spec", "span", "expected"),
    [
        ("all", Span(4, 0, 4), [0, 1, 2, 3]),
        ("all", Span(4, -3, 4), [0, 1, 2, 3]),  # padded on the left
        ("all", Span(4, 5, 6), [5]),  # a generated token
        ("last", Span(4, 0, 4), [3]),
        ("last", Span(4, 4, 5), []),
        ("last:2", Span(4, 0, 4), [2, 3]),
        ("-2:", Span(4, 3, 5), [3]),
        ("2:", Span(4, 0, 4), [2, 3]),
        ("2:", Span(4, 3, 6), [3, 4, 5]),
        ("6:", Span(4, 3, 8), [6, 7]),
        ("1:3", Span(4, 0, 4), [1, 2]),
        ("1:9", Span(4, 3, 6), [3]),
        ("0,-1,9", Span(4, 0, 4), [0, 3]),
        ("-9", Span(4, 0, 4), []),
    ],
)
def test_positions(spec: str, span: Span, expected: list[int]) -> None:
    """Absolute, of the prompt; what has no end goes on over what is generated."""
    assert edited(spec, span) == expected


@pytest.mark.parametrize("tap", TAPS)
@pytest.mark.parametrize("positions", ["all", "last", "1:", "0,2"])
def test_cached_passes_with_padding_on_the_left(positions: str, tap: str) -> None:
    """One token at a time, after prompts padded on the left, gives what one pass over all tokens gives."""
    model, adapter = built("llama")
    intervention = opened(model, adapter, {"tap": tap, "layers": 1, "positions": positions, "add": {"values": VECTOR}})
    rows, more = [tokens(5), tokens(3, 1)], [[7, 8], [50, 60]]
    width = 5
    ids = torch.tensor([[0] * (width - len(row)) + row for row in rows])
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
    places = (mask.cumsum(1) - 1).clamp(min=0)
    spans = [Span(len(row), len(row) - width, len(row)) for row in rows]
    with torch.no_grad():
        with intervention.during(spans, width):
            out = model(input_ids=ids, attention_mask=mask, position_ids=places, use_cache=True)
        found = [out.logits[:, -1]]
        (cache,) = set(out) - {"logits"}  # its name differs between versions of transformers
        for step in range(2):
            mask = torch.cat([mask, torch.ones(2, 1, dtype=mask.dtype)], dim=1)
            spans = [Span(len(row), len(row) + step, len(row) + step + 1) for row in rows]
            with intervention.during(spans, 1):
                out = model(
                    input_ids=torch.tensor([[more[0][step]], [more[1][step]]]),
                    attention_mask=mask,
                    position_ids=torch.tensor([[len(row) + step] for row in rows]),
                    **{cache: out[cache]},
                    use_cache=True,
                )
            found.append(out.logits[:, -1])
        for number, row in enumerate(rows):
            whole = row + more[number]
            with intervention.during([Span(len(row), 0, len(whole))], len(whole)):
                expected = model(input_ids=torch.tensor([whole]), use_cache=False).logits[0, len(row) - 1 :]
            torch.testing.assert_close(torch.stack([one[number] for one in found]), expected, rtol=1e-4, atol=1e-3)


def test_generated_tokens_are_not_patched() -> None:
    """A patch of each position has no vector for a token after the prompt, which stays as it is."""
    model, adapter = built("llama")
    intervention = opened(model, adapter, {"tap": "resid_post", "layers": 0, "patch": {"prompt": "two", "position": "each"}})
    ids = [*tokens(3), 7, 8]
    with intervention.during([Span(3, 0, 5)], 5):
        blocks, _ = see(model, FAMILIES["llama"], torch.tensor([ids]))
    plain, _ = see(model, FAMILIES["llama"], torch.tensor([ids]))
    other, _ = see(model, FAMILIES["llama"], torch.tensor([OTHERS["two"]]))
    torch.testing.assert_close(blocks[0].post[:3], other[0].post)
    assert torch.equal(blocks[0].post[3:], plain[0].post[3:])


def test_short_types() -> None:
    """In bfloat16 an edit is rounded once to what the model computes in."""
    model, adapter = built("granite", "cpu", torch.bfloat16)
    intervention = opened(model, adapter, {"tap": "mlp_out", "layers": 1, "add": {"values": VECTOR}})
    plain, _ = see(model, FAMILIES["granite"], torch.tensor([tokens(4)]))
    with intervention.during([Span(4, 0, 4)], 4):
        blocks, _ = see(model, FAMILIES["granite"], torch.tensor([tokens(4)]))
    assert plain[1].mlp is not None
    assert blocks[1].mlp is not None
    unscaled = (plain[1].mlp / 0.6 + torch.tensor(VECTOR) / 0.6).float()
    assert float(((blocks[1].mlp / 0.6).float() - unscaled).abs().max()) <= 0.03 * float(unscaled.abs().max())
    assert blocks[1].mlp.dtype == torch.bfloat16


def test_short_types_of_prompts() -> None:
    """What prompts hold in bfloat16 is subtracted and scaled in float32, and rounded once with the sum."""
    model, adapter = built("llama", "cpu", torch.bfloat16)
    edit = {"tap": "attn_out", "layers": 1, "add": {"difference": ["one", "two"], "scale": 0.3}}
    intervention = opened(model, adapter, edit)
    plain, one, two = (see(model, FAMILIES["llama"], torch.tensor([ids]))[0][1].attn for ids in (tokens(4), *OTHERS.values()))
    with intervention.during([Span(4, 0, 4)], 4):
        blocks, _ = see(model, FAMILIES["llama"], torch.tensor([tokens(4)]))
    assert plain is not None
    assert one is not None
    assert two is not None
    assert blocks[1].attn is not None
    exact = plain.double() + 0.3 * (one[-1].double() - two[-1].double())
    half = 2.0 ** (exact.abs().log2().floor() - 8)  # of the last place of bfloat16's eight binary digits
    assert ((blocks[1].attn.double() - exact).abs() <= 1.001 * half).all()


@pytest.mark.parametrize("tap", ["resid_pre", "resid_mid", "resid_post"])
def test_a_small_edit_beside_a_massive_activation(tap: str) -> None:
    """It is less than what sums of so large a number round off, and yet what is read: the final norm leaves the large one out."""
    model = copy.deepcopy(build("llama"))
    with torch.no_grad():
        model.model.norm.weight.fill_(1000.0)[0] = 0.0
    adapter = adapt(model)
    assert adapter.walk is not None
    sink, small = ([size] + [other] * 31 for size, other in ((2e4, 0.0), (0.0, 0.15)))
    first = {"tap": "resid_pre", "layers": 0, "add": {"values": sink}}
    intervention = opened(model, adapter, first, {"tap": tap, "layers": 1, "add": {"values": small}})
    walking, direct, plain = (
        lensed(model, one, edited)
        for one, edited in (
            (adapter, intervention),
            (replace(adapter, walk=None), intervention),
            (replace(adapter, walk=None), opened(model, adapter, first)),
        )
    )
    for records in zip(walking, direct, plain, strict=True):
        found, expected, without = (record.taps["resid_post"].entropy[1:] for record in records)
        np.testing.assert_allclose(found, expected, atol=2e-4)
        assert (np.abs(expected - without) > 1e-3).any()


def test_statistics_are_against_the_edited_model() -> None:
    """kl is the distance to the prediction that the edited model makes, so 0 at its last block."""
    model, adapter = built("llama")
    edit = {"tap": "attn_out", "layers": 1, "add": {"values": VECTOR, "scale": 3}}
    for one in (adapter, replace(adapter, walk=None)):
        for record in lensed(model, one, opened(model, one, edit), stats=("kl", "next_rank")):
            kl = record.taps["resid_post"].stats["kl"]
            assert np.abs(kl[2]).max() < 1e-5
            found = FORWARD["llama"](
                model, record.token_ids, plain_edit("attn_out", [1], list(range(len(record.token_ids))), _added)
            )
            own, here = (torch.log_softmax(logits64("llama", model, found["resid_post", at]), dim=1) for at in (2, 1))
            np.testing.assert_allclose(kl[1], (own.exp() * (own - here)).sum(dim=1).numpy(), atol=1e-4)


def _added(_layer: int, value: Tensor) -> Tensor:
    return value + 3 * torch.tensor(VECTOR).double()


def test_worker(tmp_path: Path) -> None:
    """A worker reads its prompts once, tells their hash, and fails what cannot be patched position by position."""
    edits = read_edits(
        {"edits": [{"tap": "resid_post", "layers": 0, "patch": {"prompt": sentence([4, 5, 6]), "position": "each"}}]}
    )
    settings = WorkerSettings(ModelSettings(str(save(tmp_path))), LensSettings(positions="all"), edits=edits)
    worker = Worker(settings)
    long, fitting = worker.run([Prompt(0, "long", sentence([1, 2, 3, 9])), Prompt(1, "fits", sentence([1, 2, 3]))])
    assert isinstance(long, Failure)
    assert (long.kind, long.message) == ("input", "4 tokens: edits[0] patches each position from a prompt of 3 tokens")
    assert isinstance(fitting, Record)
    found = worker.certificate["intervention"]
    assert found == Worker(settings).certificate["intervention"]
    assert found["edits"] == 1
    assert len(found["sources"]) == 16
    # each position of the prompt is patched, so that nothing is left of it but the first block's own writes
    (other,) = worker.run([Prompt(0, "other", sentence([4, 5, 6]))])
    assert isinstance(other, Record)
    last = [record.taps["resid_post"].logprobs for record in (fitting, other)]
    assert np.array_equal(last[0], last[1])


def test_a_prompt_that_the_model_cannot_run() -> None:
    """The message names it, and says what happened; it is the model's error, not a crash."""
    model, adapter = built("llama")
    edit = {"tap": "resid_post", "layers": 0, "patch": {"prompt": "one"}}

    def fail(_module: Any, args: Any, kwargs: Any) -> None:
        if kwargs["input_ids"].shape[1] == len(OTHERS["one"]):
            raise torch.OutOfMemoryError("no room")

    hook = model.model.register_forward_pre_hook(fail, with_kwargs=True)
    try:
        with pytest.raises(ModelError, match=r"--intervene: the model cannot run the prompt 'one' of 5 tokens \(.*no room\)"):
            opened(model, adapter, edit)
    finally:
        hook.remove()


def test_of_a_prompt_only_what_is_needed_is_kept() -> None:
    """A vector of one position does not keep all of its prompt in memory; with "each" all positions are needed."""
    model, adapter = built("llama")
    for position, rows in ((1, 1), ("last", 1), ("each", 5)):
        edits = read_edits({"edits": [{"tap": "mlp_out", "layers": 1, "patch": {"prompt": "one", "position": position}}]})
        sources = Sources(adapter, edits, lambda text: OTHERS[text], model.device)
        assert sources.vector(edits[0], 1, 1.0).untyped_storage().nbytes() == rows * 32 * 4


@pytest.mark.parametrize(("dtype", "remedy"), [("bfloat16", "try --dtype float32"), ("float32", "give another prompt")])
def test_numbers_that_are_not_finite(tmp_path: Path, dtype: DType, remedy: str) -> None:
    """A prompt for which the model overflows is told when it is read, with a longer type as the remedy where there is one."""
    settings = ModelSettings(str(save(tmp_path, spoiled=9)), dtype=dtype)
    edits = read_edits({"edits": [{"tap": "attn_out", "layers": 1, "add": {"prompt": sentence([9, 3])}}]})
    with pytest.raises(ModelError, match=f"--intervene: attn_out of layer 1 is not finite for the prompt 'w9 w3'; {remedy}"):
        Worker(WorkerSettings(settings, edits=edits))


def test_tuples_and_flat_rows() -> None:
    """A mixture of experts that gives a tuple, and MLPs on flattened rows, are edited at the right row of a padded batch."""
    for name in ("gpt_oss", "opt"):
        model, adapter = built(name)
        intervention = opened(model, adapter, {"tap": "mlp_out", "layers": 1, "positions": "last", "zero": True})
        for prompt, record in zip(prompts(), lensed(model, adapter, intervention), strict=True):
            (alone,) = lensed(model, adapter, intervention, [prompt])
            for tap, lens in record.taps.items():
                np.testing.assert_allclose(lens.logprobs, alone.taps[tap].logprobs, atol=1e-3, err_msg=f"{name} {tap}")
            with intervention.during([Span(len(prompt.ids), 0, len(prompt.ids))], len(prompt.ids)):
                blocks, _ = see(model, FAMILIES[name], torch.tensor([prompt.ids]))
            assert blocks[1].mlp is not None
            zero = (blocks[1].mlp == 0).all(dim=1)
            assert zero.tolist() == [False] * (len(prompt.ids) - 1) + [True]


class Named(NamedTuple):
    """What some modules give in place of a tuple."""

    hidden: Tensor
    weights: Tensor | None


def test_outputs_with_names_keep_them() -> None:
    """What comes after an edited module finds what it looks for."""
    module, seen = nn.Identity(), torch.arange(6.0).view(1, 3, 2)
    remove = change_output(module, torch.tensor([1]), torch.zeros_like)
    found = module(Named(seen, None))
    remove()
    assert isinstance(found, Named)
    assert found.hidden[0].tolist() == [[0, 1], [0, 0], [4, 5]]


def test_another_width_of_heads() -> None:
    """A model whose blocks are walked from the middle, with an edit below the first lensed layer, is read right."""
    model = make("llama", vocab_size=307, hidden_size=32, intermediate_size=48, num_hidden_layers=5, num_attention_heads=4)
    adapter = adapt(model)
    intervention = opened(model, adapter, {"tap": "resid_pre", "layers": "1,3", "add": {"values": VECTOR}})
    both = [
        Lens(one, LensSettings(10, logprobs="float32"), (2, 3), taps_of(adapter), 0, None, intervention)(
            pad(prompts(), model.device)
        )
        for one in (adapter, replace(adapter, walk=None))
    ]
    for walked, direct in zip(*both, strict=True):
        assert isinstance(walked, Record)
        assert isinstance(direct, Record)
        for tap, lens in direct.taps.items():
            np.testing.assert_allclose(walked.taps[tap].logprobs, lens.logprobs, atol=2e-5)
