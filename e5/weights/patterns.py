"""Match an adapter's regular expressions, which are untrusted, in a process of their own.

Python's `re` backtracks: `(a+)+$` may run forever, and nothing in its own process can stop it.
"""

import json
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from e5.errors import WeightsError

Method = Literal["match", "fullmatch"]
MAX_SECONDS = 10.0
"""For all matches of one adapter. A request takes 30 µs, one regular expression with 224 modules 1 µs each."""
MAX_BYTES = 2**30
"""Memory of the process: `(?:a{9999}){9999}` takes more to compile."""

_SERVE = f"""
import json, re, sys
try:
    import resource
    resource.setrlimit(resource.RLIMIT_AS, ({MAX_BYTES}, {MAX_BYTES}))
except ImportError:
    pass  # Windows
compiled = {{}}
for line in sys.stdin:
    method, patterns, name = json.loads(line)
    answer = None
    try:
        for index, pattern in enumerate(patterns):
            if pattern not in compiled:
                compiled[pattern] = re.compile(pattern)
            if match := getattr(compiled[pattern], method)(name):
                answer = index, match.groupdict()
                break
    except (re.error, OverflowError, RecursionError, MemoryError) as error:
        answer = f"{{type(error).__name__}}: {{error}}"
    print(json.dumps(answer), flush=True)
"""


class Patterns:
    """`path`: the file that has the patterns, for error messages. The process starts with the first match."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._seconds = MAX_SECONDS
        self._process: subprocess.Popen[str] | None = None

    def first(self, method: Method, patterns: Sequence[str], name: str) -> tuple[int, dict[str, str]] | None:
        """The first pattern that matches a name, by a method of `re.Pattern`: its index and its named groups.

        Raises WeightsError for an invalid pattern, and when the time is over.
        """
        if self._process is None:
            self._process = subprocess.Popen(
                [sys.executable, "-I", "-c", _SERVE],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
            )
            weakref.finalize(self, _stop, self._process)
        process, started = self._process, time.monotonic()
        assert process.stdin and process.stdout
        timer = threading.Timer(max(0.0, self._seconds), process.kill)
        timer.start()
        try:
            process.stdin.write(json.dumps([method, list(patterns), name]) + "\n")
            process.stdin.flush()
            line = process.stdout.readline()
        except BrokenPipeError:
            line = ""
        finally:
            timer.cancel()
        self._seconds -= time.monotonic() - started
        answer = json.loads(line) if line else f"its patterns take longer than {MAX_SECONDS:.0f} s"
        if isinstance(answer, str):
            shown = ", ".join(patterns)
            raise WeightsError(
                f"{self._path} has a pattern that cannot be used ({answer:.100}): {shown:.200}; "
                "name the modules in a list instead, or merge the adapter with peft and use the result"
            )
        return None if answer is None else (answer[0], answer[1])


def _stop(process: "subprocess.Popen[str]") -> None:
    process.kill()
    process.communicate()
