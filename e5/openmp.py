"""How long OpenMP's threads spin while they wait for work: short, on behalf of servers on a CPU.

Measured through the Cog server on two cores, forward pass of one query and one document in the embedded model:

| setting | idle cores | with a busy neighbour process |
|---|---|---|
| libgomp's default: spin for milliseconds | 4.5 ms | 9 ms, and 230 ms with two neighbours |
| GOMP_SPINCOUNT=20000 | 4.3 ms | 8.5 ms |
| OMP_WAIT_POLICY=PASSIVE: no spin | 8 ms | 6 ms |
"""

import os


def spin_shortly() -> None:
    """Set GOMP_SPINCOUNT unless the user has decided. Works only before torch is imported: libgomp reads it then."""
    if not os.environ.get("OMP_WAIT_POLICY"):
        os.environ.setdefault("GOMP_SPINCOUNT", "20000")
