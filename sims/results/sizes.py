"""Accuracy of methods size by size, beside the weights and bytes of each size."""

from collections.abc import Mapping
from dataclasses import dataclass

from collective_node.metrics import SizeFacts
from individual_node.method_table import METHODS, name_and_change
from protocol.learngene.architecture import FULL
from sims.results.comparison import in_order
from sims.results.models import MethodResult, Results


@dataclass(frozen=True)
class SizeRow:
    """One method at one size: the size's facts, the method's results by shots, and whether it inherits the weights."""

    method: str
    facts: SizeFacts
    by_shots: Mapping[int, MethodResult]
    inherits: bool


def size_rows(results: Results) -> list[SizeRow]:
    """Every method that was scored at several sizes, from the smallest size up; empty: none was."""
    found: dict[str, dict[str, Mapping[int, MethodResult]]] = {}
    for name, by_shots in results.methods.items():
        method, size = name_and_change(name)
        found.setdefault(method, {})[size or FULL] = by_shots
    rows = []
    for method in in_order(name for name in found if name in METHODS):
        known = METHODS[method]
        learngene = results.collective.learngenes.get(known.form or "")
        scored = [facts for facts in (learngene.sizes if learngene else ()) if facts.size in found[method]]
        if len(scored) > 1:
            rows += [SizeRow(method, facts, found[method][facts.size], known.inherits) for facts in scored]
    return rows
