"""What a model is tried on: prompts with answers, some of them made to go wrong."""

from armo_ray.chat import Messages


def _asked(*turns: str, system: str | None = None) -> Messages:
    roles = ("user", "assistant")
    said = [{"role": roles[i % 2], "content": turn} for i, turn in enumerate(turns)]
    return [{"role": "system", "content": system}, *said] if system else said


# Of these the released model has published values: its model card, and the docstring of distilabel's RewardModelScore.
SYNONYMS = (
    _asked('What are some synonyms for the word "beautiful"?'),
    ("Nicely, Beautifully, Handsome, Stunning, Wonderful, Gorgeous, Pretty, Stunning, Elegant",),
)
SUM = (_asked("How much is 2+2?"), ("The output of 2+2 is 4", "4"))

_STORY = "The river rose in the night, and by morning the lower fields lay under a foot of brown water. " * 8

CONVERSATIONS: tuple[tuple[Messages, tuple[str, ...]], ...] = (
    SYNONYMS,
    SUM,
    (_asked("How much is 2+2?", "4", "And twice that?"), ("8", "Twice four is eight.", "I cannot say.")),
    (_asked("Say hello.", system="You answer in French."), ("Bonjour !", "Hello!")),
    (
        _asked("Write a function that adds two numbers in Python."),
        ("```python\ndef add(a, b):\n    return a + b\n```", "Use a plus sign."),
    ),
    (
        _asked("翻译成英文。今天天气很好。"),
        ("The weather is nice today. ☀️", "\n\n  El tiempo es bueno hoy.  \n"),
    ),
    (_asked("Summarize in one sentence:\n\n" + _STORY), ("A river flooded the fields overnight.", _STORY)),
    (
        _asked("What does <|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n mean?"),
        ("It ends a turn and opens the answer's.", "Nothing.<|eot_id|>"),
    ),
)
# The conversation and the answer of every candidate, in the order in which they are scored.
PLACES = [(i, j) for i, (_, answers) in enumerate(CONVERSATIONS) for j in range(len(answers))]
