"""A nested seed that is asked for what it cannot do, or whose record fails, is as it was."""

from __future__ import annotations

import pytest
import torch

from kasmina_edge.errors import InputError
from kasmina_trainer.blueprints.port import Port
from kasmina_trainer.nesting import Budget
from kasmina_trainer.nesting.config import NestedSeedConfig
from kasmina_trainer.nesting.seed import NestedBranch
from kasmina_trainer.seeds.lifecycle import Step

PORT = Port.of((6, 8, 8), "s1")


def tree() -> NestedBranch:
    """``edge`` with ``a`` and ``b`` in it."""
    torch.manual_seed(0)
    branch = NestedBranch(PORT, NestedSeedConfig(children=()))
    branch.spawn("edge", "nested-seed", config={"children": ()}, budget=Budget(400, 90_000, 2000))
    for name in ("a", "b"):
        branch.nest("edge").spawn(name, "adapter", config={"bottleneck": 2})
    return branch


def places(branch: NestedBranch) -> list[str]:
    return [place for place, _ in branch.walk()]


def test_a_tree_is_retired_in_one_step_or_not_at_all():
    branch, before = tree(), places(tree())
    history = [tuple(nest.history) for _, nest in branch.nests()]

    def full(_: Step) -> None:
        raise OSError("no space left")

    with pytest.raises(OSError, match="no space"):
        branch.retire("edge", "idle", record=full)
    assert places(branch) == before == ["s1/edge", "s1/edge/a", "s1/edge/b"]
    assert [tuple(nest.history) for _, nest in branch.nests()] == history

    steps: list[Step] = []
    branch.retire("edge", "idle", record=steps.append)
    assert not places(branch) and branch.history[-1] == steps[-1]
    assert [(step.site, str(step.after)) for step in steps] == [("s1/edge", "removed")]
    assert steps[0].evidence["below"] == "s1/edge/a, s1/edge/b"


def test_a_grandchild_is_retired_by_its_own_parent():
    branch = tree()
    steps: list[Step] = []
    with pytest.raises(InputError, match="edge/a is a child of s1/edge") as caught:
        branch.retire("edge/a", "idle", record=steps.append)
    assert not steps and caught.value.next_step == "Call nest('edge').retire."
    branch.nest("edge").retire("a", "idle", record=steps.append)
    assert places(branch) == ["s1/edge", "s1/edge/b"] and "below" not in steps[0].evidence
