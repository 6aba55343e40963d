"""The command that writes a draft for other engines: export."""

import argparse

from minispec.errors import ArgumentError
from minispec.tools.cli.prepare import check_writable, load_model


def export(options: argparse.Namespace) -> None:
    """Writes a draft with a static shortlist. Raises ArgumentError for a method whose ids are not
    static and for a draft that the layout cannot hold."""
    from minispec.tools.evaluation.assembly import build_shortlist
    from minispec.tools.evaluation.methods import Method
    from minispec.tools.models import eagle3_export
    from minispec.types import Context

    method = Method.parse(options.method)
    if method.name not in ("frspec", "full") or method.adapt or method.suffix:
        raise ArgumentError(
            f"method {method} chooses ids while it decodes, and a file holds fixed ones: use "
            "frspec[@BUDGET][:RANKING] or full"
        )
    check_writable(options.out)
    model = load_model(
        options.model, draft=options.draft, dtype=options.dtype, backend="reference",
        threads=options.threads,
    )  # fmt: skip
    if model.draft is None:
        raise ArgumentError(f"model {model.name} has no draft: give one with --draft")
    eagle3_export.check_exportable(model.draft)
    rows = model.pretrained.reference.head.tensor
    shortlist = build_shortlist(method, model.pretrained, None)
    ids = shortlist.select(Context((), rows[0], 0))
    eagle3_export.export_draft(
        model.draft, ids, options.out, fingerprint=model.pretrained.fingerprint,  # type: ignore[arg-type]
        layout=options.layout, verifier=options.verifier,
    )  # fmt: skip
    print(f"wrote config.json and model.safetensors with {len(ids):,} ids into {options.out}")
