"""``raylens run --dry-run``: what a run would take, rehearsed on a part of its corpus."""
