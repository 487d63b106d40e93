"""Whether the chats of a corpus can be rendered by the model."""

from raylens.scheduler.corpus import CorpusSummary
from raylens.storage.errors import ModelError
from raylens.workers.preflight import ModelFacts


def check_chat(summary: CorpusSummary, facts: ModelFacts) -> None:
    """Refuse prompts with messages for a model without a chat template, before it is loaded.

    Raises:
        ModelError: naming the option that gives one.
    """
    if summary.has_messages and not facts.has_chat_template:
        raise ModelError(
            f"--model {facts.source.path}: has no chat template for prompts with messages; give --chat-template FILE"
        )
