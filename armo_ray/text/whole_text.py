"""Conversations as one text, for servers that take text and tokenize it themselves."""

from armo_ray.model.chat import Chat
from armo_ray.text.conversations import Candidate
from armo_ray.text.paths import Rejected
from armo_ray.text.rendering import Renderer


class WholeText:
    """Renders conversations by the chat template of a model, with BOS."""

    def __init__(self, chat: Chat) -> None:
        self.chat = chat
        self.renderer = Renderer(chat, plain=True)

    def __call__(self, candidate: Candidate) -> tuple[str, int]:
        """The text of a conversation, and the number of its tokens. Raises Rejected(reason, detail)."""
        prompt = self.renderer.prompt(candidate.prompt, candidate.tools)
        if prompt.error is not None:
            raise Rejected(*prompt.error)
        response = self.renderer.response(candidate, prompt)
        if response.error is not None:
            raise Rejected(*response.error)
        if prompt.flagged or response.flagged:
            detail = "the conversation spells a special token, which a server would read as the token"
            raise Rejected("unsupported_content", detail)
        text = prompt.text + response.text
        return text, len(self.chat.encode(text))
