"""EAGLE-3 drafts made by the package ``speculators``, and its own logits for them.

    python tests/helpers/eagle3_reference.py         # writes tests/models/eagle3 again

Needs ``speculators`` (0.9.0), which asks for another version of transformers than the tests do, so
it has an environment of its own; the tests read what it wrote. Each folder in
``tests/models/eagle3`` is a draft with random weights as the package saves it, in bfloat16, for the
target of ``tiny_model``; ``expected.safetensors`` beside it has inputs and the package's logits for
them in float32, of three steps: ``logits.S`` (T, K) at step S, where position t continues from
step S - 1 with the token S positions later.
"""

import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

FOLDER = Path(__file__).parent.parent / "models" / "eagle3"
VOCAB_SIZE, DRAFT_VOCAB_SIZE, HIDDEN_SIZE, LENGTH, STEPS = 320, 96, 32, 12, 3
AUX_LAYERS = [1, 2, 3]
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}),
    "norm-before-residual": ("llama", {"norm_before_residual": True}),
    "eagle-3.1": ("llama", {"fc_norm": True, "norm_output": True}),
    "qwen3": ("qwen3", {"norm_before_fc": True}),
}


def build_model(kind: str, options: dict[str, Any]) -> Any:
    """The package's model of a variant, with random weights that bfloat16 holds."""
    from speculators.config import SpeculatorsConfig, VerifierConfig
    from speculators.models.eagle3 import Eagle3SpeculatorConfig
    from speculators.models.eagle3.core import Eagle3DraftModel
    from speculators.proposals.greedy import GreedyTokenProposalConfig
    from transformers import LlamaConfig, Qwen3Config

    layer = {"llama": LlamaConfig, "qwen3": Qwen3Config}[kind](
        vocab_size=VOCAB_SIZE, hidden_size=HIDDEN_SIZE, intermediate_size=48, num_hidden_layers=1,
        num_attention_heads=4, num_key_value_heads=2, head_dim=8, rms_norm_eps=1e-5,
        max_position_embeddings=2048, tie_word_embeddings=False, pad_token_id=None,
        attn_implementation="eager",
    )  # fmt: skip
    speculators = SpeculatorsConfig(
        algorithm="eagle3",
        proposal_methods=[GreedyTokenProposalConfig(speculative_tokens=4)],
        default_proposal_method="greedy",
        verifier=VerifierConfig(name_or_path=None, architectures=["LlamaForCausalLM"]),
    )
    config = Eagle3SpeculatorConfig(
        transformer_layer_config=layer, draft_vocab_size=DRAFT_VOCAB_SIZE,
        eagle_aux_hidden_state_layer_ids=AUX_LAYERS, speculators_config=speculators, **options,
    )  # fmt: skip
    model = Eagle3DraftModel(config).eval()
    for name, weight in model.named_parameters():
        random = torch.rand_like(weight) + 0.5
        if weight.dim() == 2:
            random = torch.randn_like(weight) / (1 if "embed" in name else weight.shape[1] ** 0.5)
        weight.data = random.bfloat16().float()
    ids = torch.randperm(VOCAB_SIZE)[:DRAFT_VOCAB_SIZE].sort().values
    mask = torch.zeros(VOCAB_SIZE, dtype=torch.bool)
    mask[ids] = True
    model.load_vocab_mappings(mask, ids - torch.arange(DRAFT_VOCAB_SIZE))
    return model


@torch.no_grad()
def compute_logits(model: Any, ids: Tensor, aux_hidden_states: Tensor) -> list[Tensor]:
    """The package's logits (T, K) of each step, for ids (T,) and auxiliary hidden states
    (T, n_aux * D)."""
    found: list[Tensor] = []
    hook = model.lm_head.register_forward_hook(lambda *call: found.append(call[-1][0].clone()))
    documents = torch.zeros(1, len(ids), dtype=torch.long)
    model(aux_hidden_states[None], ids[None], documents, ttt_steps=STEPS)
    hook.remove()
    return found


def main() -> int:
    torch.manual_seed(0)
    for name, (kind, options) in VARIANTS.items():
        model = build_model(kind, options)
        ids = torch.randint(VOCAB_SIZE, (LENGTH,))
        aux_hidden_states = torch.randn(LENGTH, len(AUX_LAYERS) * HIDDEN_SIZE)
        steps = compute_logits(model, ids, aux_hidden_states)
        expected = {f"logits.{step}": logits for step, logits in enumerate(steps)}
        folder = FOLDER / name
        model.bfloat16().save_pretrained(folder)
        (folder / "config.py").unlink(missing_ok=True)  # the package's own code
        inputs = {"ids": ids, "aux_hidden_states": aux_hidden_states}
        save_file(expected | inputs, folder.with_name(f"{name}.safetensors"))
        print(f"wrote {folder}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
