"""How long OpenMP's threads spin while they wait for work: on behalf of servers on a CPU, which share it with a model.

Measured on two cores with the embedded model in bfloat16: one query and one document in a process of its own, p50 and
p90 in ms, beside so many processes that keep a core busy; and requests/s of the Cog server with 8 clients:

| GOMP_SPINCOUNT | alone | beside one | beside two | server |
|---|---|---|---|---|
| 20000 | 4.7, 5.1 | 28, 29 | 9, 13 | 180 |
| 60000 | 4.6, 5.0 | 18, 69 | 9, 13 | 221 |
| 200000 | 4.5, 4.8 | 13, 127 | 13, 18 | 248 |

libgomp's own default is 300000, OMP_WAIT_POLICY=PASSIVE means none at all: 8 ms alone instead of 4.3.
"""

import os


def spin_shortly() -> None:
    """Set GOMP_SPINCOUNT unless the user has decided. Works only before torch is imported: libgomp reads it then."""
    if not os.environ.get("OMP_WAIT_POLICY"):
        os.environ.setdefault("GOMP_SPINCOUNT", "60000")
