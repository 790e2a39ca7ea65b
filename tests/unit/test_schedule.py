"""Schedules worked out by hand on short texts, without threads or a model."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from e5.serving.schedule import Schedule, Text
from e5.tokens import TokenIds


def text(name: str, tokens: int) -> TokenIds:
    """Token ids whose bytes spell the name."""
    return np.frombuffer(name.encode().ljust(4 * tokens, b"."), dtype=np.int32)


def names(batch: list[Text[str]]) -> list[str]:
    return [text.ids.tobytes().decode().rstrip(".") for text in batch]


def test_half_of_a_batch_goes_to_the_oldest_and_half_to_the_shortest_requests() -> None:
    schedule: Schedule[str] = Schedule()
    schedule.enter("long", [text(f"l{index}", 4) for index in range(6)])
    schedule.enter("middle", [text("m0", 4), text("m1", 4)])
    schedule.enter("short", [text("s0", 2)])
    # 8 of 16 tokens: l0 l1. Then short (2 tokens left), then one text of middle (8 left). l2 no longer fits.
    assert names(schedule.take(16)) == ["l0", "l1", "m0", "s0"]
    assert names(schedule.take(16)) == ["l2", "l3", "m1", "l4"]
    assert names(schedule.take(16)) == ["l5"]
    assert schedule.take(16) == []


def test_equal_requests_finish_in_order_of_arrival() -> None:
    schedule: Schedule[str] = Schedule()
    for name in "abc":
        schedule.enter(name, [text(f"{name}{index}", 4) for index in range(4)])
    assert [names(schedule.take(16)) for _ in range(3)] == [[f"{name}{index}" for index in range(4)] for name in "abc"]


def test_no_share_accumulates_while_every_request_fits() -> None:
    schedule: Schedule[str] = Schedule()
    for number in range(100):
        schedule.enter(f"s{number}", [text(f"s{number}", 4)])
        for taken in schedule.take(16):
            schedule.finish(taken)
        schedule.leave(f"s{number}")
    schedule.enter("bulk", [text(f"b{index}", 4) for index in range(20)])
    schedule.enter("short", [text("short", 4)])
    assert "short" in names(schedule.take(16)), "a hundred small batches give a large request no claim to whole batches"


def test_oldest_request_advances_with_a_budget_of_one_token() -> None:
    schedule: Schedule[str] = Schedule()
    schedule.enter("old", [text("old", 5)])
    for number in range(4):
        schedule.enter(f"s{number}", [text(f"s{number}", 1)])
    taken = [names(schedule.take(1)) for _ in range(5)]
    assert taken == [["s0"], ["s1"], ["s2"], ["s3"], ["old"]]


def test_second_oldest_gets_the_unused_share() -> None:
    schedule: Schedule[str] = Schedule()
    schedule.enter("a", [text("a", 2)])
    schedule.enter("b", [text("b", 6)])
    for number in range(14):
        schedule.enter(f"s{number}", [text(f"s{number}", 1)])
    assert names(schedule.take(16))[:2] == ["b", "a"], "fourteen shorter ones would fill the batch without b"
    assert len(schedule.take(16)) == 6


def test_other_requests_use_the_room_that_a_text_does_not_fit() -> None:
    schedule: Schedule[str] = Schedule()
    schedule.enter("a", [text("a0", 6)])
    schedule.enter("big", [text("b0", 8), text("b1", 1)])
    schedule.enter("c", [text("c0", 10)])
    assert names(schedule.take(10)) == ["a0"]
    assert names(schedule.take(10)) == ["b0", "b1"]
    assert names(schedule.take(10)) == ["c0"]


def test_text_longer_than_the_budget_is_a_batch_of_its_own() -> None:
    schedule: Schedule[str] = Schedule()
    schedule.enter("huge", [text("h0", 50), text("h1", 1)])
    assert names(schedule.take(10)) == ["h0"]
    assert names(schedule.take(10)) == ["h1"]


def test_share_accumulates_for_a_text_longer_than_half_of_the_budget() -> None:
    schedule: Schedule[str] = Schedule()
    schedule.enter("long", [text(f"l{index}", 10) for index in range(3)])
    batches = []
    for number in range(6):
        schedule.enter(f"s{number}", [text(f"s{number}", 9)])  # a shorter request before every batch
        batches += [names(schedule.take(10))]
    assert batches == [["s0"], ["l0"], ["s1"], ["l1"], ["s2"], ["l2"]], "every second batch is the oldest request's"


def test_short_requests_and_a_long_one_do_not_block_each_other() -> None:
    """A long request, and eight clients that send their next short request at once."""
    schedule: Schedule[str] = Schedule()
    schedule.enter("long", [text(f"l{index}", 8) for index in range(20)])
    for number in range(8):
        schedule.enter(f"s{number}", [text(f"s{number}", 4)])
    number, served = 8, 0
    for batch in range(1, 21):
        taken = names(schedule.take(16))
        served += sum(name.startswith("l") for name in taken)
        assert served == batch and len(taken) == 3, "each batch has one text of the long request and two short requests"
        for name in [name for name in taken if name.startswith("s")]:
            schedule.leave(name)
            schedule.enter(f"s{number}", [text(f"s{number}", 4)])
            number += 1


def test_equal_texts_are_computed_once_for_all_requests() -> None:
    schedule: Schedule[str] = Schedule()
    schedule.enter("a", [text("same", 3), text("a1", 2), text("same", 3)])
    schedule.enter("b", [text("b0", 9), text("same", 3)])
    same, other = schedule.take(6)
    assert names([same, other]) == ["same", "a1"]
    schedule.enter("c", [text("same", 3)])  # while the device computes it
    assert names(schedule.take(100)) == ["b0"], "no text is taken twice"
    assert schedule.finish(same) == [("a", [0, 2]), ("b", [1]), ("c", [0])]
    schedule.enter("d", [text("same", 3)])
    assert names(schedule.take(100)) == ["same"], "a finished text is forgotten"


def test_text_shared_with_a_long_request_keeps_the_short_request_s_priority() -> None:
    schedule: Schedule[str] = Schedule()
    schedule.enter("long", [*(text(f"l{index}", 4) for index in range(100)), text("z", 1)])
    schedule.enter("short", [text("z", 1)])
    assert names(schedule.take(10)) == ["l0", "l1", "z"]


def test_cancelled_request_s_texts_are_dropped_unless_shared() -> None:
    schedule: Schedule[str] = Schedule()
    schedule.enter("a", [text("own", 3), text("shared", 2)])
    schedule.enter("b", [text("shared", 2)])
    schedule.leave("a")
    schedule.leave("a")
    assert schedule.requests == ["b"]
    (shared,) = schedule.take(100)
    assert schedule.finish(shared) == [("b", [0])]
    schedule.enter("c", [text("own", 3)])
    assert names(schedule.take(100)) == ["own"]


def test_request_cancelled_while_computed_gets_no_rows() -> None:
    schedule: Schedule[str] = Schedule()
    schedule.enter("a", [text("x", 3)])
    (taken,) = schedule.take(100)
    schedule.leave("a")
    schedule.enter("b", [text("x", 3)])
    assert schedule.take(100) == []
    assert schedule.finish(taken) == [("b", [0])]


@given(
    st.lists(st.lists(st.tuples(st.integers(0, 5), st.integers(1, 9)), min_size=1, max_size=6), max_size=6),
    st.integers(1, 20),
)
def test_every_row_is_computed_exactly_once_within_the_budget(
    requests: list[list[tuple[int, int]]], budget: int
) -> None:
    schedule: Schedule[str] = Schedule()
    for number, texts in enumerate(requests):
        schedule.enter(str(number), [text(str(name), tokens) for name, tokens in texts])
    served: dict[str, list[int]] = {str(number): [] for number in range(len(requests))}
    while batch := schedule.take(budget):
        assert len(batch) == 1 or sum(map(len, batch)) <= budget
        for taken in batch:
            for request, rows in schedule.finish(taken):
                served[request] += rows
    assert {name: sorted(rows) for name, rows in served.items()} == {
        str(number): list(range(len(texts))) for number, texts in enumerate(requests)
    }
    for name in served:
        schedule.leave(name)
    assert not schedule._texts and not schedule.requests, "nothing is left over"
