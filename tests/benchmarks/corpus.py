"""The 64 prompts of the benchmarks: the sixteen of ``raylens demo`` and 48 more of the kinds that people lens.

Needs only the standard library: every peer reads it in an environment of its own.
"""

import json
from pathlib import Path

_DEMO = Path(__file__).parents[2] / "scheduler" / "demo" / "prompts.jsonl"

PROMPTS = [
    *(json.loads(line)["text"] for line in _DEMO.read_text(encoding="utf-8").splitlines()),
    "The largest planet in the solar system is",
    "Water is made of hydrogen and",
    "She opened the door and saw",
    "def add(a, b): return",
    "Once upon a time there was a",
    "The opposite of cold is",
    "In 1969 the first man walked on the",
    "To be or not to be, that is the",
    "Two plus two is",
    "The sun rises in the",
    "The capital of Japan is",
    "The Eiffel Tower is in the city of",
    "When Mary and John went to the store, John gave a drink to",
    "The first president of the United States was George",
    "Apples, pears, plums and",
    "Red, orange, yellow, green,",
    "One, two, three, four,",
    "January, February, March,",
    "If today is Monday, tomorrow is",
    "The past tense of go is",
    "The plural of mouse is",
    "A doctor works in a",
    "The teacher wrote on the",
    "Ice is cold, fire is",
    "The cat sat on the",
    "The key to the cabinets",
    "The keys to the cabinet",
    "Paris is to France as Berlin is to",
    "King is to man as queen is to",
    "The chemical symbol of gold is",
    "Light travels faster than",
    "The speed of light is about 300,000 kilometres per",
    "Shakespeare wrote Romeo and",
    "The author of War and Peace is Leo",
    "The Great Wall is in",
    "The currency of Japan is the",
    "People in Brazil speak",
    "English: dog. French: chien. English: cat. French:",
    "Question: Is the sky green? Answer:",
    "Thank you very",
    "I would like a cup of",
    "He was late because the train",
    "import numpy as",
    "for i in range(",
    "SELECT name FROM",
    "El perro es un",
    "La vie est",
    "3, 6, 9, 12,",
]
