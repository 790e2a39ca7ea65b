"""Who comes first, worked out by hand on short texts: no threads, no model."""

from hypothesis import given
from hypothesis import strategies as st

from e5.turns import Text, Turns


def text(name: str, tokens: int) -> bytes:
    return name.encode().ljust(4 * tokens, b".")


def names(batch: list[Text[str]]) -> list[str]:
    return [one.ids.decode().rstrip(".") for one in batch]


def test_requests_put_in_one_text_each_until_the_budget_is_full() -> None:
    turns: Turns[str] = Turns()
    turns.enter("long", [text(f"l{index}", 4) for index in range(5)])
    turns.enter("short", [text("s0", 2)])
    turns.enter("middle", [text("m0", 4), text("m1", 4)])
    # In turns: l0 s0 m0 l1 fill 14 of 16 tokens; m1 does not fit, nor does l2.
    assert names(turns.take(16)) == ["l0", "m0", "l1", "s0"]
    assert names(turns.take(16)) == ["m1", "l2", "l3", "l4"]
    assert turns.take(16) == []


def test_a_text_that_does_not_fit_is_the_first_of_the_next_batch_and_others_fill_its_place() -> None:
    turns: Turns[str] = Turns()
    turns.enter("a", [text("a0", 6)])
    turns.enter("big", [text("b0", 10)])
    turns.enter("c", [text("c0", 4)])
    turns.enter("d", [text("d0", 1)])
    assert names(turns.take(10)) == ["a0", "c0"]
    assert names(turns.take(10)) == ["b0"]
    assert names(turns.take(10)) == ["d0"]


def test_a_text_longer_than_the_budget_goes_alone() -> None:
    turns: Turns[str] = Turns()
    turns.enter("huge", [text("h0", 50), text("h1", 1)])
    turns.enter("other", [text("o0", 1)])
    assert names(turns.take(10)) == ["h0"]
    assert names(turns.take(10)) == ["o0", "h1"]


def test_a_stream_of_short_requests_does_not_hold_up_a_long_one() -> None:
    """Eight clients of which each asks again at once, and a long request: it puts in a text each time they have."""
    turns: Turns[str] = Turns()
    turns.enter("long", [text(f"l{index}", 8) for index in range(20)])
    for number in range(8):
        turns.enter(f"s{number}", [text(f"s{number}", 6)])
    served, number = 0, 8
    while "long" in turns.requests:
        for one in turns.take(16):
            for request, _ in turns.finish(one):
                if request == "long":
                    served += 1
                    if served == 20:
                        turns.leave("long")
                else:
                    turns.leave(request)
                    turns.enter(f"s{number}", [text(f"s{number}", 6)])
                    number += 1
        assert number <= 8 + 8 * (served + 1), "a text of the long one to at most eight short ones"
    assert number >= 7 * 20, "the short ones had their turns"


def test_equal_texts_are_taken_once_and_given_to_all() -> None:
    turns: Turns[str] = Turns()
    turns.enter("a", [text("same", 3), text("a1", 2), text("same", 3)])
    turns.enter("b", [text("b0", 9), text("same", 3)])
    (first, second) = turns.take(12)
    assert names([first, second]) == ["b0", "same"]
    turns.enter("c", [text("same", 3)])  # while it is with the device
    assert names(turns.take(100)) == ["a1"], "nothing is taken twice"
    assert turns.finish(second) == [("a", [0, 2]), ("b", [1]), ("c", [0])]
    turns.enter("d", [text("same", 3)])
    assert names(turns.take(100)) == ["same"], "what is finished is forgotten"


def test_a_text_keeps_its_place_in_a_short_request_when_a_long_one_has_it_too() -> None:
    turns: Turns[str] = Turns()
    turns.enter("long", [*(text(f"l{index}", 4) for index in range(100)), text("z", 1)])
    turns.enter("short", [text("z", 1)])
    assert names(turns.take(10)) == ["l0", "l1", "z"]


def test_who_leaves_is_not_computed_but_what_others_share_is() -> None:
    turns: Turns[str] = Turns()
    turns.enter("a", [text("own", 3), text("shared", 2)])
    turns.enter("b", [text("shared", 2)])
    turns.leave("a")
    turns.leave("a")
    assert turns.requests == ["b"]
    (shared,) = turns.take(100)
    assert turns.finish(shared) == [("b", [0])]
    turns.enter("c", [text("own", 3)])
    assert names(turns.take(100)) == ["own"]


def test_who_leaves_while_computed_gets_nothing() -> None:
    turns: Turns[str] = Turns()
    turns.enter("a", [text("x", 3)])
    (taken,) = turns.take(100)
    turns.leave("a")
    turns.enter("b", [text("x", 3)])
    assert turns.take(100) == []
    assert turns.finish(taken) == [("b", [0])]


@given(
    st.lists(st.lists(st.tuples(st.integers(0, 5), st.integers(1, 9)), min_size=1, max_size=6), max_size=6),
    st.integers(1, 20),
)
def test_every_row_is_served_exactly_once_and_the_budget_holds(
    requests: list[list[tuple[int, int]]], budget: int
) -> None:
    turns: Turns[str] = Turns()
    for number, texts in enumerate(requests):
        turns.enter(str(number), [text(str(name), tokens) for name, tokens in texts])
    served: dict[str, list[int]] = {str(number): [] for number in range(len(requests))}
    while batch := turns.take(budget):
        assert len(batch) == 1 or sum(map(len, batch)) <= budget
        for one in batch:
            for request, rows in turns.finish(one):
                served[request] += rows
    assert {name: sorted(rows) for name, rows in served.items()} == {
        str(number): list(range(len(texts))) for number, texts in enumerate(requests)
    }
    for name in served:
        turns.leave(name)
    assert not turns._texts and not turns.requests, "nothing is kept"
