"""Libraries that only some commands need, installed as extras of the distribution."""

from importlib.util import find_spec

from minispec.errors import ArgumentError


def check_extra(extra: str, *modules: str) -> None:
    """Raises ArgumentError if a module of an extra ("report", "train") is not installed."""
    missing = [module for module in modules if find_spec(module) is None]
    if missing:
        raise ArgumentError(
            f"{' and '.join(missing)} not installed: get the extra with "
            f"pip install 'minispec-decoding[{extra}]'"
        )
