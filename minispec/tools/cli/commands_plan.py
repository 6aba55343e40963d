"""The command that finds the fastest setting on this machine: plan. Bad options raise errors of
``minispec.errors``."""

import argparse
from dataclasses import replace
from typing import TYPE_CHECKING

from minispec.tools.cli.prepare import (
    check_writable,
    list_shaping,
    load_decoding_model,
    parse_methods,
)
from minispec.tools.cli.process import print_kept
from minispec.tools.extras import check_extra

if TYPE_CHECKING:
    from minispec.api.model import Model
    from minispec.tools.evaluation.methods import Method


def plan(options: argparse.Namespace) -> None:
    """Predicts and measures which shortlist, how many tokens and which tree pay here."""
    import torch

    from minispec.api.comparison import build_settings
    from minispec.api.request import build_sampling
    from minispec.tools.data import streams
    from minispec.tools.evaluation.methods import Method
    from minispec.tools.evaluation.plan import make_plan
    from minispec.tools.models import known_models
    from minispec.tools.reporting import plan_report

    check_extra("report", "matplotlib", "bokeh")
    methods = parse_methods(options.methods) if options.methods else []
    sampling = build_sampling(**list_shaping(options))
    base = known_models.is_base(options.model)
    settings = build_settings(
        methods or [Method("full")],  # until the model is there to choose for
        gammas=(1,),
        sampling=sampling.sampling,
        max_new_tokens=options.max_new_tokens,
        seed=options.seed,
        ignore_eos=options.ignore_eos,
        verifier=options.verifier,
        raw=options.raw or base,
    )
    prompts = streams.load_streams(options.prompts, options.limit, base)
    check_writable(options.out)
    model = load_decoding_model(options, measure_backends=True)
    settings = replace(
        settings,
        methods=tuple(methods or _choose_methods(model)),
        threads=torch.get_num_threads(),
        sampling=sampling.resolve(model.tokenizer),
    )
    found = make_plan(model.pretrained, model.draft, prompts, settings)
    print_kept(plan_report.format_plan(found))
    plan_report.write_plan(found, options.out)
    print(f"wrote plan.json and plan.png into {options.out}")


def _choose_methods(model: "Model") -> list["Method"]:
    """Budgets of the best kind of shortlist that the model has all parts of."""
    from minispec.tools.evaluation.assembly import default_method
    from minispec.tools.evaluation.methods import Method

    names = {
        "evospec": ("evospec@0.01", "evospec", "evospec@0.0625"),
        "frspec": ("frspec@0.125", "frspec@0.25", "frspec@0.5"),
    }
    best = default_method(model.pretrained, model.draft is not None).name
    return [Method.parse(name) for name in names.get(best, ("full",))]
