"""What the figures were measured on."""

import os
import platform
from pathlib import Path


def processor() -> str:
    """The name of the CPU, as far as the system tells."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return f"{len(names)} x {names[0]}" if names else platform.processor()


def load() -> str:
    """How many processes wanted to run in the last minute."""
    return f"load {os.getloadavg()[0]:.1f}"
