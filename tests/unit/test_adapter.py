"""What the adapter certifies of each family is true, checked by hooks of our own; what it cannot certify it refuses."""

import copy
from functools import cache

import pytest
import torch
from torch import Tensor

from raylens.workers.adapter import Adapter, adapt
from raylens.workers.capture import capture, captured
from tests.models import FAMILIES, VOCABULARY, build, see

IDS = torch.tensor([[17, 300, 5, 5, 42, 101, 9, 250, 88]])
every_family = pytest.mark.parametrize("name", FAMILIES)


@cache
def adapted(name: str) -> Adapter:
    return adapt(build(name))


def off(value: Tensor, truth: Tensor) -> float:
    """Largest difference, relative to the largest number in the same row."""
    size = truth.double().abs().amax(dim=-1, keepdim=True).clamp(min=1e-30)
    return float(((value.double() - truth.double()).abs() / size).max())


@torch.inference_mode()
def seen_by_lens(adapter: Adapter, ids: Tensor = IDS) -> dict[tuple[str, int], Tensor]:
    """What the lens would read: tap and layer -> [T, D]."""
    sites = {(tap, layer): site for layer, block in enumerate(adapter.sites) for tap, site in block.items()}
    return captured(adapter.trunk, ids, sites)


@every_family
def test_table_of_truths_is_true(name: str) -> None:
    """The rows of tests/models.py hold in each block, and each sublayer writes enough to be noticed if it were missed."""
    family = FAMILIES[name]
    stack = build(name).get_submodule(family.stack)
    blocks, logits = see(build(name), family, IDS)
    assert logits.abs().max() > 1.0
    for block, seen in zip(stack, blocks, strict=True):
        end = seen.post / getattr(block, "layer_scalar", 1.0) if seen.end is None else seen.end
        if family.mid and seen.attn is not None:
            assert off(seen.pre + seen.attn, seen.mid) < 1e-5
        if family.mid and seen.mlp is not None:
            assert off(seen.mid + seen.mlp, end) < 1e-5
        if not family.mid and seen.attn is not None:
            assert off(seen.pre + seen.attn + (0.0 if seen.mlp is None else seen.mlp), end) < 1e-5
        for write in (seen.attn, seen.mlp):
            assert write is None or 0.03 < float(write.norm() / seen.pre.norm()) < 30


@every_family
def test_taps_are_what_the_block_adds(name: str) -> None:
    """Each tap read through the adapter is the vector our own hooks find at that place; none is missing without a reason."""
    family, adapter = FAMILIES[name], adapted(name)
    assert set(adapter.certificate["refused"]) == set(family.refused)
    for tap, words in family.refused.items():
        assert words in adapter.certificate["refused"][tap]
    blocks, _ = see(build(name), family, IDS)
    rows = seen_by_lens(adapter)
    truths = {"attn_out": "attn", "resid_mid": "mid", "mlp_out": "mlp", "resid_post": "post"}
    for layer, seen in enumerate(blocks):
        expected = {tap: getattr(seen, place) for tap, place in truths.items() if tap not in family.refused}
        assert {tap for tap, at in rows if at == layer} == set(expected) | ({"resid_pre"} if layer == 0 else set())
        for tap, truth in expected.items():
            assert off(rows[tap, layer], truth) < 1e-6, (tap, layer)
    assert off(rows["resid_pre", 0], blocks[0].pre) < 1e-6


@every_family
def test_certified_sums_hold_elsewhere(name: str) -> None:
    """In each block one of the sums that the certificate claims from the probe prompt holds to 1e-5 on another prompt."""
    adapter = adapted(name)
    rows = seen_by_lens(adapter)
    assert all(error < 1e-5 for error in adapter.certificate["sums"].values())
    for layer in range(len(adapter.sites)):
        rows["resid_pre", layer] = rows["resid_pre", 0] if layer == 0 else rows["resid_post", layer - 1]
        gaps: dict[str, list[float]] = {}
        for text in adapter.certificate["sums"]:
            left, right = text.split(" = ")
            if (right, layer) in rows:  # else it ends inside the block
                total = torch.stack([rows[term, layer] for term in left.split(" + ")]).sum(0)
                gaps.setdefault(right, []).append(off(total, rows[right, layer]))
        assert all(min(found) < 1e-5 for found in gaps.values())


@every_family
def test_last_lens_is_the_model(name: str) -> None:
    """The lens of the last block gives the model's own logits to 1e-4, as does the family's row without the adapter.

    The hidden states come from the model's body alone: no family needs its head run over the whole prompt.
    """
    family, model, adapter = FAMILIES[name], build(name), adapted(name)
    assert adapter.trunk is not model
    blocks, logits = see(model, family, IDS)
    assert float((adapter.projection.logits(blocks[-1].post) - logits).abs().max()) < 1e-4
    with torch.no_grad():
        normed = model.get_submodule(family.norm)(blocks[-1].post) if family.norm else blocks[-1].post
        own = family.after(model.get_output_embeddings()(normed))
    assert float((own - logits).abs().max()) < 1e-4
    assert 0 <= adapter.certificate["lens"]["error"] <= adapter.certificate["lens"]["allowed"] <= 1e-3


@every_family
def test_padding_changes_nothing(name: str) -> None:
    """Prompts of different lengths padded on the right into one batch give each tap what each prompt alone gives."""
    adapter = adapted(name)
    lengths = [9, 2, 6, 1]
    prompts = [(torch.arange(length) * 37 + 11 * length) % VOCABULARY for length in lengths]
    ids, mask = torch.zeros(4, 9, dtype=torch.int64), torch.zeros(4, 9, dtype=torch.int64)
    for row, prompt in enumerate(prompts):
        ids[row, : len(prompt)] = prompt
        mask[row, : len(prompt)] = 1
    together: dict[tuple[str, int], Tensor] = {}
    sites = {(tap, layer): site for layer, block in enumerate(adapter.sites) for tap, site in block.items()}
    real = mask.flatten().nonzero().flatten()
    with (
        torch.inference_mode(),
        capture(sites, real, lambda tap, layer, value: together.update({(tap, layer): value})),
    ):
        adapter.trunk(input_ids=ids, attention_mask=mask, use_cache=False)
    alone = [seen_by_lens(adapter, prompt.unsqueeze(0)) for prompt in prompts]
    for place, value in together.items():
        truth = torch.cat([rows[place] for rows in alone])
        assert float((value - truth).norm() / truth.norm()) < 1e-5, place


@every_family
def test_short_types_are_certified_alike(name: str) -> None:
    """In bfloat16 the same taps are certified by the same modules, with sums that hold to two roundings of the type."""
    plain = adapted(name).certificate
    short = adapt(copy.deepcopy(build(name)).to(torch.bfloat16)).certificate
    assert short["dtype"] == "bfloat16"
    assert set(short["refused"]) == set(plain["refused"])
    assert short["taps"] == plain["taps"]
    assert all(error <= 2 * torch.finfo(torch.bfloat16).eps for error in short["sums"].values())
