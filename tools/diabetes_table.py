"""The 442 patients of scikit-learn's diabetes data as a table of three owners.

    python -m tools.diabetes_table FOLDER

writes FOLDER/diabetes.csv: ten measurements of each patient, in their own units, and `progression`,
a measure of the disease a year later (Efron et al., *Least Angle Regression*, 2004). The column
`clinic` divides patients by age, so that the owners' patients differ.
"""

import csv
import sys
from pathlib import Path

import numpy as np

CLINICS = ("young", "middle", "old")


def write_table(file: Path) -> None:
    """All patients, a third of them for each clinic."""
    from sklearn.datasets import load_diabetes  # type: ignore[import-untyped]

    found = load_diabetes(scaled=False)
    age = found.data[:, found.feature_names.index("age")]
    thirds = np.searchsorted(np.quantile(age, [1 / 3, 2 / 3]), age, side="right")
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("w", newline="", encoding="utf-8") as opened:
        writer = csv.writer(opened)
        writer.writerow([*found.feature_names, "progression", "clinic"])
        for values, target, third in zip(found.data, found.target, thirds, strict=True):
            writer.writerow([*(f"{x:g}" for x in values), f"{target:g}", CLINICS[third]])


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python -m tools.diabetes_table FOLDER")
    write_table(Path(sys.argv[1]) / "diabetes.csv")
