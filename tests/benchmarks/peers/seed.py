"""What LogitLens4LLMs does for a prompt, made again from a description of its method; its pictures are left out.

For each of ten tokens: the text so far is tokenized and run through the model, whose every block is wrapped so that attention
output, middle residual, MLP output (the MLP runs a second time for it) and block output go through norm and head at all
positions; softmax, top-k and decoding follow for the last position of each. The model, wrapped as it is, then runs once more for
the next token. There is no key-value cache between steps. At the end both JSON files are written.

It differs from the original in that the nucleus holds one token, which makes its sampling greedy and so comparable, and in that
wrapped blocks take what transformers 5 passes to them.
"""

import json
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.benchmarks.peers.turns import K, Tops, serve

NEW_TOKENS, TEMPERATURE, TOP_P, THRESHOLD = 10, 0.7, 0.0, 3
#: Its names for the taps.
NAMES = {
    "attn_out": "attention_mechanism",
    "resid_mid": "intermediate_residual",
    "mlp_out": "mlp_output",
    "resid_post": "block_output",
}

#: component -> (token, whole percent) of the best.
_Layer = dict[str, list[tuple[str, int]]]


class Attention(nn.Module):
    """Attention that remembers its output."""

    def __init__(self, attention: nn.Module) -> None:
        super().__init__()
        self.attention = attention

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """As of the attention."""
        output = self.attention(*args, **kwargs)
        self.output = output[0]
        return output


class Block(nn.Module):
    """A block that unembeds four places at all positions on every pass, and keeps the logits until the next."""

    def __init__(self, block: Any, norm: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.block = block
        self.block.self_attn = Attention(block.self_attn)
        self.norm, self.head = norm, head
        self.logits: dict[str, Tensor] = {}

    def forward(self, hidden: Tensor, *args: Any, **kwargs: Any) -> Any:
        """As of the block."""
        output = self.block(hidden, *args, **kwargs)
        attention = self.block.self_attn.output
        middle = attention + hidden
        mlp = self.block.mlp(self.block.post_attention_layernorm(middle))
        places = {"attn_out": attention, "resid_mid": middle, "mlp_out": mlp, "resid_post": output}
        self.logits = {NAMES[tap]: self.head(self.norm(value)) for tap, value in places.items()}
        return output


class Seed:
    """A wrapped model."""

    packages = ("torch", "transformers")

    def __init__(self, folder: str) -> None:
        self._tokenizer = AutoTokenizer.from_pretrained(folder)
        self._model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        body = self._model.model
        for number, block in enumerate(body.layers):
            body.layers[number] = Block(block, body.norm, self._model.lm_head)

    @torch.no_grad()
    def lens(self, texts: list[str], taps: list[str]) -> list[dict[str, Any]]:
        """A step for each new token of each text, as its JSON has them."""
        steps = [step for text in texts for step in self._generate(text)]
        with tempfile.TemporaryDirectory() as folder:
            for name in ("important_layers", "all_layers_data"):
                rows = {
                    f"step_{number}": {key: step[key] for key in ("input_text", "predicted_token", name)}
                    for number, step in enumerate(steps)
                }
                Path(folder, f"{name}.json").write_text(json.dumps(rows, indent=2, ensure_ascii=False), encoding="utf-8")
        return steps

    def _generate(self, text: str) -> list[dict[str, Any]]:
        steps = []
        ids = self._tokenizer(text, return_tensors="pt").input_ids
        for _ in range(NEW_TOKENS):
            layers = self._decode(text)
            chosen = _sample(self._model(ids).logits[:, -1] / TEMPERATURE)
            token = self._tokenizer.decode(chosen[0])
            steps.append(
                {"input_text": text, "predicted_token": token, "all_layers_data": layers, "important_layers": _important(layers)}
            )
            ids = torch.cat([ids, chosen], dim=1)
            text += token
        return steps

    def _decode(self, text: str) -> dict[int, _Layer]:
        self._model(self._tokenizer(text, return_tensors="pt").input_ids)
        blocks = self._model.model.layers
        return {
            number: {name: self._best(logits[0, -1]) for name, logits in block.logits.items()}
            for number, block in enumerate(blocks)
        }

    def _best(self, logits: Tensor) -> list[tuple[str, int]]:
        values, ids = torch.softmax(logits, dim=-1).topk(K)
        return list(
            zip(self._tokenizer.batch_decode(ids.unsqueeze(1)), [int(value * 100) for value in values.tolist()], strict=True)
        )

    def tops(self, found: list[dict[str, Any]], taps: list[str]) -> Tops:
        """See Peer: tokens as text, as it stores no ids, and no logprobs."""
        layers = range(len(self._model.model.layers))
        return {
            tap: ([[step["all_layers_data"][layer][NAMES[tap]][0][0] for step in found] for layer in layers], None)
            for tap in taps
        }


def _sample(logits: Tensor) -> Tensor:
    """[1, 1] id of the token drawn from the nucleus."""
    ordered, order = torch.softmax(logits, dim=-1).sort(descending=True)
    outside = ordered.cumsum(dim=-1) > TOP_P
    outside[:, 1:] = outside[:, :-1].clone()
    outside[:, 0] = False
    kept = logits.masked_fill(outside.scatter(1, order, outside), -torch.inf)
    return torch.multinomial(torch.softmax(kept, dim=-1), num_samples=1)


def _important(layers: dict[int, _Layer]) -> dict[int, _Layer]:
    """The layers in which any component but the middle residual is sure of a token."""
    kept = {
        number: {name: best for name, best in layer.items() if name != NAMES["resid_mid"]} for number, layer in layers.items()
    }
    return {number: layer for number, layer in kept.items() if any(best[0][1] > THRESHOLD for best in layer.values())}


if __name__ == "__main__":
    serve(Seed)
