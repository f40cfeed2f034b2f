"""The peers of ``sample.py``: transformers' ``generate`` and llama.cpp, each in its own process.

    python experiments/benchmarks/sample_peers.py transformers|llama

Reads requests and writes answers as ``bench.py`` says. Both end a row at its own limit and not
before: end tokens are ignored, and a stopping criterion that looks at each row takes their place.
"""

import functools
import itertools
import sys
import time

import bench


def transformers(
    *,
    folder: str,
    prompts: list[str],
    samples: int,
    limits: list[int],
    temperature: float,
    batch_size: int,
    dtype: str,
    cache: str,
    compiled: bool = False,
    device: str = "cpu",
) -> dict:
    """Samples with ``generate``, batch after batch in the order given.

    A prompt's samples stay in one batch (``num_return_sequences``), which ends with its longest
    row. Prompts are padded on the left. ``cache`` is ``"dynamic"`` or ``"static"``; ``compiled``
    compiles the forward pass of a static cache.
    """
    import torch
    from transformers import CompileConfig, StoppingCriteria, StoppingCriteriaList

    class Limits(StoppingCriteria):
        """Each row ends at its own limit."""

        def __init__(self, rows, start):
            self.rows, self.start = torch.tensor(rows, device=device), start

        def __call__(self, ids, scores, **_):
            return ids.shape[1] - self.start >= self.rows

    model, tokenizer = load(folder, dtype, device)
    options = {"do_sample": False}
    if temperature > 0:
        options = {"do_sample": True, "temperature": temperature, "top_k": 0, "top_p": 1.0}
    if cache == "static":
        options["cache_implementation"] = "static"
        options["disable_compile"] = not compiled
        options["compile_config"] = CompileConfig() if compiled else None
    tokens, step = 0, max(1, batch_size // samples)
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    start = time.perf_counter()
    for at in range(0, len(prompts), step):
        some = limits[at : at + step]
        inputs = tokenizer(prompts[at : at + step], return_tensors="pt", padding=True).to(device)
        length = inputs["input_ids"].shape[1]
        with torch.inference_mode():
            rows = model.generate(
                **inputs,
                **options,
                num_return_sequences=samples,
                max_new_tokens=max(some),
                eos_token_id=None,
                pad_token_id=tokenizer.pad_token_id,
                stopping_criteria=StoppingCriteriaList(
                    [Limits([limit for limit in some for _ in range(samples)], length)]
                ),
            )
        assert rows.shape == (len(some) * samples, length + max(some))
        tokenizer.batch_decode(rows[:, length:])
        tokens += samples * sum(some)
    seconds = time.perf_counter() - start
    held = torch.cuda.max_memory_allocated() if device == "cuda" else None
    return {"seconds": seconds, "tokens": tokens, "device_bytes": held}


@functools.lru_cache(maxsize=1)  # a second type would count as memory of the first
def load(folder: str, dtype: str, device: str):
    """A model and its tokenizer."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype))
    return model.to(device).eval(), tokenizer


def llama(
    *,
    file: str,
    prompts: list[str],
    samples: int,
    limits: list[int],
    temperature: float,
    threads: int,
) -> dict:
    """Samples one after the other with llama-cpp-python; a prompt's samples reuse its prefill."""
    model = load_llama(file, threads)
    start, tokens = time.perf_counter(), 0
    for prompt, limit in zip(prompts, limits):
        ids = model.tokenize(prompt.encode(), add_bos=False, special=True)
        for _ in range(samples):
            stream = model.generate(ids, temp=temperature, top_k=0, top_p=1.0, min_p=0.0)
            drawn = list(itertools.islice(stream, limit))
            model.detokenize(drawn)
            tokens += len(drawn)
    return {"seconds": time.perf_counter() - start, "tokens": tokens}


@functools.lru_cache(maxsize=1)
def load_llama(file: str, threads: int):
    """A GGUF file as llama.cpp reads it."""
    from llama_cpp import Llama

    return Llama(file, n_ctx=1024, n_threads=threads, n_threads_batch=threads, verbose=False)


if __name__ == "__main__":
    bench.serve({"transformers": transformers, "llama": llama}[sys.argv[1]])
