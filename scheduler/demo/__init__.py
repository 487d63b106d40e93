"""The bundled demo corpus: sixteen short public-domain or self-made prompts of varied kind."""

from pathlib import Path

#: JSON lines with id, text and the metadata ``kind``.
PROMPTS = Path(__file__).with_name("prompts.jsonl")
