"""Keys and initial values are functions of (seed, what, index)."""

import torch

from megatron.parallel.random import BLOCK_ROWS, derive_key, fill_normal

ROWS, COLUMNS = 3 * BLOCK_ROWS + 17, 11


def filled(rows: slice, columns: slice = slice(0, COLUMNS), *, seed: int = 1, name: str = "w"):
    out = torch.empty(rows.stop - rows.start, columns.stop - columns.start)
    first = (rows.start, columns.start)
    fill_normal(out, seed, name, std=0.5, num_columns=COLUMNS, first=first)
    return out


def test_any_cut_of_a_matrix_draws_the_same_bits():
    whole = filled(slice(0, ROWS))
    for rows in (slice(0, 5), slice(100, 140), slice(BLOCK_ROWS, 2 * BLOCK_ROWS), slice(390, ROWS)):
        assert torch.equal(filled(rows), whole[rows])
    assert torch.equal(filled(slice(90, 300), slice(3, 7)), whole[90:300, 3:7])


def test_rows_appended_change_none_before_them():
    assert torch.equal(filled(slice(0, ROWS + 50))[:ROWS], filled(slice(0, ROWS)))


def test_threads_do_not_change_the_bits():
    expected = filled(slice(0, ROWS))
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        assert torch.equal(filled(slice(0, ROWS)), expected)
    finally:
        torch.set_num_threads(threads)


def test_values_are_normal_and_differ_by_seed_name_and_block():
    whole = filled(slice(0, ROWS))
    error = 0.5 / (2 * whole.numel()) ** 0.5
    assert abs(whole.std().item() - 0.5) < 4 * error
    assert abs(whole.mean().item()) < 4 * 1.5 * error
    assert abs((whole.abs() < 0.5).float().mean().item() - 0.6827) < 0.03
    for other in (filled(slice(0, ROWS), seed=2), filled(slice(0, ROWS), name="v")):
        assert not torch.isclose(other, whole).all(dim=1).any()
    assert not torch.isclose(whole[:BLOCK_ROWS], whole[BLOCK_ROWS : 2 * BLOCK_ROWS]).all(1).any()


def test_keys_are_fixed_for_ever_and_separate_their_parts():
    # written down: a run resumed by a later version must draw the same dropout
    assert derive_key(1234, "embedding output") == 6016937206767478751
    assert derive_key(1, 23) != derive_key(12, 3)
    assert derive_key(1, "a", "b") != derive_key(1, "ab")
    assert -(2**63) <= derive_key(0) < 2**63
