"""Importance of layers against PyTorch: autograd and hidden states of transformers' models."""

import numpy as np
import pytest

from imm_jax.analysis.importance import block_influence, solution_batches, taylor_importance
from imm_jax.models.huggingface.saving import save_model

pytestmark = pytest.mark.parity

MODULES = {
    "attn/q": "self_attn.q_proj", "attn/k": "self_attn.k_proj", "attn/v": "self_attn.v_proj",
    "attn/o": "self_attn.o_proj", "mlp/gate": "mlp.gate_proj", "mlp/up": "mlp.up_proj",
    "mlp/down": "mlp.down_proj", "norms": "norm",
}  # fmt: skip


@pytest.fixture
def theirs(tiny, tmp_path):
    torch = pytest.importorskip("torch")
    from transformers import AutoModelForCausalLM

    save_model(tmp_path / "model", *tiny)
    return AutoModelForCausalLM.from_pretrained(
        tmp_path / "model", attn_implementation="eager", dtype=torch.float32
    )


def test_taylor_and_influence(tiny, theirs, solutions):
    import torch

    count, losses = sum(len(s.tokens) - s.prompt_length for s in solutions), []
    influence = np.zeros(3)
    for sequence in solutions:
        tokens = torch.tensor([sequence.tokens])
        found = theirs(tokens[:, :-1], output_hidden_states=True)
        places = slice(sequence.prompt_length - 1, None)
        loss = torch.nn.functional.cross_entropy(
            found.logits[0, places], tokens[0, 1:][places], reduction="sum"
        )
        losses.append(loss / count)
        # The last hidden state is behind the final norm, so the last block's output is not shown.
        for layer, (x, y) in enumerate(zip(found.hidden_states[:-2], found.hidden_states[1:-1])):
            cosine = torch.nn.functional.cosine_similarity(x[0, places], y[0, places], dim=-1)
            influence[layer] += float((1 - cosine.detach()).sum()) / count
    torch.stack(losses).sum().backward()

    model, params = tiny
    batches = solution_batches(solutions, params, batch_size=3, micro_batch_size=2)
    taylor = taylor_importance(model, params, batches)
    assert taylor.loss == pytest.approx(sum(x.item() for x in losses), rel=1e-4)
    for name, part in MODULES.items():
        expected = np.zeros(3)
        for path, weight in theirs.named_parameters():
            if ".layers." in path and part in path:
                product = (weight.double() * weight.grad.double()).abs().sum()
                expected[int(path.split(".layers.")[1].split(".")[0])] += float(product)
        np.testing.assert_allclose(taylor.sums.modules[name], expected, rtol=1e-3)
    ours = block_influence(model, params, batches)
    np.testing.assert_allclose(ours[:2], influence[:2], rtol=1e-3)
