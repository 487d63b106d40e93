"""A package, so that the ``tests`` that a library of a peer installs is not taken for it."""
