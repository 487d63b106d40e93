"""Whether the chats of a corpus can be rendered by the model."""

from raylens.scheduler.corpus import CorpusSummary
from raylens.storage.errors import ModelError
from raylens.workers.preflight import ModelFacts


def check_chat(summary: CorpusSummary, facts: ModelFacts, remedy: str = "give --chat-template FILE") -> None:
    """Refuse prompts with messages for a model without a chat template, before it is loaded.

    Raises:
        ModelError: with the remedy.
    """
    if summary.has_messages and not facts.has_chat_template:
        raise ModelError(f"--model {facts.source.path}: has no chat template for prompts with messages; {remedy}")
