"""The type of a conversation, apart from what renders it: many modules name it that render nothing."""

from typing import Any

Messages = list[dict[str, Any]]  # role, content and any other fields of a turn that the template reads
