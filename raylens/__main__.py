"""``raylens`` and ``python -m raylens``."""

from raylens.scheduler.cli import main

if __name__ == "__main__":
    main()
