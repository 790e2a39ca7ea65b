"""Pooling and scores against values computed by hand."""

import torch

from e5.network.pooling import POOLINGS, first_token, last_token, mean, normalize, scores

HIDDEN = torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0], [7.0, 8.0], [-9.0, 10.0]])
CU_SEQLENS = torch.tensor([0, 2, 3, 5], dtype=torch.int32)


def test_last_token() -> None:
    assert last_token(HIDDEN, CU_SEQLENS).tolist() == [[3.0, 4.0], [5.0, 6.0], [-9.0, 10.0]]


def test_first_token() -> None:
    assert first_token(HIDDEN, CU_SEQLENS).tolist() == [[1.0, 2.0], [5.0, 6.0], [7.0, 8.0]]


def test_mean() -> None:
    assert mean(HIDDEN, CU_SEQLENS).tolist() == [[2.0, 3.0], [5.0, 6.0], [-1.0, 9.0]]


def test_the_mean_accumulates_in_float32() -> None:
    # 511 × 1.0 + 1 × .5: a bfloat16 sum stops growing at 256, where the spacing is 2, so it cannot give this mean.
    hidden = torch.tensor([[1.0]] * 511 + [[0.5]], dtype=torch.bfloat16)
    got = mean(hidden, torch.tensor([0, 512], dtype=torch.int32))
    assert got.dtype == torch.float32 and got.item() == 511.5 / 512


def test_filler_and_empty_texts_do_not_change_a_mean() -> None:
    """As in a CUDA graph: rows of filler after the texts, which may be NaN, and unused texts of length 0."""
    filler = torch.full((3, 2), torch.nan)
    got = mean(torch.cat([HIDDEN, filler]), torch.tensor([0, 2, 3, 5, 5, 5], dtype=torch.int32))
    assert torch.equal(got[:3], mean(HIDDEN, CU_SEQLENS)) and len(got) == 5


def test_poolings_by_the_catalogue_s_names() -> None:
    assert torch.equal(POOLINGS["last"](HIDDEN, CU_SEQLENS), last_token(HIDDEN, CU_SEQLENS))
    assert torch.equal(POOLINGS["mean"](HIDDEN, CU_SEQLENS), mean(HIDDEN, CU_SEQLENS))
    assert torch.equal(POOLINGS["cls"](HIDDEN, CU_SEQLENS), first_token(HIDDEN, CU_SEQLENS))


def test_normalize_and_scores() -> None:
    rows = normalize(torch.tensor([[3.0, 4.0], [0.0, 0.0]]))
    torch.testing.assert_close(rows, torch.tensor([[0.6, 0.8], [0.0, 0.0]]))
    # cos of (3, 4) with (4, 3) is 24/25, with (-3, -4) it is -1; norms do not matter.
    matrix = scores(torch.tensor([[3.0, 4.0]]), torch.tensor([[400.0, 300.0], [-0.3, -0.4]]))
    torch.testing.assert_close(matrix, torch.tensor([[96.0, -100.0]]))
