"""Small random models of many families, and what is true of each, written down from its source in transformers.

Defaults hide mistakes: norms of weight 1, biases of 0, writes a hundred times smaller than the residual, factors of 1. So
every weight here is random, every sublayer writes about as much as is there already, and caps and factors are switched on.
"""

import copy
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor, nn
from transformers import CONFIG_MAPPING, AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast
from transformers.utils import logging as transformers_logging

# products this small lose time waiting for a second thread
torch.set_num_threads(1)

VOCABULARY = 307

#: How close two float32 runs of different batches come; a GPU, where models are loaded if there is one, adds in other orders.
CLOSE = 1e-4 if torch.cuda.is_available() else 1e-5

#: Parameters with a meaning of their own (state spaces, gates), left as the family initializes them.
_KEPT = ("A_log", ".D", "dt_bias", "dt_proj.bias", "recurrent_param", "sinks", "xielu", "act_fn", "conv1d")


def same(logits: Tensor) -> Tensor:
    return logits


def softcap(logits: Tensor, cap: float) -> Tensor:
    return cap * torch.tanh(logits / cap)


def times(logits: Tensor, factor: float) -> Tensor:
    return logits * factor


@dataclass(frozen=True)
class Family:
    """How to build a small model, and what its blocks do.

    Attributes:
        config: settings; ``model_type`` among them where it is not the family's name.
        stack, norm: paths of the block list and the final norm.
        attn, mlp: modules whose output times ``scale`` is added to the residual; alternatives by layer after ``|``.
        mid: module whose input is the residual between the two; empty in parallel blocks.
        after: what follows the head.
        refused: taps the adapter refuses, each with words of its reason.
        ends: module whose input is the residual after the MLP, where more is added before the block ends.
    """

    config: dict[str, Any]
    stack: str = "model.layers"
    norm: str = "model.norm"
    attn: str = "self_attn"
    mlp: str = "mlp"
    mid: str = "post_attention_layernorm"
    scale: float = 1.0
    after: Callable[[Tensor], Tensor] = same
    refused: dict[str, str] = field(default_factory=dict)
    ends: str = ""


def _merge(*parts: dict[str, Any], **more: Any) -> dict[str, Any]:
    merged: dict[str, Any] = {}
    for part in (*parts, more):
        merged |= part
    return {name: value for name, value in merged.items() if value is not ...}


_IDS = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
_COMMON = _merge(
    _IDS,
    vocab_size=VOCABULARY,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=8,
    max_position_embeddings=64,
    tie_word_embeddings=False,
)
_GPT = _merge(_IDS, vocab_size=VOCABULARY, n_embd=32, n_layer=3, n_head=4, n_positions=64, n_inner=48, tie_word_embeddings=False)
_MOE = {"num_experts": 4, "num_local_experts": 4, "n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
_LATENT = _merge(
    _COMMON,
    head_dim=...,
    num_key_value_heads=4,
    q_lora_rank=16,
    kv_lora_rank=16,
    qk_rope_head_dim=8,
    qk_nope_head_dim=8,
    v_head_dim=8,
)
_DELTA = {
    "layer_types": ["linear_attention", "full_attention", "linear_attention"],
    "linear_num_value_heads": 4,
    "linear_num_key_heads": 2,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
}
_WINDOW = {"layer_types": ["sliding_attention", "full_attention", "sliding_attention"], "sliding_window": 4}
_OPT = _merge(
    _IDS,
    vocab_size=VOCABULARY,
    hidden_size=32,
    ffn_dim=48,
    num_hidden_layers=3,
    num_attention_heads=4,
    max_position_embeddings=64,
    word_embed_proj_dim=32,
    tie_word_embeddings=False,
)
_FALCON = _merge(_COMMON, head_dim=..., num_key_value_heads=..., intermediate_size=..., max_position_embeddings=64)

_PARALLEL = {"resid_mid": "in parallel"}
_MAMBA = {"resid_mid": "only once", "mlp_out": "only once"}
_NO_SUM = dict.fromkeys(("attn_out", "resid_mid", "mlp_out"), "was not found")

_POST_NORMS = {"attn": "post_attention_layernorm", "mlp": "post_feedforward_layernorm", "mid": "pre_feedforward_layernorm"}
_OLMO2 = {**_POST_NORMS, "mid": "mlp"}
_GPT_PLACES = {"stack": "transformer.h", "norm": "transformer.ln_f", "attn": "attn", "mid": "ln_2"}
_GPT_PARALLEL = {**_GPT_PLACES, "mid": "", "refused": _PARALLEL}
_FALCON_PLACES = {"stack": "transformer.h", "norm": "transformer.ln_f", "attn": "self_attention"}
_MAMBA_PLACES = {"stack": "backbone.layers", "norm": "backbone.norm_f", "attn": "mixer", "mlp": "", "mid": "", "refused": _MAMBA}

FAMILIES: dict[str, Family] = {
    "llama": Family(_COMMON),
    "qwen2": Family(_COMMON),
    "qwen3": Family(_COMMON),
    "mistral": Family(_merge(_COMMON, sliding_window=4)),
    "gpt2": Family(_GPT, **_GPT_PLACES),
    "gpt_neox": Family(
        _merge(_COMMON, use_parallel_residual=True),
        stack="gpt_neox.layers",
        norm="gpt_neox.final_layer_norm",
        attn="attention",
        mid="",
        refused=_PARALLEL,
    ),
    "gpt_neox, in turn": Family(
        _merge(_COMMON, model_type="gpt_neox", use_parallel_residual=False),
        stack="gpt_neox.layers",
        norm="gpt_neox.final_layer_norm",
        attn="attention",
    ),
    "ministral3": Family(_COMMON),
    "smollm3": Family(_merge(_COMMON, no_rope_layers=[1, 0, 1])),
    "qwen2_moe": Family(_merge(_COMMON, _MOE, shared_expert_intermediate_size=24, mlp_only_layers=[1])),
    "qwen3_moe": Family(_merge(_COMMON, _MOE, mlp_only_layers=[1])),
    "qwen3_next": Family(_merge(_COMMON, _MOE, _DELTA, shared_expert_intermediate_size=24), attn="linear_attn|self_attn"),
    "qwen3_5_text": Family(_merge(_COMMON, _DELTA), attn="linear_attn|self_attn"),
    "phi": Family(_COMMON, norm="model.final_layernorm", mid="", refused=_PARALLEL),
    "phi3": Family(_COMMON),
    "phimoe": Family(_merge(_COMMON, _MOE, lm_head_bias=True)),
    "gemma": Family(_COMMON),
    "gemma2": Family(
        _merge(_COMMON, final_logit_softcapping=3.0, attn_logit_softcapping=5.0, query_pre_attn_scalar=8, sliding_window=4),
        **_POST_NORMS,
        after=partial(softcap, cap=3.0),
    ),
    "gemma3_text": Family(_merge(_COMMON, _WINDOW, final_logit_softcapping=3.0), **_POST_NORMS, after=partial(softcap, cap=3.0)),
    "gemma4_text": Family(
        _merge(
            _COMMON,
            final_logit_softcapping=3.0,
            hidden_size_per_layer_input=8,
            vocab_size_per_layer_input=VOCABULARY,
            num_kv_shared_layers=0,
            global_head_dim=8,
        ),
        **_POST_NORMS,
        after=partial(softcap, cap=3.0),
        ends="per_layer_input_gate",
    ),
    "gemma4_text, large": Family(
        _merge(_COMMON, model_type="gemma4_text", hidden_size_per_layer_input=0, num_kv_shared_layers=0, global_head_dim=8),
        **_POST_NORMS,
    ),
    "gemma3, with pictures": Family(
        {
            "model_type": "gemma3",
            # set, but this class applies no softcap
            "text_config": _merge(_COMMON, _WINDOW, final_logit_softcapping=3.0),
            "vision_config": {
                "hidden_size": 16,
                "num_hidden_layers": 3,
                "num_attention_heads": 2,
                "intermediate_size": 16,
                "image_size": 28,
                "patch_size": 14,
            },
            "mm_tokens_per_image": 4,
        },
        stack="model.language_model.layers",
        norm="model.language_model.norm",
        **_POST_NORMS,
    ),
    "olmo": Family(_COMMON),
    "olmo2": Family(_COMMON, **_OLMO2),
    "olmo3": Family(_merge(_COMMON, _WINDOW), **_OLMO2),
    "olmoe": Family(_merge(_COMMON, _MOE)),
    "exaone4": Family(_merge(_COMMON, _WINDOW), **_OLMO2),
    "glm": Family(_COMMON),
    "glm4": Family(_COMMON, attn="post_self_attn_layernorm", mlp="post_mlp_layernorm"),
    "glm4_moe": Family(_merge(_COMMON, _MOE, first_k_dense_replace=1)),
    "gpt_bigcode": Family(_GPT, **_GPT_PLACES),
    "gpt_neo": Family(
        _merge(
            _IDS,
            vocab_size=VOCABULARY,
            hidden_size=32,
            num_layers=3,
            num_heads=4,
            intermediate_size=48,
            max_position_embeddings=64,
            attention_types=[[["global", "local", "global"], 1]],
            window_size=4,
            tie_word_embeddings=False,
        ),
        **_GPT_PLACES,
    ),
    "gptj": Family(_merge(_GPT, rotary_dim=4), **_GPT_PARALLEL),
    "codegen": Family(_merge(_GPT, rotary_dim=4), **_GPT_PARALLEL),
    "falcon": Family(
        _merge(_FALCON, new_decoder_architecture=False, parallel_attn=True, multi_query=True, bias=True),
        **_FALCON_PLACES,
        mid="",
        refused=_PARALLEL,
    ),
    "falcon, new": Family(
        _merge(_FALCON, model_type="falcon", new_decoder_architecture=True, num_kv_heads=2),
        **_FALCON_PLACES,
        mid="",
        refused=_PARALLEL,
    ),
    "falcon, in turn": Family(
        _merge(_FALCON, model_type="falcon", new_decoder_architecture=False, parallel_attn=False, alibi=True, bias=True),
        **_FALCON_PLACES,
    ),
    "bloom": Family(
        _merge(_IDS, vocab_size=VOCABULARY, hidden_size=32, n_layer=3, n_head=4, tie_word_embeddings=False),
        stack="transformer.h",
        norm="transformer.ln_f",
        attn="self_attention.dense",
        mlp="mlp.dense_4h_to_h",
    ),
    "mpt": Family(
        _merge(
            vocab_size=VOCABULARY, d_model=32, n_layers=3, n_heads=4, max_seq_len=64, expansion_ratio=2, tie_word_embeddings=False
        ),
        stack="transformer.blocks",
        norm="transformer.norm_f",
        attn="attn",
        mlp="ffn.down_proj",
        mid="norm_2",
    ),
    "opt": Family(_OPT, stack="model.decoder.layers", norm="model.decoder.final_layer_norm", mlp="fc2", mid="final_layer_norm"),
    "xglm": Family(
        _merge(
            _IDS,
            vocab_size=VOCABULARY,
            d_model=32,
            ffn_dim=48,
            num_layers=3,
            attention_heads=4,
            max_position_embeddings=64,
            tie_word_embeddings=False,
        ),
        norm="model.layer_norm",
        mlp="fc2",
        mid="final_layer_norm",
    ),
    "recurrent_gemma": Family(
        _merge(
            _COMMON,
            lru_width=32,
            attention_window_size=8,
            logits_soft_cap=3.0,
            block_types=["recurrent", "recurrent", "attention"],
        ),
        norm="model.final_norm",
        attn="temporal_block",
        mlp="mlp_block",
        mid="channel_pre_norm",
        after=partial(softcap, cap=3.0),
    ),
    "stablelm": Family(_COMMON),
    "stablelm, parallel": Family(_merge(_COMMON, model_type="stablelm", use_parallel_residual=True), mid="", refused=_PARALLEL),
    "starcoder2": Family(_COMMON),
    "nemotron": Family(_COMMON),
    "mixtral": Family(_merge(_COMMON, _MOE)),
    "deepseek_v3": Family(_merge(_LATENT, _MOE, n_group=2, topk_group=1, first_k_dense_replace=1, n_shared_experts=1)),
    "gpt_oss": Family(_merge(_COMMON, _MOE, _WINDOW)),
    "llama4_text": Family(_merge(_COMMON, _MOE, intermediate_size_mlp=48), mlp="feed_forward"),
    "granite": Family(
        _merge(_COMMON, residual_multiplier=0.6, logits_scaling=2.0, embedding_multiplier=1.7, attention_multiplier=0.3),
        scale=0.6,
        after=partial(times, factor=1 / 2.0),
    ),
    # as Granite, with norms on the writes, and a factor on the logits that is not divided by
    "hyperclovax": Family(
        _merge(_COMMON, residual_multiplier=0.6, logits_scaling=2.0, embedding_multiplier=1.7, attention_multiplier=0.3),
        attn="post_norm1",
        mlp="post_norm2",
        scale=0.6,
        after=partial(times, factor=2.0),
    ),
    "granitemoe": Family(
        _merge(_COMMON, _MOE, residual_multiplier=0.6, logits_scaling=2.0, embedding_multiplier=1.7),
        mlp="block_sparse_moe",
        scale=0.6,
        after=partial(times, factor=1 / 2.0),
    ),
    "granitemoehybrid": Family(
        _merge(
            _COMMON,
            layer_types=["mamba", "attention", "mamba"],
            num_local_experts=0,
            mamba_n_heads=4,
            mamba_d_head=16,
            mamba_d_state=8,
            residual_multiplier=0.6,
            logits_scaling=2.0,
            shared_intermediate_size=24,
        ),
        attn="mamba|self_attn",
        mlp="shared_mlp",
        scale=0.6,
        after=partial(times, factor=1 / 2.0),
    ),
    "granitemoehybrid, experts": Family(
        _merge(
            _COMMON,
            _MOE,
            model_type="granitemoehybrid",
            layer_types=["mamba", "attention", "mamba"],
            mamba_n_heads=4,
            mamba_d_head=16,
            mamba_d_state=8,
            residual_multiplier=0.6,
            logits_scaling=2.0,
            shared_intermediate_size=24,
        ),
        attn="",
        mlp="",  # the sum of block_sparse_moe and shared_mlp
        mid="",
        after=partial(times, factor=1 / 2.0),
        refused=_NO_SUM,
    ),
    "minicpm3": Family(
        _merge(_LATENT, scale_depth=1.4, dim_model_base=16, scale_emb=3),
        scale=1.4 / 3**0.5,
        after=partial(times, factor=16 / 32),
    ),
    "cohere": Family(_merge(_COMMON, logit_scale=0.4), mid="", after=partial(times, factor=0.4), refused=_PARALLEL),
    "cohere2": Family(_merge(_COMMON, _WINDOW, logit_scale=0.4), mid="", after=partial(times, factor=0.4), refused=_PARALLEL),
    "falcon_h1": Family(
        _merge(
            _COMMON,
            mamba_d_ssm=32,
            mamba_n_heads=4,
            mamba_d_head=8,
            mamba_d_state=8,
            mamba_expand=1,
            mamba_chunk_size=8,
            attention_out_multiplier=0.7,
            ssm_out_multiplier=0.6,
            lm_head_multiplier=0.5,
            embedding_multiplier=1.3,
        ),
        norm="model.final_layernorm",
        attn="",  # the sum of self_attn and mamba
        mlp="feed_forward",
        mid="pre_ff_layernorm",
        after=partial(times, factor=0.5),
        refused={"attn_out": "no one known module"},
    ),
    "mamba": Family(_merge(_COMMON, state_size=8), **_MAMBA_PLACES),
    "mamba2": Family(_merge(_COMMON, num_heads=8, head_dim=8, state_size=8, n_groups=2, chunk_size=8), **_MAMBA_PLACES),
    "falcon_mamba": Family(_merge(_COMMON, state_size=8), **_MAMBA_PLACES),
    "nemotron_h": Family(
        _merge(
            _COMMON,
            _MOE,
            layers_block_type=["mamba", "attention", "moe"],
            mamba_num_heads=4,
            mamba_head_dim=8,
            ssm_state_size=8,
            n_groups=2,
            chunk_size=8,
        ),
        norm="model.norm_f",
        attn="",
        mlp="",
        mid="",
        refused=dict.fromkeys(("attn_out", "resid_mid", "mlp_out"), "parts of different kinds"),
    ),
    "jamba": Family(
        _merge(
            _COMMON,
            _MOE,
            attn_layer_period=3,
            attn_layer_offset=1,
            expert_layer_period=2,
            expert_layer_offset=1,
            mamba_d_state=8,
            mamba_expand=2,
            mamba_dt_rank=4,
            use_mamba_kernels=False,
        ),
        norm="model.final_layernorm",
        attn="mamba|self_attn",
        mlp="feed_forward",
        mid="pre_ff_layernorm",
    ),
    "bamba": Family(
        _merge(_COMMON, mamba_n_heads=4, mamba_d_head=16, mamba_d_state=8, attn_layer_indices=[1]),
        norm="model.final_layernorm",
        attn="mamba|self_attn",
        mlp="feed_forward",
        mid="pre_ff_layernorm",
    ),
    "lfm2": Family(
        _merge(_COMMON, layer_types=["conv", "full_attention", "conv"]),
        norm="model.embedding_norm",
        attn="conv|self_attn",
        mlp="feed_forward",
        mid="ffn_norm",
    ),
    "lfm3": Family(
        _merge(_COMMON, layer_types=["conv", "full_attention", "conv"]),
        norm="model.embedding_norm",
        attn="post_operator_norm",
        mlp="post_ffn_norm",
        mid="ffn_norm",
    ),
    "helium": Family(_COMMON),
    "ernie4_5": Family(_COMMON),
    "arcee": Family(_COMMON),
    "apertus": Family(_COMMON, mid="feedforward_layernorm"),
    "seed_oss": Family(_COMMON),
    "nanochat": Family(_COMMON, after=partial(softcap, cap=15.0)),
    # alpha x + beta f(x) with a norm on the residual itself: what attention adds is not added to resid_pre
    "minimax": Family(
        _merge(_COMMON, _MOE, mlp_alpha_factor=0.9, mlp_beta_factor=0.8, full_attn_alpha_factor=0.9),
        attn="",
        mlp="",
        mid="",
        refused=_NO_SUM,
    ),
    # post-norm blocks: the residual itself is normed, so no sum holds; there is no final norm
    "openai-gpt": Family(_GPT, stack="transformer.h", norm="", attn="", mlp="", mid="", refused=_NO_SUM),
}
for _name in ("minicpm3", "hyperclovax", "lfm3"):  # raylens takes older transformers too, which do not have them
    if _name not in CONFIG_MAPPING:
        del FAMILIES[_name]


def path(module: nn.Module, name: str) -> nn.Module | None:
    """The first of the alternatives in ``a|b`` that the module has."""
    found = dict(module.named_modules())
    return next((found[part] for part in name.split("|") if part and part in found), None)


@cache
def build(name: str) -> Any:
    """The family's model, float32, the same at each call."""
    family = FAMILIES[name]
    settings = dict(family.config)
    return make(settings.pop("model_type", name), **settings)


def make(model_type: str, seed: int = 0, **settings: Any) -> Any:
    """A model of random weights in evaluation mode."""
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(model_type, **settings)).eval()
    return randomize(model, seed)


@torch.no_grad()
def randomize(model: Any, seed: int = 0) -> Any:
    """Give every weight a random value such that each sublayer writes about as much as the residual holds."""
    generator = torch.Generator().manual_seed(seed)
    for name, value in [*model.named_parameters(), *model.named_buffers()]:
        noise = torch.randn(value.shape, generator=generator)
        if any(kept in name for kept in _KEPT) or not value.is_floating_point():
            continue
        if name.endswith("layer_scalar"):
            value.copy_(0.7 + 0.1 * noise)
        elif name not in dict(model.named_parameters()):
            continue
        elif value.dim() == 1:
            value.copy_(value.mean().round() + 0.3 * noise)
        elif "embed" in name or "wte" in name or "wpe" in name:
            value.copy_(noise)
        else:
            value.copy_(1.5 * noise / value.shape[-1] ** 0.5)
    return model


@dataclass
class Seen:
    """What our own hooks saw of one block, [T, D] each."""

    pre: Tensor = field(default_factory=lambda: torch.empty(0))
    post: Tensor = field(default_factory=lambda: torch.empty(0))
    attn: Tensor | None = None
    mlp: Tensor | None = None
    mid: Tensor | None = None
    end: Tensor | None = None


def _one(value: Any) -> Tensor:
    while isinstance(value, tuple | list):
        value = value[0]
    assert isinstance(value, Tensor)
    return value.detach().clone().reshape(-1, value.shape[-1])


def _read(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    return _one(args if args else kwargs["hidden_states"])


@torch.no_grad()
def see(model: Any, family: Family, ids: Tensor) -> tuple[list[Seen], Tensor]:
    """Hook the modules the family's row names, with no code of the adapter; blocks and logits."""
    blocks: list[Seen] = []
    with ExitStack() as hooks:
        for block in model.get_submodule(family.stack):
            seen = Seen()
            blocks.append(seen)

            def pre(_module: nn.Module, args: Any, kwargs: Any, seen: Seen = seen) -> None:
                seen.pre = _read(args, kwargs)

            def post(_module: nn.Module, _args: Any, output: Any, seen: Seen = seen) -> None:
                seen.post = _one(output)

            hooks.callback(block.register_forward_pre_hook(pre, with_kwargs=True).remove)
            hooks.callback(block.register_forward_hook(post).remove)
            for place, name in (("attn", family.attn), ("mlp", family.mlp)):
                if (module := path(block, name)) is not None:
                    hooks.callback(module.register_forward_hook(_keep_output(seen, place, family.scale)).remove)
            for place, name in (("mid", family.mid), ("end", family.ends)):
                if (module := path(block, name)) is not None:
                    hooks.callback(module.register_forward_pre_hook(_keep_input(seen, place), with_kwargs=True).remove)
        logits = model(input_ids=ids, use_cache=False).logits[0]
    return blocks, logits


def _keep_output(seen: Seen, place: str, scale: float) -> Callable[..., None]:
    return lambda _module, _args, output: setattr(seen, place, _one(output) * scale)


def _keep_input(seen: Seen, place: str) -> Callable[..., None]:
    return lambda _module, args, kwargs: setattr(seen, place, _read(args, kwargs))


def save(folder: Path, name: str = "llama", spoiled: int | None = None, dtype: torch.dtype = torch.float32) -> Path:
    """Save the family's model with a tokenizer whose token n is the word ``wn``.

    Args:
        folder: where to.
        name: of the family.
        spoiled: a token whose embedding is not a number.
        dtype: of the weights.
    """
    model = copy.deepcopy(build(name)).to(dtype)
    if spoiled is not None:
        with torch.no_grad():
            model.get_input_embeddings().weight[spoiled] = torch.nan
    transformers_logging.disable_progress_bar()
    model.save_pretrained(folder)
    core = Tokenizer(models.WordLevel({f"w{number}": number for number in range(VOCABULARY)}, unk_token="w0"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=core, unk_token="w0").save_pretrained(folder)
    return folder


def sentence(ids: list[int]) -> str:
    """The text whose ids these are."""
    return " ".join(f"w{number}" for number in ids)
