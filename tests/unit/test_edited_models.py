"""Edits in models that scale what they add to the residual, and in one whose logits are not of what its last block gives."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

from raylens.storage.errors import ModelError
from raylens.workers.adapter import adapt
from raylens.workers.interventions.places import Span
from tests.models import FAMILIES, build, see
from tests.unit.test_interventions import OTHERS, opened
from tests.unit.test_lens import built


def test_a_vector_of_another_tap_is_added_as_that_tap_has_it() -> None:
    """What Granite's MLP adds is a factor times what the MLP gives, and has no such factor where it is added itself."""
    model, adapter = built("granite")
    edit = {"tap": "resid_post", "layers": 1, "add": {"prompt": "one", "tap": "mlp_out", "layer": 2}}
    ids, other = torch.tensor([[4, 5, 6]]), torch.tensor([OTHERS["one"]])
    (_, plain, _), _ = see(model, FAMILIES["granite"], ids)
    (_, _, source), _ = see(model, FAMILIES["granite"], other)
    assert plain.post is not None
    assert source.mlp is not None
    with opened(model, adapter, edit).during([Span(3, 0, 3)], 3):
        (_, found, _), _ = see(model, FAMILIES["granite"], ids)
    torch.testing.assert_close(found.post, plain.post + source.mlp[-1])


def test_logits_that_an_edit_does_not_reach() -> None:
    """Where they are not of the last block's output but of a copy made before the edit, the edit is refused."""
    model = copy.deepcopy(build("llama"))
    block = model.model.layers[2]
    compute, given = block.forward, torch.empty(0)

    def forward(hidden: Tensor, **kwargs: Any) -> Tensor:
        nonlocal given
        given = compute(hidden, **kwargs)
        copied: Tensor = given.clone()
        return copied

    block.forward = forward
    model.lm_head.register_forward_pre_hook(lambda _module, _args: (model.model.norm(given),))
    adapter = adapt(model)
    with pytest.raises(ModelError, match="the logits are not those of the last block's output"):
        opened(model, adapter, {"tap": "resid_post", "layers": 2, "scale": 2})
