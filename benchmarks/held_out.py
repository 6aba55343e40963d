"""Drafts on answers that no draft was trained on: tau over a chain and a tree, and cross-entropy.

The target writes messages and answers about each domain with a seed of its own, as it does for
training (``minispec.tools.data.distill``), once, into a folder. Tau is that of greedy decoding
over the whole vocabulary, by replay of the greedy answers. The cross-entropy at step j, in nats per
token, is that to the target's distribution over the whole vocabulary after j - 1 steps on the
draft's own states, over all answers.

    python -m benchmarks held_out --drafts a.safetensors b.safetensors --json build/held_out.json
"""

import argparse
import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch

from minispec.commit import StopRule
from minispec.decode import speculative
from minispec.growth import TreeShape
from minispec.io import draft_file
from minispec.models.eagle_draft import EagleDraft
from minispec.sampling import Sampling, SeededRandom
from minispec.shortlists.full import FullShortlist
from minispec.tools.data import corpus, distill
from minispec.tools.data.batches import ShardDataset, is_greedy, make_batch
from minispec.tools.data.shards import Shard
from minispec.tools.evaluation.measure import describe_machine, measure
from minispec.tools.evaluation.replay import ReplayTarget
from minispec.tools.models import known_models, matmul_dtype, pretrained
from minispec.tools.models.pretrained import Pretrained
from minispec.tools.training.train_draft import replay_tau, unroll

GAMMA = 4  # of the chain, and the steps of the cross-entropy


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_option = partial(parser.add_argument, help="(default: %(default)s)")
    add_option("--model", choices=known_models.SOURCES, default="smollm2")
    add_option("--dtype", choices=("float32", "bfloat16"), default=matmul_dtype.choose_dtype())
    parser.add_argument("--drafts", nargs="+", type=Path, required=True, help="draft files")
    add_option("--written", type=Path, default=Path("build/held-out"))
    add_option("--seed", type=int, default=2)
    add_option("--prompts", type=int, default=48)
    add_option("--tree", type=TreeShape.parse, default=TreeShape.parse("5x4x12"))
    add_option("--tree-answers", type=int, default=16)
    add_option("--json", type=Path, default=Path("build/held_out.json"))
    options = parser.parse_args()
    model = pretrained.load(options.model, options.dtype)
    texts = write_text(model, options.written, options.seed, options.prompts)
    drafts: dict[str, dict[str, object]] = {}
    report = {
        "machine": describe_machine(), "dtype": options.dtype, "tree": str(options.tree),
        "seed": options.seed,
        "drafts": drafts,
    }  # fmt: skip
    for path in options.drafts:
        draft = draft_file.load_draft(path, model.reference, model.fingerprint)
        found = drafts[str(path)] = {}
        for domain, text in texts.items():
            found[domain] = measure_draft(draft, text, options.tree, options.tree_answers)
            print(path.parent.name, path.name, domain, found[domain], flush=True)
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(report, indent=1) + "\n")


def write_text(model: Pretrained, folder: Path, seed: int, prompts: int) -> dict[str, list[Shard]]:
    """One shard of answers for each domain; those in the folder are not written again."""
    folder.mkdir(parents=True, exist_ok=True)
    dtype = matmul_dtype.keep_dtype(folder)
    texts = {}
    for domain in corpus.DOMAINS:  # one token: a single shard
        (path,) = distill.write_shards(
            folder,
            model.name,
            [domain],
            1,
            seed,
            1,
            prompts,
            known_models.is_base(model.name),
            dtype,
        )
        dataset = ShardDataset([path], model.reference.config)
        texts[domain] = [dataset.read_sequence(index) for index in range(len(dataset))]
    return texts


@torch.inference_mode()
def measure_draft(
    draft: EagleDraft, text: Sequence[Shard], tree: TreeShape, tree_answers: int
) -> dict[str, object]:
    """Tau and cross-entropy of a draft on the answers of one domain."""
    greedy = [each for each in text if is_greedy(each, draft.head)]
    found: dict[str, object] = {"answers": len(text), "greedy_answers": len(greedy)}
    found["tau"] = round(replay_tau(draft, greedy, GAMMA), 4)
    if tree_answers:
        found["tau_tree"] = round(replay_tree(draft, greedy[:tree_answers], tree), 4)
    sums, counts = torch.zeros(GAMMA), torch.zeros(GAMMA)
    for batch in (make_batch([each], draft.fusion.weight.dtype) for each in text):
        p = draft.head.logits(batch.hidden[batch.loss_mask]).float().softmax(-1)  # (n, V)
        for step, (hidden, reached) in enumerate(unroll(draft, batch, GAMMA)):
            log_q = draft.head.logits(hidden[reached]).float().log_softmax(-1)  # (r, V)
            sums[step] -= torch.einsum("rv,rv->", p[reached[batch.loss_mask]], log_q)
            counts[step] += len(log_q)
    found["cross_entropy"] = [round(mean, 4) for mean in (sums / counts).tolist()]
    return found


def replay_tree(draft: EagleDraft, answers: Sequence[Shard], tree: TreeShape) -> float:
    """Tau of trees of this shape over greedy answers."""
    vocab_size = draft.head.vocab_size
    shortlist = FullShortlist(vocab_size)
    tokens = passes = 0
    for each in answers:
        start = int(each.answers)
        ids = each.tokens.tolist()
        aux_hidden_states = each.aux_hidden_states[:-1].to(draft.fusion.weight.dtype)
        target = ReplayTarget(
            ids[:start], ids[start:], aux_hidden_states, vocab_size, draft.config.context_limit
        )
        rounds = speculative(
            target, draft, shortlist, ids[:start], gamma=GAMMA, sampling=Sampling(),
            rng=SeededRandom(0), stop=StopRule(len(ids) - start), tree=tree,
        )  # fmt: skip
        figures = measure(rounds)
        tokens, passes = tokens + len(figures.tokens), passes + figures.passes
    return tokens / passes


if __name__ == "__main__":
    main()
