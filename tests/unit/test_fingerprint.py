"""What tells a model folder from another."""

from pathlib import Path

from raylens.workers.source import fingerprint


def test_of_tokenizer_and_all_parts_of_the_weights(tmp_path: Path) -> None:
    """It changes with the tokenizer, and with large weights at their beginning, middle and end; not with other files."""

    def written(name: str, data: bytes) -> str:
        (tmp_path / name).write_bytes(data)
        return fingerprint(tmp_path)

    size = 5 << 20
    seen = [written("config.json", b"{}"), written("tokenizer.json", b"{}"), written("model.safetensors", bytes(size))]
    for place in (0, size // 2, size - 1):
        changed = bytearray(size)
        changed[place] = 1
        seen.append(written("model.safetensors", bytes(changed)))
    seen.append(written("tokenizer.json", b"[]"))
    assert len(set(seen)) == len(seen)
    assert written("README.md", b"x") == seen[-1]
