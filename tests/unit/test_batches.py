"""Packing: examples computed by hand, and properties for any lengths."""

from hypothesis import given
from hypothesis import strategies as st

from e5.network.batches import COARSE_STEP, FINE_STEP, Run, bucket_size, plan
from tests.token_ids import pack


def test_longest_texts_first_within_the_budget() -> None:
    assert plan([3, 9, 5, 5, 1], 10) == [[1], [2, 3], [0, 4]]


def test_a_text_over_the_budget_is_its_own_batch() -> None:
    assert plan([2, 50, 2], 10) == [[1], [0, 2]]
    assert plan([], 10) == []


@given(st.lists(st.integers(1, 40), max_size=60), st.integers(1, 64))
def test_every_text_is_in_exactly_one_batch(lengths: list[int], budget: int) -> None:
    batches = plan(lengths, budget)
    assert sorted(index for batch in batches for index in batch) == list(range(len(lengths)))
    for batch in batches:
        assert len(batch) == 1 or sum(lengths[index] for index in batch) <= budget
    flat = [lengths[index] for batch in batches for index in batch]
    assert flat == sorted(lengths, reverse=True)


def test_one_row_without_padding() -> None:
    batch = pack([[1, 7, 8, 2], [1, 9, 6, 2], [1, 2]])
    assert batch.input_ids.tolist() == [1, 7, 8, 2, 1, 9, 6, 2, 1, 2]
    assert batch.position_ids.tolist() == [0, 1, 2, 3, 0, 1, 2, 3, 0, 1]
    assert batch.cu_seqlens.tolist() == [0, 4, 8, 10]
    assert batch.runs == (Run(start=0, count=2, length=4), Run(start=8, count=1, length=2))
    assert batch.max_seqlen == 4


def test_positions_of_xlm_roberta() -> None:
    assert pack([[0, 5, 2], [0, 2]], padding_idx=1).position_ids.tolist() == [2, 3, 4, 2, 3]
    assert pack([[0, 1, 5, 1, 2], [0, 2]], padding_idx=1).position_ids.tolist() == [2, 1, 3, 1, 4, 2, 3]


def test_bucket_sizes_are_few_and_at_most_an_eighth_larger() -> None:
    coarse = [bucket_size(count, COARSE_STEP) for count in range(1, 4097)]
    assert all(0 <= size - count < 32 or size - count <= count / 8 for count, size in enumerate(coarse, 1))
    assert sorted(set(coarse))[15:20] == [512, 576, 640, 704, 768]
    assert len(set(coarse)) == 40
    fine = [bucket_size(count, FINE_STEP) for count in range(1, 4097)]
    assert all(0 <= size - count <= max(1, count / 8) for count, size in enumerate(fine, 1))
    assert sorted(set(fine))[:20] == [*range(2, 17), 18, 20, 22, 24, 26]
    assert len(set(fine)) == 79
    assert coarse[-1] == fine[-1] == 4096


def test_filler_follows_the_texts_and_belongs_to_none() -> None:
    ids = [[1, 5, 6, 2], [1, 7, 2]]
    plain, filled = pack(ids), pack(ids, bucket_step=COARSE_STEP)
    assert len(plain.input_ids) == 7 and len(filled.input_ids) == len(filled.position_ids) == 32
    assert filled.input_ids[:7].tolist() == plain.input_ids.tolist()
    assert filled.position_ids[:7].tolist() == plain.position_ids.tolist()
    assert (filled.cu_seqlens.tolist(), filled.runs, filled.max_seqlen) == ([0, 4, 7], plain.runs, 4)
