"""Models, hooks and the lens: what happens to a prompt. No ray outside actor.py."""
