"""The corpus, the Ray actors and the run: who works on which prompt, and the command line."""
