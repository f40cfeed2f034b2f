"""Prompt styles: from a question to the text a model continues."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from imm_jax.errors import InputError, nearest
from imm_jax.tasks.options import option_letters
from imm_jax.tasks.types import Example

# The stop strings of the paper's repository. The bare words stop earlier than those with a colon.
PAPER_STOPS = tuple(
    word + colon
    for word in ("Question", "Instruction", "Response", "USER", "ASSISTANT")
    for colon in (":", "")
)
# A worked solution may say "Response time"; only a new heading ends these.
HEADING_STOPS = (
    "\nQuestion",
    "Question:",
    "Instruction:",
    "Response:",
    "USER:",
    "ASSISTANT:",
    "###",
)


@dataclass(frozen=True, kw_only=True)
class Style:
    """How questions and worked examples are written.

    Attributes:
      version: raised when the text changes; results are recorded with it.
      header: what every prompt of the style begins with.
      block: one question with the place of its response, ``{question}`` and ``{response}``.
      lead: what stands between the prompt and a response.
      shots: ``"none"`` (worked examples given are left out), ``"required"`` or ``"optional"``.
      training: the style of the zero-shot prompt to train on what this style sampled.
      stops: strings that end a response.
    """

    version: int = 1
    header: str = ""
    block: str = ""
    lead: str = " "
    shots: str = "none"
    training: str = ""
    stops: tuple[str, ...] = HEADING_STOPS


ALPACA_HEADER = (
    "Below is an instruction that describes a task. "
    "Write a response that appropriately completes the request."
)
ALPACA_BLOCK = "### Instruction:\n{question}\n\n### Response: Let's think step by step.{response}"
QUESTION_BLOCK = "Question: {question}\nAnswer:{response}"

STYLES = {
    # MetaMath's zero-shot prompt, which the paper's repository evaluates with.
    "alpaca": Style(header=ALPACA_HEADER, block=ALPACA_BLOCK, training="alpaca", stops=PAPER_STOPS),
    "alpaca_few_shot": Style(
        header=ALPACA_HEADER,
        block=ALPACA_BLOCK,
        shots="required",
        training="alpaca",
        stops=PAPER_STOPS,
    ),
    "plain": Style(block=QUESTION_BLOCK, training="plain"),
    "few_shot": Style(block=QUESTION_BLOCK, shots="required", training="plain"),
    # The tokenizer's chat template; worked examples are earlier turns of the conversation.
    "chat": Style(lead="", shots="optional", training="chat"),
}


@dataclass(frozen=True)
class Prompt:
    """A prompt in two parts: ``prefix + text`` is the whole.

    Attributes:
      prefix: what all prompts of the same style and worked examples share; prefill it once. Where
        a tokenizer merges across the seam, share the tokens that whole prompts have in common.
      text: the rest, with the question.
      add_special_tokens: whether the tokenizer should still add its beginning-of-text token; a
        chat template has written it already.
    """

    prefix: str
    text: str
    add_special_tokens: bool = field(default=True, kw_only=True)

    @property
    def whole(self) -> str:
        return self.prefix + self.text


def render(
    style: str,
    example: Example,
    shots: Sequence[Example] = (),
    tokenizer: Any = None,
    *,
    system: str | None = None,
) -> Prompt:
    """Writes the prompt for one question.

    Args:
      style: a name in ``STYLES``. Zero-shot styles leave ``shots`` out.
      example: the question.
      shots: worked examples, with solutions.
      tokenizer: for ``chat``, one with ``apply_chat_template``.
      system: for ``chat``, the system message; None sends none.

    Raises:
      InputError: an unknown style, worked examples missing where the style needs them, or a
        tokenizer without a (usable) chat template.
    """
    chosen = get_style(style)
    if style == "chat":
        return _chat(example, shots, tokenizer, system)
    if chosen.shots == "required" and not shots:
        raise InputError(
            f"prompt style {style!r} needs worked examples and the task has none; "
            f"use {chosen.training!r} or give the task shots"
        )
    shots = shots if chosen.shots != "none" else ()
    blocks = [
        chosen.block.format(question=question_text(shot), response=response_text(shot, style))
        for shot in shots
    ]
    last = chosen.block.format(question=question_text(example), response="")
    prefix = "\n\n".join(filter(None, (chosen.header, *blocks)))
    # The blank line belongs to the text: a prefix that ends in line breaks tokenizes differently.
    return Prompt(prefix, ("\n\n" if prefix else "") + last)


def get_style(name: str) -> Style:
    """Looks a style up; InputError names the nearest where there is none."""
    if name not in STYLES:
        raise InputError(
            f"unknown prompt style {name!r}{nearest(name, STYLES)}; known: {', '.join(STYLES)}"
        )
    return STYLES[name]


def question_styles() -> list[str]:
    """The styles that need no worked examples, for a question alone."""
    return [name for name, style in STYLES.items() if style.shots != "required"]


def training_style(style: str) -> str:
    """The zero-shot style to train on responses that ``style`` sampled.

    The paper generates with 8 worked examples and evaluates with none.
    """
    return get_style(style).training


def prompt_version(style: str) -> str:
    """Style and version, as results record them: ``"alpaca/1"``."""
    return f"{style}/{get_style(style).version}"


def question_text(example: Example) -> str:
    """The question, with its options as ``(A) ...`` lines where it has some."""
    if not example.choices:
        return example.question
    letters = option_letters(len(example.choices))
    options = (f"({letter}) {text}" for letter, text in zip(letters, example.choices))
    return "\n".join((example.question, *options))


def response_text(example: Example, style: str = "plain") -> str:
    """The gold response to append to ``render(style, example)``.

    The worked solution, or only ``The answer is X.`` where there is none, after the style's lead
    (a space; nothing in chat).
    """
    return get_style(style).lead + (example.solution or f"The answer is {example.answer}.")


def cut_at_stop(text: str, stops: Sequence[str]) -> str:
    """``text`` up to the earliest of ``stops``; all of it where none occurs."""
    found = [position for stop in stops if stop and (position := text.find(stop)) >= 0]
    return text[: min(found)] if found else text


def _chat(example: Example, shots: Sequence[Example], tokenizer: Any, system: str | None) -> Prompt:
    if not getattr(tokenizer, "chat_template", None):
        raise InputError(
            "prompt style 'chat' needs a tokenizer with a chat template and this model has none; "
            "use 'plain', 'few_shot' or 'alpaca'"
        )
    messages = [{"role": "system", "content": system}] if system else []
    for shot in shots:
        messages.append({"role": "user", "content": question_text(shot)})
        messages.append({"role": "assistant", "content": response_text(shot, "chat")})
    question = question_text(example)
    messages.append({"role": "user", "content": question})
    try:
        whole = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    except Exception as error:  # a template raises what it likes, such as "no system role"
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(f"the model's chat template refuses the prompt: {reason}") from error
    seam = max(whole.rfind(question.strip()), 0)
    return Prompt(whole[:seam], whole[seam:], add_special_tokens=False)
