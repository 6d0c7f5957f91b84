"""The families of reward models: which text each reads, at which tokens, and which numbers it returns.

Plain data. `model/recognize.py` identifies a family by its tensors, `text/` renders its input, and `engine/heads.py`
computes rewards from its hidden states.
"""

from dataclasses import dataclass
from typing import Literal

# Conversations of question and response in turn, of a family whose tokenizer has no chat template.
_IN_TURN = (
    "{% for m in messages %}{% if m['role'] != ['user', 'assistant'][loop.index0 % 2] %}"
    "{{ raise_exception('only turns of user and assistant, in turn') }}{% endif %}"
)
_ULTRARM = _IN_TURN + (
    "{% if loop.index0 % 2 == 0 %}{{ 'Human: ' + m['content'] + '\nAssistant:' }}"
    "{% else %}{{ ' ' + m['content'] + ('' if loop.last else '\n') }}{% endif %}{% endfor %}"
)
_EURUS = _IN_TURN + (
    "{% if loop.index > 2 %}{{ raise_exception('only one question and its response') }}{% endif %}"
    "{% if loop.first %}{{ '[INST] ' + m['content'] + ' [/INST]' }}{% else %}{{ ' ' + m['content'] }}{% endif %}"
    "{% endfor %}"
)
_BEAVER = (
    "{{ 'BEGINNING OF CONVERSATION: ' }}"
    + _IN_TURN
    + (
        "{% if loop.index0 % 2 == 0 %}{{ 'USER: ' + m['content'] + ' ASSISTANT:' }}"
        "{% else %}{{ m['content'] + ('' if loop.last else eos_token) }}{% endif %}{% endfor %}"
    )
)
# A question and its response as two texts, the way an encoder's tokenizer joins a pair.
_PAIR = _IN_TURN + (
    "{% if loop.index > 2 %}{{ raise_exception('only one question and its response') }}{% endif %}"
    "{{ (cls_token if loop.first else '') + m['content'] + sep_token }}{% endfor %}"
)
# A question and two responses to it, each a text of its own after its mark; a question alone is only its text.
PAIR_MARKS = ("<|source|>", "<|candidate1|>", "<|candidate2|>")
_PAIRRM = (
    "{% for m in messages %}{% if m['role'] != ('user' if loop.first else 'assistant') or loop.index > 3 %}"
    "{{ raise_exception('only one question and its responses') }}{% endif %}{{ cls_token + ["
    + ", ".join(f"'{mark}'" for mark in PAIR_MARKS)
    + "][loop.index0] + m['content'] + sep_token }}{% endfor %}"
)
_NO_END = (
    "its model card scores a response without the end token that its training appends; it is left out here"
)

LABEL_MASS = "label_mass"

Activation = Literal["relu", "leaky_relu", "gelu", "silu", "selu", "tanh"]
# A prompt of one question, of a family without a chat template.
_QUESTION = "{{ messages[0]['content'] }}"

# Texts in which the steps of a response follow each other, without verdicts in turns.
STEPS_AT_ONCE = ("marked", "prose", "lines")
# The system prompt in the model card of Qwen2.5-Math-PRM.
_REASON = "Please reason step by step, and put your final answer within \\boxed{}."


@dataclass(frozen=True)
class Family:
    """One kind of head.

    text: "response" is the conversation with its response; "outcome" puts the response into the user's turn and asks
        for a verdict, + or -; "steps" does so for each step of the response; "pairs" asks which of two responses is
        better; "whole" is the conversation with its response, encoded as one text in a template of the family's own;
        "marked" is the conversation with a special token after each step of the response, if the family has one, or
        with its steps as paragraphs; "prose" is a question and
        its steps as one text, with a word after each step; "lines" is a question and its steps as lines, each of which
        is encoded by itself, without a chat template.
    reads: which tokens the head reads. "first": the first token; "last": the last token; "gate": the end of the last
        user turn and the last token; "headers": the end of every assistant header; "before_zero": the token before
        the first with id 0, or the last token if there is none; "marks": the token after every step of the response;
        "sides": the tokens before a question and before each of two responses;
        "response": the tokens before each token of the response, where a language model predicts it; of steps, those
        from the last token of the header on.
    bidirectional: whether a token attends to all others: an encoder, which computes each conversation in full.
    gated: whether the head returns a weight for each reward.
    bos: whether a conversation begins with the BOS token, if the tokenizer has one.
    step_end: text that ends a step of a response; for "outcome", text that marks a step and is removed.
    max_length: maximum number of tokens in a conversation, if the authors' code states one.
    layers: for a head that is a chain of linear layers, their names in the checkpoint, from the hidden state on.
    biased: whether these layers have a bias.
    activation: the function between consecutive layers.
    tokens: for a head that reads logits of the language model, the tokens, as text or as rows of the language-model
        head. The reward of one token is its logit; the rewards of several are the probability of each among them.
    labels: the names of the rewards, if the config does not give them.
    values: the weight of each reward in the score; without them, the score is the mean of the rewards.
    append: text of a special token that is put after a response, and read.
    template: the chat template, if the authors' code does not use the tokenizer's.
    mark: text of the token after each step, which a family reads that is not asked for verdicts in turns.
    system: the system prompt of a conversation that has none, if the authors' code gives one, even an empty one.
    beta: of a policy that is compared with its reference model, the factor of the log ratios, unless another is given.
    unverified: what could not be checked against the authors' code; such a family must be asked for by its name.
    """

    name: str
    text: Literal["response", "outcome", "steps", "pairs", "whole", "marked", "prose", "lines"] = "response"
    reads: Literal["first", "last", "gate", "headers", "before_zero", "marks", "sides", "response"] = "last"
    bidirectional: bool = False
    gated: bool = False
    bos: bool = True
    step_end: str = ""
    max_length: int | None = None
    layers: tuple[str, ...] = ()
    biased: bool = True
    activation: Activation = "relu"
    tokens: tuple[int | str, ...] = ()
    labels: tuple[str, ...] = ()
    values: tuple[float, ...] = ()
    append: str = ""
    template: str = ""
    mark: str = ""
    system: str | None = None
    beta: float = 0.1
    unverified: str = ""

    @property
    def reads_logits(self) -> bool:
        """Whether the head is the language model's own, so that no tensor identifies the family."""
        judges = self.text in ("outcome", "steps", "pairs", "prose") and not self.bidirectional
        return bool(self.tokens) or judges or self.reads == "response"

    @property
    def by_step(self) -> bool:
        """Whether the rewards are those of the steps of a response."""
        return self.text in ("steps", *STEPS_AT_ONCE)

    @property
    def label_names(self) -> tuple[str, ...]:
        """The names of the rewards, unless they are the config's or those of a known model.

        Of several tokens, the last reward is the probability that these have together in the whole vocabulary.
        """
        if len(self.tokens) > 1:
            return (*self.labels, LABEL_MASS)
        return self.labels or (("reward",) if self.tokens else ())


# Any decoder, whatever head it has or lacks: it reads the text and the tokens of armorm, and returns no rewards. Of use
# where hidden states are kept, and not one of those that a user can name.
HIDDEN = Family("hidden", reads="gate")

FAMILIES = {
    family.name: family
    for family in (
        Family("armorm", reads="gate", gated=True),
        Family("qrm", reads="gate", gated=True),
        Family("classifier"),
        Family("mlp-classifier"),
        Family("urm", gated=True),
        Family("value-head"),
        Family("starling", reads="before_zero", bos=False, max_length=2048),
        Family("orm-mistral", text="outcome", step_end=" ки", max_length=8192),
        Family("orm-deepseek", text="outcome", max_length=8192),
        Family("prm-mistral", text="steps", reads="headers", step_end="ки\n", max_length=8192),
        Family("prm-deepseek", text="steps", reads="headers", step_end="\n\n", max_length=8192),
        Family("pairwise", text="pairs", bos=False, max_length=8192),
        Family("trl-value-head", layers=("v_head.summary",)),
        Family("grm", layers=("v_head.summary.0", "v_head.summary.2")),
        Family("token-logit", tokens=(0,)),
        Family("dpo", reads="response", labels=("reward",)),
        Family(
            "athene",
            layers=("v_head",),
            biased=False,
            append="<|reserved_special_token_1|>",
            max_length=4096,
            unverified="its model card lets the tokenizer put a second BOS before a conversation; here it has one",
        ),
        Family("ultrarm", "whole", bos=False, layers=("regression_head",), biased=False, template=_ULTRARM),
        Family("eurus", "whole", bos=False, layers=("regression_head",), biased=False, template=_EURUS),
        Family("beaver-reward", "whole", bos=False, labels=("reward",), template=_BEAVER, unverified=_NO_END),
        Family(
            "beaver-cost",
            "whole",
            bos=False,
            labels=("cost",),
            values=(-1.0,),
            template=_BEAVER,
            unverified=_NO_END,
        ),
        Family("ldl", gated=True),
        Family("worldpm", layers=("score.0", "score.2"), system=""),
        Family("prm-qwen", "marked", "marks", step_end="\n\n", mark="<extra_0>", system=_REASON),
        Family(
            "prm-reasonflux",
            "marked",
            "marks",
            step_end="\n\n",
            mark="<extra_0>",
            unverified="its README gives the text and the reading; its config and template were not at hand",
        ),
        Family(
            "prm-eurus",
            "marked",
            "response",
            step_end="\n\n",
            beta=0.001,
            unverified="its model card gives the procedure; its chat template and its weights were not at hand",
        ),
        Family("prm-shepherd", "prose", "marks", step_end=" ки\n", template=_QUESTION, mark="ки"),
        Family(
            "prm-skywork",
            "lines",
            "marks",
            step_end="\n",
            layers=("v_head.summary",),
            template=_QUESTION,
            mark="\n",
        ),
        Family(
            "deberta",
            reads="first",
            bidirectional=True,
            layers=("pooler.dense", "classifier"),
            activation="gelu",
            template=_PAIR,
        ),
        Family("pairrm", "pairs", "sides", bidirectional=True, template=_PAIRRM, max_length=2048),
    )
}
