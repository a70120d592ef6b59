"""Writes RESULTS.md, the page on algorithms, and the curves, from the numbers that the benchmarks left behind.

    python benchmarks/report.py

The text holds no number of its own, so that it cannot disagree with the files.
"""

import json
from pathlib import Path

import algorithms_report
import engines_report
import gpu_report
import layouts_report
import learning_report
import ray_report
import speed_report
from curves import draw_algorithms, draw_curves, draw_simulation

HERE = Path(__file__).parent
DOCS = HERE.parent / "docs"
LEARNING = HERE / "learning.json"
LAYOUTS = HERE / "layouts.json"
ALGORITHMS = HERE / "algorithms.json"
ALGORITHMS_PAGE = DOCS / "reference" / "algorithms" / "results.md"
ALGORITHMS_PICTURE = DOCS / "images" / "algorithms.png"
SPEED = HERE / "speed.json"
RAY = HERE / "ray.json"
ENGINES = HERE / "engines.json"
SIMULATION = HERE / "simulation.json"
GPU = HERE / "gpu.json"
SUITE = HERE / "suite.json"
TITLE = """\
# Results

Written by `make bench`, `make bench-learning`, `make test-all` and, where there is a GPU, \
`python benchmarks/gpu.py`; the numbers are in `speed.json`, `learning.json`, `layouts.json`, \
`algorithms.json`, `ray.json`, `engines.json`, `simulation.json`, `suite.json` and `gpu.json` beside this page.
"""


def write() -> None:
    """Write what there are numbers for."""
    parts = [TITLE]
    if LEARNING.exists():
        learning = json.loads(LEARNING.read_text())
        draw_curves(learning["seeds"], HERE / "learning.png")
        parts.append(learning_report.section(learning))
    if LAYOUTS.exists():
        parts.append(layouts_report.section(json.loads(LAYOUTS.read_text())))
    if ALGORITHMS.exists():
        algorithms = json.loads(ALGORITHMS.read_text())
        draw_algorithms(algorithms["rows"], ALGORITHMS_PICTURE)
        ALGORITHMS_PAGE.parent.mkdir(exist_ok=True)
        ALGORITHMS_PAGE.write_text(algorithms_report.page(algorithms))
        parts.append(algorithms_report.section(algorithms))
    if SPEED.exists():
        parts.append(speed_report.section(json.loads(SPEED.read_text())))
    if RAY.exists() and ray_report.is_whole(ray := json.loads(RAY.read_text())):
        parts.append(ray_report.section(ray))
    engines = json.loads(ENGINES.read_text()) if ENGINES.exists() else {}
    if SIMULATION.exists():
        engines["simulation"] = json.loads(SIMULATION.read_text())
        draw_simulation(engines["simulation"], HERE / "simulation.png")
    parts.append(engines_report.section(engines))
    parts.append(gpu_report.section(json.loads(GPU.read_text()) if GPU.exists() else None))
    if SUITE.exists():
        import suite  # which imports this module

        parts.append(suite.section(json.loads(SUITE.read_text())))
    (HERE / "RESULTS.md").write_text("\n".join(parts))


if __name__ == "__main__":
    write()
