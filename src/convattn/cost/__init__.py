"""Parameters and multiply-adds of any network, whole and by the stages of ACmix's table 1."""

from convattn.cost.count import Convention, Cost, count

__all__ = ["Convention", "Cost", "count"]
