"""Child processes that cannot be started."""

import pytest

from push1st.hooks import NotDelivered, Target
from push1st.hooks.python import Python
from tests.unit.hooks.faults import without_descriptors


async def test_a_child_that_finds_no_descriptors_left_is_a_delivery_to_be_tried_again() -> None:
    way = Python(Target("app", "py://module:function", "", "", (), 5, 1, ""))
    with without_descriptors(), pytest.raises(NotDelivered, match="cannot be started: Too many open files"):
        await way.deliver("id", b"{}")
    await way.close()
