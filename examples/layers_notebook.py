# %% [markdown]
# # Two prompts, layer by layer
#
# A script of cells, for an editor that runs them one by one (VS Code, PyCharm, Spyder), or `python examples/layers_notebook.py`.

# %%
import numpy as np

import raylens

run = raylens.run(
    ["The capital of France is", "The capital of Germany is"],
    model="demo",
    store="raylens-store",
    name="layers-notebook",
    stats="kl",
    track=[" Paris", " Berlin"],
    quiet=True,
)

# %% [markdown]
# What each layer would say, read at the block's output: the best token at the last position, and its distance from the last.

# %%
for record in run.records():
    print(record.text)
    tap = record.taps["resid_post"]
    for layer, best, nats in zip(tap.layers, record.to_str_tokens(tap.ids[:, -1, 0]), tap.stats["kl"][:, -1], strict=True):
        print(f"  {layer:3}  {nats:6.2f} nats  {best!r}")

# %% [markdown]
# Whether attention or the MLP brings the answer: how often each is the first to have it on top.

# %%
for row in run.query("handoff"):
    if row["first"]:
        print(f"layer {row['layer']:2}, {row['part']}: {row['first']} of {len(run)} prompts")

# %% [markdown]
# The mean distance of each tap from the final prediction, over all layers.

# %%
for name in ("attn_out", "resid_mid", "mlp_out", "resid_post"):
    print(f"{name:10}  {np.mean([record.taps[name].stats['kl'] for record in run.records()]):.2f} nats")
