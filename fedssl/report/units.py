"""Numbers as a person reads them."""

import math


def human_bytes(num_bytes: int) -> str:
    """Return a size such as "44.7 MB", in powers of 1000."""
    size = float(num_bytes)
    for unit in ("B", "kB", "MB", "GB"):
        if size < 999.95:
            return f"{num_bytes} B" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"


def human_seconds(seconds: float) -> str:
    """Return a duration such as "2.1 s", "3 min 05 s" or "1 h 02 min"."""
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60:02d} min"


def human_number(value: float | None, digits: int = 3) -> str:
    """Return `value` with `digits` decimals; a dash when it is missing."""
    return "-" if value is None or math.isnan(value) else f"{value:.{digits}f}"


def human_difference(final: float | None, untrained: float | None) -> str:
    """Return the signed difference with three decimals; a dash when either is missing."""
    if final is None or untrained is None or math.isnan(final - untrained):
        return "-"
    return f"{final - untrained:+.3f}"


def human_epsilon(epsilon: float) -> str:
    """Return an epsilon with three digits after the point, never below what it is."""
    return f"{math.ceil(epsilon * 1000) / 1000:.3f}" if math.isfinite(epsilon) else "infinite"
