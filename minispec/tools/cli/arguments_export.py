"""The options of the command that writes a draft for other engines.

Knows nothing of how it is carried out, and imports nothing slow.
"""

from pathlib import Path
from typing import Any

from minispec.tools.cli import options


def add_export(commands: Any) -> None:
    """The command ``export``."""
    export = commands.add_parser("export", help="write a draft for vLLM, SGLang or speculators")
    options.add_model(export)
    options.add_draft(export)
    export.add_argument(
        "--method", default="frspec", metavar="METHOD",
        help="the draft's vocabulary: frspec[@BUDGET][:RANKING], or full (default: frspec)",
    )  # fmt: skip
    export.add_argument(
        "--layout", choices=("eagle3", "speculators"), default="eagle3",
        help="eagle3: SafeAILab's, which vLLM and SGLang read (default: eagle3)",
    )  # fmt: skip
    export.add_argument(
        "--verifier", metavar="NAME",
        help="with --layout speculators: the target's name or folder, as the engine calls it",
    )  # fmt: skip
    export.add_argument(
        "--dtype", choices=("float32", "bfloat16"), default="float32",
        help="of the weights (default: float32)",
    )  # fmt: skip
    options.add_threads(export)
    export.add_argument("--out", required=True, type=Path, help="folder")
    export.set_defaults(command="export")
