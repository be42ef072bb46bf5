"""What metrics of classes need of a plan."""

from collections.abc import Mapping

from fedpeft.core.facts import Fact

NEEDS_CLASSES: Mapping[Fact, str] = {
    Fact.TELLS_CLASSES: "metrics: {one} is of classes, and this task tells none apart: leave it "
    "out. A task of your own that gives logits (n, classes) says so by tells_classes = True"
}
