"""The tokens whose logits a head reads, as rows of the language-model head. Needs no torch."""

from armo_ray.errors import ConfigError
from armo_ray.model.chat import Chat
from armo_ray.model.families import Family
from armo_ray.model.tokenizer_file import num_ids


def token_rows(family: Family, chat: Chat) -> list[int]:
    """The ids of the tokens whose logits a family reads. Raises ConfigError if a text is not one token."""
    rows = []
    size = num_ids(chat.tokenizer)
    for token in family.tokens:
        ids = [token] if isinstance(token, int) else chat.encode(token)
        if len(ids) != 1 or not 0 <= ids[0] < size:
            found = f"{len(ids)} tokens" if len(ids) != 1 else f"not below {size}, the number of tokens"
            raise ConfigError(f"family {family.name}: the token {token!r} is {found} in this tokenizer")
        rows.append(ids[0])
    if len(set(rows)) < len(rows):
        raise ConfigError(f"family {family.name}: two of the tokens {family.tokens} are the same: {rows}")
    return rows
