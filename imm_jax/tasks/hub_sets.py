"""Public data sets by name, and suites of them: tables, no code."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class HubSet:
    """A data set on the hub, or one JSON file elsewhere.

    Attributes:
      path, config, revision: as ``datasets.load_dataset`` takes them.
      url, field: in place of ``path``, the address of a JSON file that is a list of rows, or an
        object that has one under ``field``; it is the test split.
      train, test: its split names; an empty name where there is none with answers.
    """

    path: str = ""
    revision: str | None = None
    config: str | None = None
    url: str = ""
    field: str = ""
    train: str = "train"
    test: str = "test"


# The copies that "Large Language Models are Zero-Shot Reasoners" (Kojima et al., arXiv 2205.11916)
# made and was evaluated on; there are no training questions among them.
KOJIMA = "https://raw.githubusercontent.com/kojima-takeshi188/zero_shot_cot/main/dataset"


def _kojima(file: str, field: str = "") -> HubSet:
    return HubSet(url=f"{KOJIMA}/{file}", field=field, train="", test="test")


HUB_SETS = {
    # Arithmetic.
    "gsm8k": HubSet(
        path="openai/gsm8k", config="main", revision="cc7b047b6e5bb11b4f1af84efc572db110a51b3c"
    ),
    "math": HubSet(
        path="DigitalLearningGmbH/MATH-lighteval",
        revision="0530c78699ea5e8eb5530600900e1f328b48acad",
    ),
    "math500": HubSet(
        path="HuggingFaceH4/MATH-500",
        revision="6e4ed1a2a79af7d8630a6b768ec859cb5af4d3be",
        train="",
    ),
    "svamp": HubSet(path="ChilleD/SVAMP", revision="5e0bf1e5e7c0e9c4bc39180d224f41f3f801b7ef"),
    "multiarith": HubSet(path="ChilleD/MultiArith"),
    "addsub": _kojima("AddSub/AddSub.json"),
    "single_eq": _kojima("SingleEq/questions.json"),
    "aqua": HubSet(
        path="deepmind/aqua_rat", config="raw", revision="33301c6a050c96af81f63cad5562cb5363e88971"
    ),
    # Knowledge and reading. CommonsenseQA's own test split has no answers.
    "commonsense_qa": HubSet(
        path="tau/commonsense_qa",
        revision="94630fe30dad47192a8546eb75f094926d47e155",
        test="validation",
    ),
    "strategy_qa": HubSet(path="ChilleD/StrategyQA"),
    "arc_easy": HubSet(
        path="allenai/ai2_arc",
        config="ARC-Easy",
        revision="210d026faf9955653af8916fad021475a3f00453",
    ),
    "arc_challenge": HubSet(
        path="allenai/ai2_arc",
        config="ARC-Challenge",
        revision="210d026faf9955653af8916fad021475a3f00453",
    ),
    "openbookqa": HubSet(
        path="allenai/openbookqa",
        config="main",
        revision="388097ea7776314e93a529163e0fea805b8a6454",
    ),
    "mmlu": HubSet(
        path="cais/mmlu",
        config="all",
        revision="c30699e8356da336a370243923dbaf21066bb9fe",
        train="validation",
    ),
    # The set itself is a script, which is never run; the hub keeps a copy of its rows.
    "logiqa": HubSet(path="lucasmccabe/logiqa", revision="refs/convert/parquet"),
    # Symbols.
    "date_understanding": _kojima("Bigbench_Date/task.json", "examples"),
    "object_tracking": _kojima("Bigbench_object_tracking/task.json", "examples"),
    "coin_flip": _kojima("coin_flip/coin_flip.json", "examples"),
    "last_letters": _kojima("last_letters/last_letters.json", "examples"),
}

SUITES = {
    # Our choice: the paper's list of sets is not known to us.
    "in_domain": ("gsm8k", "math", "svamp", "multiarith", "addsub", "single_eq", "aqua"),
    "out_of_domain": (
        "commonsense_qa",
        "strategy_qa",
        "arc_easy",
        "arc_challenge",
        "logiqa",
        "date_understanding",
        "object_tracking",
        "coin_flip",
        "last_letters",
    ),
    # The groups of Kojima et al.
    "arithmetic": ("single_eq", "addsub", "multiarith", "gsm8k", "aqua", "svamp"),
    "commonsense": ("commonsense_qa", "strategy_qa"),
    "symbolic": ("last_letters", "coin_flip"),
    "other": ("date_understanding", "object_tracking"),
}
