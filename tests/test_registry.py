"""Classes are registered by name, each name once, and a wrong one is a clear error."""

import pytest

from bertfast import BertfastError
from bertfast.objectives import OBJECTIVES
from bertfast.registry import SUMMARIES, Registry
from bertfast.tasks import TASKS


def test_a_class_is_registered_and_found_by_its_name():
    registry = Registry("thing")

    @registry.register
    class First:
        name = "first"

    assert isinstance(registry.find("first"), First)
    assert registry["first"] is registry.find("first")
    registry.register(First)  # a file that was run twice
    assert list(registry) == ["first"]


@pytest.mark.parametrize(
    ("attributes", "message"),
    [
        ({}, "the idea Other has no name"),
        ({"name": ""}, "the idea Other has no name"),
        ({"name": 3}, "the idea Other has no name"),
        ({"name": "other"}, "the idea 'other' has no use; it needs one"),
        ({"name": "first", "use": 1}, "there is an idea named 'first' already"),
    ],
)
def test_a_class_that_cannot_be_registered_is_refused(attributes, message):
    registry = Registry("idea", needs={"use": "it needs one"})
    registry.register(type("First", (), {"name": "first", "use": 1}))
    with pytest.raises(BertfastError) as refused:
        registry.register(type("Other", (), attributes))
    assert str(refused.value) == message
    assert list(registry) == ["first"]


@pytest.mark.parametrize("name", ["other", None, 3, ["first"]])
def test_a_name_that_is_not_registered_is_refused(name):
    registry = Registry("thing")
    registry.register(type("First", (), {"name": "first"}))
    with pytest.raises(BertfastError) as refused:
        registry.find(name)
    assert str(refused.value) == (
        f"thing is {name!r}; it must be one of first "
        "(an own one is registered by bertfast.register_thing)"
    )


def test_help_knows_the_built_in_ones_and_no_other():
    for kind, registry in (("objective", OBJECTIVES), ("task", TASKS)):
        own = {
            name: one.summary
            for name, one in registry.items()
            if type(one).__module__.startswith("bertfast.")
        }
        assert SUMMARIES[kind] == own
