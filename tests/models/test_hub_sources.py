"""Models of the hub: what is fetched, at which commit, and what the cache is good for."""

import fnmatch
import json

import pytest

from imm_jax.errors import InputError
from imm_jax.models.sources import HUB_FILES, resolve, resolve_adapter
from tests.models.test_sources import refused

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def hub_cache(tmp_path):
    """A cache as huggingface_hub lays it out, with one model in it."""
    repository = tmp_path / "hub" / "models--org--name"
    snapshot = repository / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text(json.dumps({"model_type": "llama"}))
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(COMMIT)
    return tmp_path


def test_hub_offline(hub_cache):
    found = resolve("org/name", cache_dir=hub_cache, offline=True)
    assert (found.kind, found.path.name) == ("folder", COMMIT)
    assert found.record == {"source": "org/name", "revision": COMMIT}
    same = resolve("org/name", cache_dir=hub_cache, offline=True, revision=COMMIT)
    assert same == found
    assert "not in the hub's cache" in refused("org/other", cache_dir=hub_cache, offline=True)


def test_hub_out_of_reach(hub_cache, monkeypatch):
    """What is in the cache still loads; what is not is refused at once."""
    from huggingface_hub import HfApi

    api = HfApi(endpoint="http://127.0.0.1:9")
    monkeypatch.setattr("huggingface_hub.HfApi", lambda: api)
    assert resolve("org/name", cache_dir=hub_cache).record["revision"] == COMMIT
    assert "the hub cannot be reached" in refused("org/other", cache_dir=hub_cache)


def test_hub_pins_the_commit(hub_cache, monkeypatch):
    import huggingface_hub

    asked = {}

    def download(name, **options):
        asked.update(options, name=name)
        return str(hub_cache / "hub/models--org--name/snapshots" / COMMIT)

    class Api:
        def model_info(self, name, revision, timeout):
            assert (name, revision) == ("org/name", "v2")
            assert timeout <= 10
            return type("Info", (), {"sha": COMMIT})

    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    found = resolve("org/name", revision="v2")
    assert found.record == {"source": "org/name", "revision": COMMIT}
    assert (asked["name"], asked["revision"]) == ("org/name", COMMIT)
    assert asked["allow_patterns"] == list(HUB_FILES)
    assert resolve("org/name", revision="v2", weights=False) == found
    assert asked["allow_patterns"] == ["config.json", "generation_config.json"]


def test_of_an_adapter_two_files_are_fetched(tmp_path, monkeypatch):
    import huggingface_hub

    files = ("adapter_config.json", "adapter_model.safetensors")

    def download(name, **options):
        assert (name, options["revision"]) == ("org/adapter", COMMIT)
        assert tuple(options["allow_patterns"]) == files
        return str(tmp_path)

    class Api:
        def model_info(self, name, revision, timeout):
            return type("Info", (), {"sha": COMMIT})

    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    with pytest.raises(InputError, match=r"has no adapter_config\.json"):
        resolve_adapter("org/adapter")
    for name in files:
        (tmp_path / name).touch()
    assert resolve_adapter("org/adapter") == tmp_path


def test_hub_files_hold_no_code_or_pickles():
    def wanted(name):
        return any(fnmatch.fnmatch(name, pattern) for pattern in HUB_FILES)

    for name in (
        "pytorch_model.bin",
        "model.pt",
        "modeling_x.py",
        "tokenizer.py",
        "original/model.safetensors",
        "consolidated.safetensors",
        "model.gguf",
        "training_args.bin",
        "onnx/model.onnx",
    ):
        assert not wanted(name), name
    for name in (
        "config.json",
        "model.safetensors",
        "model-00001-of-00002.safetensors",
        "model.safetensors.index.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "chat_template.jinja",
    ):
        assert wanted(name), name
