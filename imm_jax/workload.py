"""What a plan of a run's memory is made for."""

import dataclasses

import jax.numpy as jnp

from imm_jax.models.config import ModelConfig
from imm_jax.sampling.config import SamplingConfig
from imm_jax.sharding import Sizes, parse_mesh
from imm_jax.training.config import TrainingConfig

FLOAT32 = 4


@dataclasses.dataclass(frozen=True, kw_only=True)
class Workload:
    """What is planned.

    Attributes:
      model: the architecture.
      sizes: of the mesh's axes, by default one device.
      weights: bytes of a weight as it is held, merged and saved.
      sampling: of training samples.
      evaluation: of answers to test questions.
      training: the fine-tune.
      prompt: tokens of the longest prompt.
      teacher: the architecture of another model that draws the training samples, if one does.
      judge_prompt: tokens of the longest prompt that asks the model about a sample; None where the
        selection asks it nothing.
      critic_prompt: the same of one that asks it how likely a yes and a no are.
      on_cpu: computes in float32 when sampling, in smaller chunks.
    """

    model: ModelConfig
    sizes: Sizes = dataclasses.field(default_factory=lambda: parse_mesh("data=1"))
    weights: int = FLOAT32
    sampling: SamplingConfig = SamplingConfig()
    evaluation: SamplingConfig = SamplingConfig(temperature=0.0)
    training: TrainingConfig = TrainingConfig()
    prompt: int = 512
    teacher: ModelConfig | None = None
    judge_prompt: int | None = None
    critic_prompt: int | None = None
    on_cpu: bool = False

    @property
    def tensor(self) -> int:
        """The size t of the tensor axis."""
        return self.sizes["tensor"]

    def heads(self, count: int) -> int:
        """Heads on a device, all of them where t does not divide their number."""
        return count if count % self.tensor else count // self.tensor

    @property
    def computed(self) -> int:
        """Bytes c of a number computed in training, but in products."""
        return FLOAT32 if self.on_cpu else jnp.dtype(self.training.compute_dtype).itemsize

    @property
    def sampled(self) -> int:
        """Bytes c of a number computed in sampling."""
        return FLOAT32 if self.on_cpu else 2
