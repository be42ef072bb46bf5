"""One racer: `python -m benchmarks.racing RACER COURSE RESULT [VARIANT]`, started by
`benchmarks.race`.

Racers are imported by their names, so that what they send to other processes is found there too.
"""

import sys
from importlib import import_module
from pathlib import Path

from benchmarks.racing.course import Course, Track

if __name__ == "__main__":
    name, folder, result, *variant = sys.argv[1:]
    import_module(f"benchmarks.racing.{name}").run(
        Course(Path(folder)), Track(Path(result)), *variant
    )
