"""Text for a terminal."""


def printable(text: str) -> str:
    """One line that a terminal takes no orders from: names of folders, what a run's files say and what a server answers may be
    anybody's."""
    from raylens.storage.labels import text_label

    return text if text.isprintable() else text_label(text)
