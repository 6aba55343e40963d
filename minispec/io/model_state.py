"""A target with weights that were read from a file."""

from collections.abc import Mapping

import torch
from torch import Tensor

from minispec.errors import FileError
from minispec.io.files import check_tensors
from minispec.models.transformer import ModelConfig, Transformer


def build_transformer(config: ModelConfig, state: Mapping[str, Tensor], origin: str) -> Transformer:
    """A frozen model with the weights read from ``origin``, which are not copied.

    Raises FileError unless they are exactly those of ``config``, and finite.
    """
    if config.num_hidden_layers > len(state):  # a damaged config could ask for millions
        raise FileError(
            f"{origin} has {len(state)} tensors, too few for {config.num_hidden_layers} layers"
        )
    # Built without memory, then given the weights: no time is spent on initial ones.
    with torch.device("meta"):
        model = Transformer(config)
    shapes = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    check_tensors(state, shapes, origin)
    model.load_state_dict(state, assign=True)
    return model.eval().requires_grad_(False)
