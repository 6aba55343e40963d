"""Gives a draft the norms of EAGLE-3.1, so that training continues from what it has learnt.

RMSNorm divides by the root mean square (RMS) of its input. Where that varies little from token to
token, dividing by it and multiplying by its median changes little, so a new norm of auxiliary
hidden states begins with the median as its weight.

The output x becomes w * x / RMS(x), with the weight w of the final norm, before it is the next
state: about G x, with the diagonal G = w / median RMS(x). So the whole residual stream changes to
these units: what writes into it is multiplied by G, the norms that read it are divided by G. Where
G is small, these matrices are too, and a step of Adam, whose size does not depend on theirs,
changes them more: the learning rate should be smaller by about as much.
"""

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from minispec.models.eagle_draft import EagleDraft
from minispec.tools.data.batches import Batch
from minispec.tools.training.train_draft import unroll


@torch.no_grad()
def add_norms(draft: EagleDraft, batch: Batch) -> EagleDraft:
    """A draft with the norms of EAGLE-3.1 that computes about what ``draft`` does, which has none.
    Medians are taken over the answers of a batch of text."""
    inputs: dict[str, Tensor] = {}  # of the norms that read the residual stream, (n, D)

    def record(name: str) -> RemovableHandle:
        def keep(_: nn.Module, arguments: tuple[Tensor, ...]) -> None:
            inputs[name] = arguments[0][batch.loss_mask]

        return draft.get_submodule(name).register_forward_pre_hook(keep)

    handles = [record(name) for name in ("state_norm", "mlp_norm", "norm")]
    next(unroll(draft, batch, 1))
    for handle in handles:
        handle.remove()

    outputs = draft.norm(inputs["norm"])  # (n, D)
    weights = draft.state_dict()
    units = weights.pop("norm.weight") / _rms(inputs["norm"]).median()  # (D,), the diagonal of G
    units = units.sign() * units.abs().clamp(min=float(units.abs().median()) * 1e-3)
    for name in ("state_norm", "mlp_norm"):
        growth = _rms(units * inputs[name]) / _rms(inputs[name])  # (n,)
        weights[f"{name}.weight"] = weights[f"{name}.weight"] / units * growth.median()
    weights["fusion.weight"] = units[:, None] * weights["fusion.weight"]
    for norm, matrix in (
        ("attention_post_norm", "attention.output"),
        ("mlp_post_norm", "mlp.down"),
    ):
        if f"{norm}.weight" in weights:  # of Gemma
            weights[f"{norm}.weight"] = units * weights[f"{norm}.weight"]
        else:
            weights[f"{matrix}.weight"] = units[:, None] * weights[f"{matrix}.weight"]
    weights["output_norm.weight"] = torch.ones_like(units) * _rms(outputs).median()
    parts = batch.aux_hidden_states[batch.loss_mask].chunk(
        len(draft.config.aux_hidden_state_layer_ids), dim=-1
    )
    for index, part in enumerate(parts):
        weights[f"fusion_norms.{index}.weight"] = torch.ones_like(units) * _rms(part).median()
    made = EagleDraft(draft.config, draft.embedding, draft.head, norms=True).to(units)
    made.load_state_dict(weights)
    return made


def _rms(x: Tensor) -> Tensor:
    """The root mean square (...) of x (..., D)."""
    return x.square().mean(-1).sqrt()
