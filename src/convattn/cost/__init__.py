"""Parameters and multiply-adds of any network, whole and by the stages of ACmix's table 1."""

from convattn.cost.count import Cost, OperatorCost, count
from convattn.ops.formulas import Convention

__all__ = ["Convention", "Cost", "OperatorCost", "count"]
