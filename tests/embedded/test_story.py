"""A demonstration is verified by what is seen, and a step that shows nothing makes it fail."""

import pytest

from capstan.embedded.story import NotShown, Step, Story, until

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend():
    return "asyncio"


async def shows(stage):
    stage.append("told")
    return ["seen"]


async def fails(stage):
    raise NotShown("seen something else")


async def test_every_step_is_told_in_order_and_one_failure_fails_the_story():
    stage = []
    story = Story([Step("one", "real", shows), Step("two", "real", fails), Step("three", "real", shows)])
    moments = [(moment.kind, moment.title) async for moment in story.tell(stage)]
    assert moments == [(kind, title) for title in ("one", "two", "three") for kind in ("begins", "ended")]
    assert [(s.verified, s.evidence) for s in story.shown] == [
        (True, ["seen"]),
        (False, ["seen something else"]),
        (True, ["seen"]),
    ]
    assert not story.verified
    assert len(stage) == 2


async def test_a_story_is_verified_only_when_all_of_it_was_told():
    story = Story([Step("one", "real", shows)])
    assert not story.verified
    assert [moment async for moment in story.tell([])]
    assert story.verified


async def test_until_returns_what_it_sees_and_gives_up_with_what_it_waited_for():
    answers = iter([None, False, "it"])

    async def look():
        return next(answers)

    assert await until(look, "it comes", pause=0) == "it"

    async def never():
        return None

    with pytest.raises(NotShown, match="it was not seen that it comes"):
        await until(never, "it comes", patience=0.05, pause=0.01)
