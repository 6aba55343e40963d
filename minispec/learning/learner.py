"""Alignment while serving: a draft that learns from its own verdicts.

After each round the target has said, of every position of the text that grew, what it would
have said: the law that the draft was to guess. These verdicts are kept (``minispec.learning.replay_buffer``)
and used twice. They are *recalled* when the draft stands in a like place again
(``minispec.learning.retrieval``), which helps at once; and they are *learnt*: every so many tokens LoRA
adapters take one step on the newest positions and on some old ones (``minispec.learning.losses``),
the easy ones first (``minispec.learning.curriculum``).

Everything happens between rounds, so a proposal's laws stand before they are verified, and
nothing here touches the source of randomness. A *floor* under each of the two compares
sum min(p, q) with and without it, and switches it off where it hurts. What is not finite is
refused. How much is learnt is counted in positions for each token, not in time, so a seed
reproduces a run.
"""

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from minispec.errors import ArgumentError
from minispec.learning import curriculum, lora
from minispec.learning.guard import Floor
from minispec.learning.losses import OBJECTIVES, log_distribution, overlap, support
from minispec.learning.replay_buffer import TRAIL, ReplayBuffer, Rows
from minispec.learning.retrieval import interpolate_neighbours
from minispec.models.eagle_draft import EagleDraft
from minispec.sampling import Sampling
from minispec.types import Context, Distribution, Round


@dataclass(frozen=True)
class AdaptConfig:
    """How a draft learns; the defaults are those of ``+adapt``.

    ``interval``: emitted tokens from one update to the next, which learns from ``window`` new
    positions and, with ``replay``, as many old ones. ``windows`` of them are kept. ``largest``:
    probabilities kept of a law. ``others``: ids drawn at random into an update's laws.
    Raises ArgumentError on construction.
    """

    rank: int = 8
    targets: tuple[str, ...] = ("attention.output", "mlp.down")
    rate: float = 5e-4
    objective: str = "mixture"
    interval: int = 128
    window: int = 64
    windows: int = 8
    largest: int = 8
    others: int = 512
    curriculum: bool = True
    replay: bool = True
    recall: bool = True
    floor: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("interval", "window", "largest", "others"):
            if getattr(self, name) < 1:
                raise ArgumentError(f"{name} {getattr(self, name)} must be 1 or above")
        if self.windows < 2:
            raise ArgumentError(f"windows {self.windows} must be 2 or above: new and old ones")
        if self.rate < 0:
            raise ArgumentError(f"rate {self.rate} must be 0 or above")
        if self.objective not in OBJECTIVES:
            raise ArgumentError(
                f"unknown objective {self.objective!r}: known are {', '.join(OBJECTIVES)}"
            )


class Aligner:
    """The learner of one draft (see ``types.Learner``). ``draft`` is the adapted twin of the
    one given, to be drafted with in its stead. With ``carry`` it remembers from text to text."""

    def __init__(
        self, draft: EagleDraft, config: AdaptConfig | None = None, *, carry: bool = False
    ) -> None:
        self.config = config = config or AdaptConfig()
        self.draft = lora.adapted(draft, config.targets, config.rank, config.seed)
        self._untaught = lora.state(self.draft)
        self.reaches_cache = bool(set(config.targets) & set(lora.CACHED))
        self._frozen, self._carry = draft, carry
        shape = draft.config
        self.verdicts = ReplayBuffer(
            config.windows, config.window, len(shape.aux_hidden_state_layer_ids) * shape.hidden_size, shape.hidden_size,
            config.largest, config.seed,
        )  # fmt: skip
        self._text = 0
        self.reset()

    def reset(self) -> None:
        """Forgets everything, as if just made."""
        lora.restore(self.draft, self._untaught)
        self.verdicts.clear()
        self._optimiser = self._rested()
        self._generator = torch.Generator().manual_seed(self.config.seed)
        self._acceptance, self._since, self._temperature = 0.0, 0, 1.0
        self._recall_floor, self._lora_floor = Floor(64, 0.02), Floor(3, 0.01)

    def start(self, continued: bool = False) -> None:
        """A new text; what was learnt from others is forgotten unless it is carried over, or
        the text goes on with the conversation before it."""
        if not (self._carry or continued):
            self.reset()
        self._text += 1
        self._read: list[tuple[Tensor, Tensor, Tensor]] = []  # taps, direction, trail
        self._trail = [-1] * TRAIL
        self._distributions: tuple[Distribution, Distribution] | None = (
            None  # at the first step, without recall and with
        )

    def on_prefill(self, ids: Tensor, aux_hidden_states: Tensor, hidden: Tensor) -> None:
        """What the draft read, ids (T,) with taps (T, n_aux * D), and made of it (T, D)."""
        tokens = torch.tensor([*self._trail[: TRAIL - 1][::-1], *ids.tolist()])
        trails = tokens.unfold(0, TRAIL, 1).flip(1)  # (T, TRAIL), newest first
        self._trail = trails[-1].tolist()
        directions = F.normalize(hidden, dim=-1)
        # The last of those before still waits for its law.
        self._read = [*self._read[-1:], *zip(aux_hidden_states, directions, trails, strict=True)]

    def adjust_logits(
        self, logits: Tensor, ids: Tensor, context: Context, sampling: Sampling
    ) -> Tensor:
        """The draft's logits (K,) over ids (K,), changed by what is recalled."""
        self._distributions = None if context.depth == 0 else self._distributions
        self._temperature = sampling.temperature or 1.0  # greedy text is learnt from as it is
        rows = self._rows()
        if rows is None or (self._recall_floor.acts and context.depth):
            return logits
        scale = self._temperature
        trail = torch.tensor([*context.tokens[: -TRAIL - 1 : -1], *[-1] * TRAIL][:TRAIL])
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        advised = interpolate_neighbours(logits / scale, context.hidden, ids, trail, rows) * scale
        if context.depth == 0 and self.config.floor:
            self._distributions = (
                sampling.distribution(logits, ids),
                sampling.distribution(advised, ids),
            )
        return logits if self._recall_floor.acts else advised

    def _rows(self) -> Rows | None:
        held = self.verdicts.filled
        return self.verdicts.rows.at(slice(held)) if held and self.config.recall else None

    def observe(self, finished: Round) -> Mapping[str, int]:
        """Learns from a finished round; what happened, counted by name. "changed" among it
        says that the draft's weights are others now."""
        events: Counter[str] = Counter()
        evidence = finished.evidence
        assert evidence is not None  # always there for those who learn
        told = zip(evidence.target_distributions, finished.tokens, strict=True)
        if not all(float(distribution.probability(token)) > 0 for distribution, token in told):
            # Not finite, or not the law that the token was drawn from: nothing here is true.
            self._read, self._distributions = self._read[-1:], None
            return {"refused_verdicts": len(finished.tokens)}
        pairs = zip(
            evidence.target_distributions, evidence.proposal.draft_distributions, strict=False
        )  # the bonus has no q
        overlaps = [_overlap(p, q) for p, q in pairs]
        for value in filter(math.isfinite, overlaps):
            self._acceptance += (value - self._acceptance) / 64
        if self._distributions:
            plain, mixed = (
                _overlap(evidence.target_distributions[0], distribution)
                for distribution in self._distributions
            )
            if math.isfinite(mixed - plain) and self._recall_floor.record(mixed - plain):
                events["recall_switched_off"] += 1
        self._distributions = None
        self._keep(finished, overlaps, events)
        self._since += len(finished.tokens)
        enough = self.verdicts.held >= self.config.window
        if self._since >= self.config.interval and enough and not self._lora_floor.acts:
            self._since = 0
            self._update(events)
        return events

    def tensors(self) -> Mapping[str, list[Tensor]]:
        """All that alignment holds beyond plain speculative decoding, by kind: what its memory
        is counted from."""
        parameters, averages = self._parameters(), self._optimiser.state.values()
        return {
            "weights": [p.data for p in parameters],
            "gradients": [p.grad for p in parameters if p.grad is not None],
            "optimiser": [v for s in averages for v in s.values() if isinstance(v, Tensor)],
            "buffer": [getattr(self.verdicts.rows, n) for n in Rows.__dataclass_fields__],
        }

    def _keep(self, finished: Round, overlaps: list[float], events: Counter[str]) -> None:
        """Stores what was read with the law that followed it. The draft has read all emitted
        tokens but, after a stop, this round's; the law after the last is not known yet."""
        assert finished.evidence is not None
        distributions = finished.evidence.target_distributions
        if finished.stop is None:
            known, distributions = self._read[:-1], distributions[-len(self._read) + 1 :]
        else:
            known, distributions = self._read[-1:], distributions[:1]
        known = known[-len(distributions) :] if distributions else []
        del self._read[:-1]
        if not known:
            return
        first = (
            len(finished.evidence.target_distributions) - len(distributions)
            if finished.stop is None
            else 0
        )
        # What was not proposed came after a chain that was accepted to its end.
        seen = [*overlaps, *[self._acceptance] * len(finished.tokens)][
            first : first + len(distributions)
        ]
        hard = [curriculum.difficulty(value, step) for step, value in enumerate(seen, first)]
        aux_hidden_states, directions, trails = (
            torch.stack(part) for part in zip(*known, strict=True)
        )
        refused = self.verdicts.add(
            aux_hidden_states, directions, trails, distributions, hard, self._text
        )
        events["refused_verdicts"] += refused

    def _update(self, events: Counter[str]) -> None:
        """One step on the newest positions and on some old ones, unless something is wrong."""
        old = self.verdicts.sampled() if self.config.replay else None
        newest = self.verdicts.newest()
        batch = self.verdicts.rows.at(torch.stack([newest] if old is None else [newest, old]))
        ids, raised = support(
            batch.ids, self.config.others, self.draft.head.vocab_size, self._generator
        )
        rows = self.draft.head.weight[ids]  # (K, D)
        places, probs = torch.searchsorted(ids, batch.ids).flatten(0, 1), batch.probs.flatten(0, 1)
        with torch.inference_mode(False), torch.enable_grad():
            logs = log_distribution(
                training_forward(self.draft, batch) / self._temperature, rows, raised
            )  # (N, K)
            if self.config.floor and self._hurts(batch, logs, rows, raised, places, probs):
                events["adapter_switched_off"] += 1
                events["changed"] += 1
                self._optimiser = self._rested()
                lora.restore(self.draft, self._untaught)
                return
            weights = torch.ones(len(probs))
            if self.config.curriculum:
                reached = curriculum.competence(self._acceptance)
                weights = curriculum.weights(batch.difficulty.flatten(), reached)
            losses = OBJECTIVES[self.config.objective](logs, probs, places)
            loss = (losses * weights).sum() / weights.sum().clamp(min=1)
            events["positions"] += len(probs)
            events["changed" if self._step(loss) else "refused_updates"] += 1

    def _parameters(self) -> list[torch.nn.Parameter]:
        return [p for m in lora.adapters(self.draft).values() for p in m.parameters(False)]

    def _rested(self) -> torch.optim.Optimizer:
        """An optimiser that has seen nothing. Made before it is needed: torch imports for the
        first one what takes a second, which no text is to wait for."""
        return torch.optim.Adam(self._parameters(), self.config.rate, betas=(0.9, 0.99))

    def _step(self, loss: Tensor) -> bool:
        """One step of the optimiser; False, and nothing changed, if a number is not finite."""
        parameters = self._parameters()
        good = lora.state(self.draft)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        sound = bool(loss.isfinite()) and bool(norm.isfinite())
        if sound:
            self._optimiser.step()
            sound = all(bool(p.isfinite().all()) for p in parameters)
        if sound:
            self.draft.version += 1
        else:  # the optimiser's averages may be spoilt as well
            lora.restore(self.draft, good)
            self._optimiser = self._rested()
        for parameter in parameters:
            parameter.grad = None
        return sound

    def _hurts(
        self, batch: Rows, logs: Tensor, rows: Tensor, raised: Tensor, places: Tensor, probs: Tensor
    ) -> bool:
        """The floor under the adapter: sum min(p, q) at the first step on the newest emitted
        positions, from which nothing was learnt yet, against the frozen draft, which reads
        them with keys and values of its own. Costs one pass over these positions."""
        if not self._optimiser.state:  # as frozen still
            return False
        new = slice(0, self.config.window)
        with torch.no_grad():
            hidden = training_forward(self._frozen, batch.at(slice(0, 1))) / self._temperature
            frozen = log_distribution(hidden, rows, raised)
            ours, theirs = (overlap(q[new], probs[new], places[new]) for q in (logs, frozen))
            return self._lora_floor.record(float((ours - theirs).mean()))


def training_forward(draft: EagleDraft, batch: Rows) -> Tensor:
    """The draft's states (B * W, D), ready for the LM head, at windows (B, W) of positions that
    look back as far as their window and their text go. Rotary positions are relative, so that
    a window may count from 0."""
    width = batch.trails.shape[1]
    places = torch.arange(width)
    cos, sin = draft.rope.turns(places, draft.embedding.dtype)
    same = batch.sequence[:, :, None] == batch.sequence[:, None]  # (B, W, W)
    seen = same & (places[:, None] >= places)
    mask = seen.repeat_interleave(draft.rope.group, dim=1)[:, None]  # (B, 1, W * group, W)

    def attend(x: Tensor) -> Tensor:
        queries, keys, values = draft.attention.project(x, cos, sin)
        return draft.attention.attend(queries, keys, values, mask)

    states = draft.fusion(batch.aux_hidden_states.to(draft.embedding.dtype))
    return draft.norm(draft.layer(batch.trails[:, :, 0], states, attend)).flatten(0, 1)


def _overlap(p: Distribution, q: Distribution) -> float:
    """sum_x min(p(x), q(x))."""
    ours, theirs = p.shared(q)
    return float(torch.minimum(p.probs[ours], q.probs.to(p.probs)[theirs]).sum())
