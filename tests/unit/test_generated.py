"""What a record says of its generation: what cannot be true is refused on the wire and in the store; the steps for people."""

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import msgspec
import numpy as np
import orjson
import pytest

from raylens.storage.errors import FrameError, StoreError
from raylens.storage.exports.logitlens4llms import FILES
from raylens.storage.generated import MAX_SAMPLES
from raylens.storage.important import sure_layers, whole_percents
from raylens.storage.payload import decode_payload, encode_payload
from raylens.storage.record import Record
from raylens.storage.record_json import decode_outcome, encode_outcome
from raylens.storage.steps import lines, steps
from raylens.storage.store import open_store
from tests.builders import (
    VOCABULARY_SIZE,
    commit_outcomes,
    make_generated,
    make_record,
    make_run,
    make_vocabulary,
    same,
)
from tests.wire import close_payload, open_payload

NEW = 3


def generated_record(index: int = 0) -> Record:
    """Two tokens and three that were generated after them."""
    vocabulary = make_vocabulary()
    plain = make_record(index, tokens=2 + NEW, k=6)
    text = b"".join(vocabulary[token] or b"" for token in plain.token_ids[2:]).decode()
    return make_record(index, tokens=2 + NEW, k=6, generated=make_generated(2, NEW, text=text))


def decoded_payload(change: Callable[[dict[str, Any]], None]) -> Any:
    """A record with a changed head, through the wire."""
    value = open_payload(encode_payload(generated_record()))
    change(value["head"])
    return decode_payload(close_payload(value), 0, VOCABULARY_SIZE)


def decoded_json(change: Callable[[dict[str, Any]], None]) -> Any:
    """A changed record, from the store."""
    value = orjson.loads(encode_outcome(generated_record()))
    change(value)
    return decode_outcome(msgspec.json.encode(value))


def test_wire_and_store_keep_it() -> None:
    """To the last bit, with and without a sample's number."""
    for sample in (0, 7, MAX_SAMPLES):
        record = make_record(tokens=5, generated=make_generated(2, 3, sample=sample, finish="eos"))
        assert same(decode_payload(encode_payload(record), 0, VOCABULARY_SIZE), record)
        assert same(decode_outcome(encode_outcome(record)), record)


FAULTS: dict[str, dict[str, Any]] = {
    "no prompt": {"start": 0},
    "before the prompt": {"start": -3},
    "nothing generated": {"start": 5},
    "after the tokens": {"start": 1 << 62},
    "another start": {"start": 3},
    "finish": {"finish": "stop"},
    "no text": {"text": None},
    "another text": {"text": "something else"},
    "too few logprobs": {"logprobs": [-1.0, -1.0]},
    "too many logprobs": {"logprobs": [-1.0] * 4},
    "logprob above 0": {"logprobs": [-1.0, 0.5, -1.0]},
    "infinite logprob": {"logprobs": [-1.0, -1e400, -1.0]},
    "logprob that is text": {"logprobs": ["-1", -1.0, -1.0]},
    "too few drawn": {"sampling_logprobs": []},
    "drawn above 0": {"sampling_logprobs": [0.0, 1e-9, 0.0]},
    "sample below 0": {"sample": -1},
    "sample too large": {"sample": MAX_SAMPLES + 1},
}


@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS)
def test_what_cannot_be_is_refused(fault: dict[str, Any]) -> None:
    """On the wire as a bad frame, in the store as a bad record."""
    with pytest.raises(FrameError):
        decoded_payload(lambda head: head["generated"].update(fault))
    with pytest.raises(StoreError, match="not a record of this format"):
        decoded_json(lambda value: value["generated"].update(fault))


@pytest.mark.parametrize("positions", [[0, 1, 2], [1, 2, 4], [2, 3, 4]])
def test_positions_must_be_the_steps(positions: list[int]) -> None:
    """Positions within the tokens, and as many as steps, that are other ones."""
    with pytest.raises(FrameError, match="positions are not those of the generation's steps"):
        decoded_payload(lambda head: head.update(positions=positions))
    with pytest.raises(StoreError, match="positions are not those of the generation's steps"):
        decoded_json(lambda value: value.update(positions=positions))


@pytest.mark.parametrize(("cut", "right"), [(2, False), (3, True), (5, True)])
def test_a_cut_prompt_was_longer_than_what_is_left_of_it(cut: int, right: bool) -> None:
    """The full length is compared with the prompt's tokens, not with those generated after it."""
    if right:
        assert decoded_payload(lambda head: head.update(truncated_from=cut)).truncated_from == cut
    else:
        with pytest.raises(FrameError, match="truncated from 2 tokens to 2"):
            decoded_payload(lambda head: head.update(truncated_from=cut))


def test_steps_of_a_record() -> None:
    """Each step's text is what was before it; one after another they make the whole."""
    record, vocabulary = generated_record(), make_vocabulary()
    found = list(steps(record, vocabulary))
    assert [step.position for step in found] == record.positions
    assert [step.token for step in found] == record.token_ids[2:]
    assert found[0].text == "four words of text"
    for step, following in pairwise(found):
        assert step.text + step.token_text == following.text
    assert found[-1].text + found[-1].token_text == record.text
    assert record.generated is not None
    assert [(step.logprob, step.sampling_logprob) for step in found] == list(
        zip(record.generated.logprobs, record.generated.sampling_logprobs, strict=True)
    )
    assert list(steps(make_record(), vocabulary)) == []


def test_lines_of_the_steps() -> None:
    """Token, text so far, and a row for each tap of each layer in which one is sure of a token; fewer with a higher threshold."""
    record, vocabulary = generated_record(), make_vocabulary()
    text = "\n".join(lines(record, vocabulary, 5, 3))
    blocks = text.strip().split("\n\n")
    assert len(blocks) == NEW
    for number, (block, step) in enumerate(zip(blocks, steps(record, vocabulary), strict=True)):
        head, so_far, rule, *rows = block.splitlines()
        assert head.startswith(f"step {number + 1}, after position {step.position}: ·t{step.token} with ")
        assert ("drawn with" in head) == (number > 0)
        assert so_far == f"text so far: {step.text}{step.token_text}"
        layers = sorted(sure_layers(record, number, 3))
        assert rule.endswith(f"has more than 3 %: {len(layers)} of 2")
        assert [row.split()[:2] for row in rows] == [[str(layer), tap] for layer in layers for tap in record.taps]
        assert all(row.count("%") == 5 for row in rows)
    counts = [len(list(lines(record, vocabulary, 1, percent))) for percent in (0, 3, 50, 99)]
    assert counts == sorted(counts, reverse=True)
    assert counts[0] > counts[-1] == 4 * NEW


def test_percents_are_cut_off_as_the_seed_cuts_them() -> None:
    """``int(value * 100)`` of Python floats that were float32: 0.04 is 3 percent, which a product in float32 makes 4."""
    logprobs = np.log(np.arange(1, 101) / 100).astype(np.float32)
    wanted = [int(float(np.float32(math.exp(logprob))) * 100) for logprob in logprobs]
    assert whole_percents(logprobs).tolist() == wanted
    assert (wanted[3], int(np.float32(math.exp(logprobs[3])) * 100)) == (3, 4)
    assert whole_percents(np.array([[-np.inf, 0.0]], np.float16)).tolist() == [[0, 100]]


def test_the_seeds_files_have_each_step(tmp_path: Any) -> None:
    """Steps of a record from 0, of the next record from where the first ended; of one record alone from 0 again."""
    folder, _ = make_run(tmp_path)
    # the layers of make_record, whose last is not the model's: the token that was written needs no last layer
    commit_outcomes(folder, generated_record(0), generated_record(1))
    run = open_store(tmp_path)["demo"]

    def written(name: str, **given: Any) -> Any:
        (path := tmp_path / name).write_bytes(b"")
        with path.open("wb") as file:
            FILES[name](run, file, **given)
        return orjson.loads(path.read_bytes())

    whole, second = written("all_layers.json"), written("all_layers.json", records=[run["prompt-1"]])
    assert list(whole) == [f"step_{number}" for number in range(2 * NEW)]
    assert list(second.values()) == list(whole.values())[NEW:]
    for record, offset in zip(run.records(), (0, NEW), strict=True):
        for step in steps(record, run.vocabulary):
            found = whole[f"step_{offset + step.number}"]
            assert (found["input_text"], found["predicted_token"]) == (step.text, step.token_text)
            lens = record.taps["resid_post"]
            wanted = [
                [f" t{token}", int(float(np.float32(math.exp(logprob))) * 100)]
                for token, logprob in zip(lens.ids[1, step.number], lens.logprobs[1, step.number], strict=True)
            ]
            assert found["all_layers_data"]["3"]["block_output"] == wanted
    important = written("important_layers.json")
    assert [list(map(int, step["important_layers"])) for step in important.values()] == [
        sorted(sure_layers(record, number)) for record in run.records() for number in range(NEW)
    ]
