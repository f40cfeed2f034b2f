"""The laboratory's tokens: digits, signs, and the fixed words of the ``plain`` prompt style.

Every text has one reading as tokens, so questions drawn as ids and answers read as text are the
same things, and the host loop works on them with a tokenizer like any other.
"""

import re
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

TOKENS = (
    *("<|end|>", "Question:", "Answer:", ";The answer is", "\n", " ", ",", "+", "-"),
    *"vsrpcm",
    *"0123456789",
)
IDS = {token: number for number, token in enumerate(TOKENS)}
END, QUESTION, ANSWER, MARKER, NEWLINE, SPACE = range(6)
ZERO = IDS["0"]
SIGNS = (IDS["+"], IDS["-"])
ENDS = (END, QUESTION)  # an answer stops before a new question, as the style's stop strings say
BLANK = np.array([token in (NEWLINE, SPACE) for token in range(len(TOKENS))])
# Tokens that begin with a letter or a digit: "is" is a word of its own only before others.
WORD = np.array([token[0].isalnum() for token in TOKENS])


def encode(text: str) -> list[int]:
    """Token ids of a text that is made of these tokens."""
    pattern = "|".join(map(re.escape, sorted(TOKENS, key=len, reverse=True)))
    return [IDS[token] for token in re.findall(pattern, text)]


def make_tokenizer() -> "PreTrainedTokenizerFast":
    """The same vocabulary as a Hugging Face tokenizer."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.WordLevel(IDS, unk_token=TOKENS[END]))
    words = "|".join(map(re.escape, TOKENS[QUESTION : MARKER + 1]))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(f"{words}|[\\s\\S]"), "isolated")
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token=TOKENS[END], clean_up_tokenization_spaces=False
    )
