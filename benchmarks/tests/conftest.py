"""Makes the benchmarks' own modules and plugins importable, as they are when a benchmark runs."""

import sys
from pathlib import Path

_BENCHMARKS = Path(__file__).parents[1]

for folder in (_BENCHMARKS, _BENCHMARKS / "controls", _BENCHMARKS / "stopwatch"):
    sys.path.append(str(folder))
