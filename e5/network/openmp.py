"""How long OpenMP threads spin while they wait for work. On a CPU, spinning takes cores from the server's own threads.

Measured on two cores with the embedded model in bfloat16. First columns: p50 and p90 in ms of one query and one
document in a process of its own, while 0, 1 or 2 other processes keep a core busy. Last: requests/s of the Cog server
with 8 clients.

| GOMP_SPINCOUNT | 0 busy | 1 busy | 2 busy | server |
|---|---|---|---|---|
| 20000 | 4.7, 5.1 | 28, 29 | 9, 13 | 180 |
| 60000 | 4.6, 5.0 | 18, 69 | 9, 13 | 221 |
| 200000 | 4.5, 4.8 | 13, 127 | 13, 18 | 248 |

libgomp's default is 300000. OMP_WAIT_POLICY=PASSIVE turns spinning off: p50 with 0 busy is then 8 ms instead of 4.3.
"""

import os


def spin_shortly() -> None:
    """Set GOMP_SPINCOUNT unless the user did. Call before importing torch, when libgomp reads it."""
    if not os.environ.get("OMP_WAIT_POLICY"):
        os.environ.setdefault("GOMP_SPINCOUNT", "60000")
