"""The settings of online learning."""

from dataclasses import dataclass

from minispec.errors import ArgumentError
from minispec.learning.losses import LOSSES


@dataclass(frozen=True)
class LearnerConfig:
    """How a draft learns; the defaults are those of ``+adapt``.

    LoRA: ``rank`` and ``targets`` of the adapters (see ``lora.TARGETS``), ``learning_rate`` of
    Adam, ``loss`` by name (see ``losses.LOSSES``), ``num_random_ids`` drawn for the sampled
    softmax, ``curriculum`` for weights by difficulty. An update follows every
    ``update_interval`` emitted tokens; it learns from the newest ``window_size`` positions and,
    with ``replay``, from as many old ones.

    Replay buffer: ``num_windows`` windows of ``window_size`` positions, each with the ``top_k``
    probabilities of the target's distribution.

    ``retrieval`` switches nearest-neighbour retrieval on, ``guard`` the guards that switch a
    learner off while it lowers the acceptance rate. ``seed`` starts all random draws.

    Raises ArgumentError on construction.
    """

    rank: int = 8
    targets: tuple[str, ...] = ("attention.output", "mlp.down")
    learning_rate: float = 5e-4
    loss: str = "mixture"
    update_interval: int = 128
    window_size: int = 64
    num_windows: int = 8
    top_k: int = 8
    num_random_ids: int = 512
    curriculum: bool = True
    replay: bool = True
    retrieval: bool = True
    guard: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("update_interval", "window_size", "top_k", "num_random_ids"):
            if getattr(self, name) < 1:
                raise ArgumentError(f"{name} {getattr(self, name)} must be 1 or above")
        if self.num_windows < 2:
            raise ArgumentError(
                f"num_windows {self.num_windows} must be 2 or above, for new and old windows"
            )
        if self.learning_rate < 0:
            raise ArgumentError(f"learning_rate {self.learning_rate} must be 0 or above")
        if self.loss not in LOSSES:
            raise ArgumentError(f"unknown loss {self.loss!r}: choose from {', '.join(LOSSES)}")
