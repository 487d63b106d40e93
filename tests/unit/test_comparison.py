"""Two runs side by side against a plain computation from their records."""

import dataclasses
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from raylens.storage.comparison import compare
from raylens.storage.errors import UsageError
from raylens.storage.run import Run
from raylens.storage.store import open_store
from raylens.storage.taps import TAPS
from raylens.storage.vocabulary import Vocabulary, write_vocabulary
from tests.builders import commit_outcomes, make_generated, make_record, make_run, make_vocabulary
from tests.queried import decided, places, same_rows, write_run

#: Every token of every prompt.
EVERYTHING: Mapping[str, int] = defaultdict(lambda: 1 << 31)


def mean(values: list[float]) -> float | None:
    return sum(values) / len(values) if values else None


def plain(one: Run, other: Run, k: int, shared: Mapping[str, int] = EVERYTHING) -> list[dict[str, Any]]:
    """The rows for runs of the same layers, positions and prompts; ``shared`` says how many first tokens of each prompt are."""
    theirs = {(row["id"], row["position"], row["tap"], row["layer"]): row for row in places(other)}
    groups = defaultdict(list)
    for row in places(one):
        if row["position"] >= shared[row["id"]]:
            continue
        groups[row["layer"], row["tap"]].append((row, theirs[row["id"], row["position"], row["tap"], row["layer"]]))
    shifts = defaultdict(list)
    ends = {(row["id"], row["position"]): row for row in decided(other)}
    for row in decided(one):
        if row["position"] >= shared[row["id"]]:
            continue
        shifts[row["stable"]["layer"]].append(ends[row["id"], row["position"]]["stable"]["layer"] - row["stable"]["layer"])
    return [
        {
            "tap": tap,
            "layer": layer,
            "other_layer": layer,
            "places": len(pairs),
            "agreement": sum(a["ids"][0] == b["ids"][0] for a, b in pairs) / len(pairs),
            "overlap": sum(len(set(a["ids"][:k]) & set(b["ids"][:k])) / k for a, b in pairs) / len(pairs),
            "entropy_change": sum(b["entropy"] - a["entropy"] for a, b in pairs) / len(pairs),
            "logprob_change": mean(
                [
                    b["logprobs"][b["ids"].index(a["ids"][0]) if a["ids"][0] in b["ids"] else -1] - a["logprobs"][0]
                    for a, b in pairs
                ]
            ),
            "next_logprob_change": mean(
                [
                    float(b["next_logprob"]) - float(a["next_logprob"])
                    for a, b in pairs
                    if not np.isnan(a.get("next_logprob", np.nan)) and a["position"] + 1 < shared[a["id"]]
                ]
            ),
            "kl_change": sum(float(b["kl"]) - float(a["kl"]) for a, b in pairs) / len(pairs) if "kl" in pairs[0][0] else None,
            "decided": len(shifts[layer]) or None if tap == "resid_post" else None,
            "shift": sum(shifts[layer]) / len(shifts[layer]) if tap == "resid_post" and shifts[layer] else None,
        }
        for (layer, tap), pairs in sorted(groups.items(), key=lambda group: (group[0][0], TAPS.index(group[0][1])))
    ]


def same_prompts(tmp_path: Path, **other: Any) -> tuple[Run, Run]:
    """Two runs of the same prompts and tokens; only what the lens read differs."""
    return write_run(tmp_path, name="one"), write_run(tmp_path, name="other", **other)


def test_a_run_with_itself(tmp_path: Path) -> None:
    """Nothing differs."""
    run = write_run(tmp_path)
    for row in compare(run, run):
        assert row["agreement"] == 1
        assert row["entropy_change"] == 0
        assert row["shift"] in {0, None}


def test_two_runs(tmp_path: Path) -> None:
    """Agreement, shared tokens, changes and shifts, by layer and tap."""
    one, other = same_prompts(tmp_path, lens_seed=7)
    found = compare(one, other).rows()
    same_rows(found, plain(one, other, 3))
    assert 0 < min(row["agreement"] for row in found) < max(row["agreement"] for row in found) < 1
    assert any(row["shift"] for row in found)


def test_a_run_that_keeps_more_tokens(tmp_path: Path) -> None:
    """Its logprob of the other's best token is looked for among all that it keeps; only what is shared goes by the fewer."""
    one, other = write_run(tmp_path, name="one", k=1), write_run(tmp_path, name="other", lens_seed=7, k=3)
    same_rows(compare(one, other).rows(), plain(one, other, 1))
    same_rows(compare(other, one).rows(), plain(other, one, 1))


def test_runs_of_one_name(tmp_path: Path) -> None:
    """Of two stores: refused, for queries tell runs apart by their names."""
    one, other = write_run(tmp_path / "a"), write_run(tmp_path / "b", lens_seed=7)
    with pytest.raises(UsageError, match="two of the runs have one name"):
        compare(one, other).rows()


def generated_run(store: Path, name: str, seed: int, tokens: list[list[int]]) -> Run:
    """A run whose prompts have three tokens, and four that were generated."""
    folder, _ = make_run(store, len(tokens), name=name, identity={"generation": {"tokens": 4}})
    records = [
        make_record(
            index, seed=seed + index, layers=(0, 1, 2), vocabulary_size=6, tokens=7, generated=make_generated(3, 4), stats=True
        )
        for index in range(len(tokens))
    ]
    commit_outcomes(folder, *(dataclasses.replace(record, token_ids=ids) for record, ids in zip(records, tokens, strict=True)))
    return open_store(store)[name]


def test_generations_up_to_where_they_part(tmp_path: Path) -> None:
    """What was generated is compared as long as both have the same tokens, and the next token where it is the same."""
    one = generated_run(tmp_path, "one", 0, [[1, 2, 3, 4, 5, 1, 2]] * 5)
    other = generated_run(
        tmp_path,
        "other",
        100,
        [
            [1, 2, 3, 4, 5, 1, 2],
            [1, 2, 3, 4, 5, 1, 0],
            [1, 2, 3, 4, 0, 1, 2],
            [1, 2, 3, 0, 5, 1, 2],
            [1, 2, 0, 4, 5, 1, 2],  # another prompt
        ],
    )
    shared = {"prompt-0": 7, "prompt-1": 6, "prompt-2": 4, "prompt-3": 3, "prompt-4": 0}
    found = compare(one, other).rows()
    same_rows(found, plain(one, other, 3, shared))
    assert {row["places"] for row in found} == {4 + 4 + 2 + 1}
    # of one that read the same text and generated nothing, other tokens are another prompt's
    folder, _ = make_run(tmp_path, 5, name="read")
    commit_outcomes(folder, *(dataclasses.replace(record, generated=None) for record in other.records()))
    assert {row["places"] for row in compare(one, open_store(tmp_path)["read"])} == {4}


def test_models_of_other_depths(tmp_path: Path) -> None:
    """Layers are paired at the same relative depth, and shifts are in layers of the first."""
    one, other = same_prompts(tmp_path, layers=7)
    found = compare(one, other).rows()
    assert {(row["layer"], row["other_layer"]) for row in found} == {(0, 0), (1, 2), (2, 4), (3, 6)}
    assert {row["tap"] for row in found if row["layer"] == 0} == set(TAPS)


def test_shifts_between_models_of_other_depths(tmp_path: Path) -> None:
    """First and last layer of both are held against each other, so a shift of 0 is the same relative depth."""
    one, other = same_prompts(tmp_path, layers=7, lens_seed=7)
    ends = {(row["id"], row["position"]): row["stable"]["layer"] for row in decided(other)}
    shifts = defaultdict(list)
    for row in decided(one):
        layer = row["stable"]["layer"]
        shifts[layer].append(ends[row["id"], row["position"]] * 3 / 6 - layer)
    found = {row["layer"]: row["shift"] for row in compare(one, other) if row["shift"] is not None}
    assert found == pytest.approx({layer: sum(each) / len(each) for layer, each in shifts.items()})
    assert any(found.values())


@pytest.mark.parametrize(("kept", "others"), [(3, 2), (2, 3)])
def test_runs_that_keep_other_numbers_of_tokens(tmp_path: Path, kept: int, others: int) -> None:
    """Tokens are compared as far as both have them."""
    one = write_run(tmp_path, name="one", k=kept)
    other = write_run(tmp_path, name="other", k=others, lens_seed=7)
    same_rows(compare(one, other).rows(), plain(one, other, 2))


def test_a_run_without_its_last_layer_decides_nothing(tmp_path: Path) -> None:
    """What its last lensed layer says is no prediction of the model, whichever of the two lacks it."""
    for name, layers in (("one", 4), ("other", 3)):
        write_run(tmp_path, name=name, layers=layers).folder.certificate.write_text('{"layers": 4}')
    one, other = (open_store(tmp_path)[name] for name in ("one", "other"))
    for pair in ((one, other), (other, one)):
        rows = compare(*pair).rows()
        assert {row["layer"] for row in rows} == {0, 1, 2}
        assert {(row["decided"], row["shift"]) for row in rows} == {(None, None)}


def lensed_run(store: Path, name: str, vocabulary: Vocabulary | None = None, **changes: Any) -> Run:
    """A run of one prompt by a model of four layers."""
    folder, _ = make_run(store, 1, name=name, **({"vocabulary_size": len(vocabulary)} if vocabulary else {}))
    commit_outcomes(folder, make_record(0, **changes))
    folder.certificate.write_text('{"layers": 4}')
    if vocabulary:
        write_vocabulary(folder.vocabulary, vocabulary)
    return open_store(store)[name]


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"id": "another"}, "no prompt has a record in both"),
        ({"seed": 5}, "the prompts of the same ids have other tokens"),
        ({"positions": [0, 2]}, "no position of a prompt was lensed in both"),
        ({"layers": (1, 2)}, "no tap was lensed at the same layers in both"),
        ({"taps": ("mlp_out",)}, "no tap was lensed at the same layers in both"),
        ({"vocabulary": [b"other", *make_vocabulary()[1:]]}, "have different vocabularies; runs of models with one tokenizer"),
    ],
)
def test_runs_that_share_nothing(tmp_path: Path, changes: dict[str, Any], problem: str) -> None:
    """Why there is nothing to compare is said, not shown as an empty table."""
    one = lensed_run(tmp_path, "one", positions=[1, 3])
    other = lensed_run(tmp_path, "other", **{"positions": [1, 3], **changes})
    with pytest.raises(UsageError, match=f"runs 'one' and 'other' .*{problem}"):
        compare(one, other).rows()


def test_a_vocabulary_may_be_padded_further(tmp_path: Path) -> None:
    """Ids mean the same where both have a token; one may have more, also in the place of what the other pads with."""
    one = lensed_run(tmp_path, "one")
    other = lensed_run(tmp_path, "other", vocabulary=[*make_vocabulary()[:-1], b"<added>", b"<more>", None])
    for pair in ((one, other), (other, one)):
        assert {row["agreement"] for row in compare(*pair)} == {1}


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"seed": 5}, "the prompts of the same ids have other tokens"),
        ({"taps": ("attn_out",), "layers": 1, "stats": False}, ""),
    ],
)
def test_what_cannot_be_compared(tmp_path: Path, changes: dict[str, Any], problem: str) -> None:
    """Other tokens under the same ids are refused with the reason; what only lacks taps is compared where it has them."""
    one, other = same_prompts(tmp_path, **changes)
    if problem:
        with pytest.raises(UsageError, match=problem):
            compare(one, other).rows()
    else:
        assert {row["tap"] for row in compare(one, other)} == {"attn_out"}
