"""Decoders of methods: a shortlist, a draft and a learner put together for a model.

Knows nothing of how methods are spelled.
"""

from collections.abc import Iterator, Sequence
from typing import Protocol, runtime_checkable

from torch import Tensor

from minispec.auto_shape import AutoShape, Shape, ShapeChooser
from minispec.checks import check_trees
from minispec.commit import StopRule
from minispec.decode import autoregressive, speculative
from minispec.errors import ArgumentError
from minispec.io.artifacts import find_artifact
from minispec.learning.learner import OnlineLearner
from minispec.learning.paper_learner import PaperLearner
from minispec.models.eagle3_draft import Eagle3Draft
from minispec.models.eagle_draft import EagleDraft
from minispec.models.quantized_matrix import QuantizedMatrix
from minispec.models.quantized_modules import copy_dequantized
from minispec.preconditions import check_gamma
from minispec.sampling import Sampling
from minispec.shortlists.dynaspec import DynaSpecShortlist
from minispec.shortlists.evospec import EvoSpecShortlist
from minispec.shortlists.evospec_paper import BUFFER, EvoSpecPaperShortlist
from minispec.shortlists.frspec import FRSpecShortlist
from minispec.shortlists.full import FullShortlist
from minispec.shortlists.lowrank import LowRankShortlist
from minispec.shortlists.microspec import MicroSpecShortlist
from minispec.suffix_decoding import suffix_decoding
from minispec.suffix_index import SuffixIndex
from minispec.tools.data import ranking
from minispec.tools.evaluation import plugins, shortlist_files
from minispec.tools.evaluation.draft_vocabulary import reduce_shortlist
from minispec.tools.evaluation.methods import OWN_SHARE, RANKING, Method
from minispec.tools.models.backend import LEARNING_BACKENDS, build_background_runner, choose_head
from minispec.tools.models.hnsw_cache import load_hnsw
from minispec.tools.models.pass_costs import load_costs
from minispec.tools.models.pretrained import Pretrained
from minispec.types import Draft, RandomSource, Round, Shortlist
from minispec.verify import Verifier


class Decoder(Protocol):
    """A method ready to decode; ``continued``: the prompt continues the conversation of the call
    before, so shortlist and learner keep their state (see ``speculative``)."""

    def __call__(
        self, prompt: Sequence[int], rng: RandomSource, *, continued: bool = False
    ) -> Iterator[Round]: ...


@runtime_checkable
class LearnableDraft(Protocol):
    """A draft on a fast path that can run with another draft's weights, even as they change."""

    reference: EagleDraft

    def with_weights_of(self, draft: EagleDraft) -> Draft:
        """This draft's kernels with the weights of ``draft``."""
        ...


def default_method(model: Pretrained, has_draft: bool) -> Method:
    """The best method whose parts the model has: EvoSpec with a draft, a ranking and an index of
    the LM head; FR-Spec without the index; the full vocabulary without a ranking, or all that a
    draft with a part of it has; plain decoding without a draft."""
    if not has_draft:
        return Method("autoregressive")
    if model.draft_ids is not None or not ranking.find_shipped_ranking(model.name, RANKING):
        return Method("full")
    has_index = model.index or find_artifact(model.name, "index")
    return Method.parse("evospec" if has_index else "frspec")


def build_shortlist(method: Method, model: Pretrained, domain: str | None) -> Shortlist:
    """The shortlist that a method drafts from, for prompts of a domain; one of the user's own is
    built with ``plugins.build_part``. For a draft with a part of the vocabulary it is reduced to
    that part. Raises ArgumentError, FileError, FingerprintError."""
    built = _build_shortlist(method, model, domain)
    if model.draft_ids is None:
        return built
    return reduce_shortlist(built, model.draft_ids, model.target.head.vocab_size)


def _build_shortlist(method: Method, model: Pretrained, domain: str | None) -> Shortlist:
    size, name = model.target.head.vocab_size, method.ranking_for(domain)
    if method.part is not None:
        inputs = {
            "vocab_size": lambda: size,
            "budget": lambda: max(1, round(OWN_SHARE * size)),
            "eos_ids": lambda: model.tokenizer.eos_ids,
            "ranking": lambda: shortlist_files.read_ranking(model, RANKING)[0],
            "clusters": lambda: shortlist_files.read_clusters(model),
            "rows": lambda: _cpu_rows(model),
            "tokenizer": lambda: model.tokenizer,
            "model": lambda: model,
        }
        given = {} if method.budget is None else {"budget": method.ids(size)}
        return plugins.build_part("shortlist", method.part, inputs, method.name, **given)
    if method.name == "microspec":
        return MicroSpecShortlist(size, int(method.ids(size) or 1))
    eos_ids = model.tokenizer.eos_ids
    if method.name == "lowrank":
        factors, count = shortlist_files.read_factors(model), method.ids(size) or 1
        return LowRankShortlist(
            _cpu_rows(model), count, eos_ids, factors, choose_head(model.backend)
        )
    if name is None:
        return FullShortlist(size)
    ids, file = shortlist_files.read_ranking(model, name)
    budget = method.ids(size)
    assert budget is not None  # a method with a ranking has one
    if budget > len(ids):
        raise ArgumentError(
            f"budget {budget} of {method} is more than the {len(ids)} ids that {file} ranks"
        )
    ranking.check_order(ids, budget if method.name == "frspec" else 0, file)
    if method.name == "frspec":
        whole = method.budget is None and ranking.is_token_map(file)
        return FRSpecShortlist(ids, budget, () if whole else eos_ids)
    if method.name == "evospec-paper":
        return _build_paper_shortlist(method, model, ids, budget)
    if method.name == "evospec":
        clusters = shortlist_files.read_clusters(model)
        head = model.reference.head.weight  # a quantised one is read where it lies
        rows = head if isinstance(head, QuantizedMatrix) else head.cpu()
        shortlist = EvoSpecShortlist(ids, budget, eos_ids, clusters, rows)
        semantic = shortlist.semantic
        semantic.head = choose_head(model.backend)(semantic.centroids)
        return shortlist
    clusters, router = shortlist_files.read_router(model)
    dtype = model.reference.head.weight.dtype
    return DynaSpecShortlist(ids, budget, eos_ids, clusters, router.to(dtype))


def _cpu_rows(model: Pretrained) -> Tensor:
    """The LM head's rows (V, D) on the CPU, where shortlists are, as are distributions."""
    return model.reference.head.tensor.cpu()


def _build_paper_shortlist(
    method: Method, model: Pretrained, ids: Tensor, core: int
) -> EvoSpecPaperShortlist:
    size, buffer = model.target.head.vocab_size, method.buffer or BUFFER
    if core + buffer > size:  # before an index is built
        raise ArgumentError(
            f"core {core} and buffer {buffer} of {method} exceed the vocabulary of {size} ids"
        )
    graph = shortlist_files.read_bigrams(model)
    rows = load_hnsw(_cpu_rows(model), model.fingerprint)
    delay = method.delay or 1
    # With a delay of one round there is nothing that a retrieval could run beside.
    runner = build_background_runner(model.backend) if delay > 1 else None
    return EvoSpecPaperShortlist(
        ids, core, model.tokenizer.eos_ids, rows, graph, buffer=buffer, delay=delay,
        **({"run": runner} if runner else {}),
    )  # fmt: skip


def build_learner(
    draft: Draft, adapt: str = "+adapt", *, carry: bool = False
) -> tuple[OnlineLearner | PaperLearner, Draft]:
    """A learner for a draft, "+adapt" or "+adapt:paper", and the draft to decode with; with
    ``carry`` it keeps what it learnt from one text to the next. Raises ArgumentError for a draft
    that cannot learn."""
    kind = PaperLearner if adapt == "+adapt:paper" else OnlineLearner
    if isinstance(draft, Eagle3Draft):
        raise ArgumentError(
            f"{adapt} needs a draft on the target's LM head, made by `minispec train draft`: an "
            "imported EAGLE-3 draft has a head of its own"
        )
    if isinstance(draft, EagleDraft):
        if (at := draft.fusion.weight.device.type) != "cpu":
            raise ArgumentError(f"{adapt} needs a draft on the CPU, not on {at}: use --device cpu")
        learner = kind(copy_dequantized(draft), carry=carry)
        return learner, learner.draft
    if isinstance(draft, LearnableDraft):
        learner = kind(copy_dequantized(draft.reference), carry=carry)
        return learner, draft.with_weights_of(learner.draft)
    where = " or ".join(LEARNING_BACKENDS)
    raise ArgumentError(f"{adapt} needs an EAGLE draft on backend {where}: this draft cannot learn")


def build_chooser(
    auto: AutoShape,
    model: Pretrained,
    sampling: Sampling,
    drafting: tuple[Draft, Shortlist] | None = None,
) -> ShapeChooser:
    """What chooses the shapes that ``auto`` stands for, by the costs of the model's passes and, if
    these are given, of its draft's with a shortlist: candidates are picked at temperature 0, and
    drawn without replacement above it."""
    candidates = "top" if sampling.temperature == 0 else "distinct"
    return auto.build_chooser(load_costs(model, sampling, drafting), candidates)


def build_decoder(
    method: Method,
    model: Pretrained,
    draft: Draft | None,
    domain: str | None,
    *,
    gamma: int,
    sampling: Sampling,
    stop: StopRule,
    trace: bool = False,
    verifier: str | Verifier = "token",
    shortlist: Shortlist | None = None,
    tree: Shape | ShapeChooser | None = None,
) -> Decoder:
    """A method ready to decode prompts of a domain: (ids, random source) -> rounds.
    ``shortlist`` replaces the method's own. ``tree``: None for chains of ``gamma`` tokens; a
    chooser is kept from prompt to prompt.

    With an ``AutoShape``, costs that were not measured before are measured now.

    Raises as ``build_shortlist``, and ArgumentError for gamma out of range, an unknown verifier,
    a missing draft, or one that drafts no trees.
    """
    target, tokenizer = model.target, model.tokenizer
    if method.name == "autoregressive":
        return lambda prompt, rng, *, continued=False: autoregressive(
            target, prompt, sampling=sampling, rng=rng, stop=stop,
            tokenizer=tokenizer, trace=trace,
        )  # fmt: skip
    check_gamma(gamma)
    verify = plugins.find_verifier(verifier)
    if method.name == "suffix":
        alone = build_chooser(tree, model, sampling) if isinstance(tree, AutoShape) else tree
        index = SuffixIndex()
        return lambda prompt, rng, *, continued=False: suffix_decoding(
            target, prompt, gamma=gamma, sampling=sampling, rng=rng, stop=stop, index=index,
            tokenizer=tokenizer, trace=trace, continued=continued, verifier=verify, tree=alone,
        )  # fmt: skip
    if draft is None:
        raise ArgumentError(
            f"method {method} needs a draft, and model {model.name} has none: use autoregressive "
            "or suffix, or train a draft and give it with --draft"
        )
    chosen = shortlist or build_shortlist(method, model, domain)
    drafting = draft.with_own_head()
    learner: OnlineLearner | PaperLearner | None = None
    if method.adapt:
        learner, drafting = build_learner(drafting, method.adapt)
    if not isinstance(tree, ShapeChooser | None) and not tree.is_chain:
        check_trees(target, drafting)
    beside = SuffixIndex() if method.suffix else None
    parts = drafting, chosen
    shape = build_chooser(tree, model, sampling, parts) if isinstance(tree, AutoShape) else tree
    return lambda prompt, rng, *, continued=False: speculative(
        target, drafting, chosen, prompt, gamma=gamma, sampling=sampling, rng=rng, stop=stop,
        tokenizer=tokenizer, trace=trace, continued=continued, verifier=verify, learner=learner,
        tree=shape, index=beside,
    )  # fmt: skip
