"""Solutions of the exercises of chapter 1, as ``minispec.exercises`` grades them."""


def ridge_positions(bandwidth, operations, bytes_per_weight):
    """Up to how many positions a pass is bound by memory.

    bandwidth: bytes a second; operations: of arithmetic, a second. A pass reads each weight once
    and performs two operations for each weight and position.
    """
    return bytes_per_weight * operations / (2 * bandwidth)


def pass_seconds(n, weights, bandwidth, operations):
    """The seconds of a pass over n positions, by the roofline, in float32."""
    return max(4 * weights / bandwidth, 2 * n * weights / operations)
