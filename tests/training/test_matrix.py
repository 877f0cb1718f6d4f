"""Every layout trains the same model: each layout with each kind of heads in each setting equals one process.

Some steps in processes that exchange tensors through shared memory, and three over gloo for one cell of a layout. The
suite takes the whole product of the small layouts and a sixth of that of the others, three steps of each; --matrix full
takes all of it and ten steps.
--matrix-seed and --matrix-width repeat either with other numbers.
"""

import pytest

from tests.training.matrix import HEADS, LAYOUTS, SETTINGS, Expected, Scale, cells, compare


def chosen(*, is_full):
    if is_full:
        return cells()
    large = [cell for cell in cells(one_in=6) if not cell.is_small]
    return [cell for cell in cells() if cell.is_small] + large


def chosen_over_gloo(*, is_full):
    return [cell for cell in cells(one_in=12) if cell.size <= 4 or is_full]


def pytest_generate_tests(metafunc):
    is_full = metafunc.config.getoption("--matrix") == "full"
    if "cell" in metafunc.fixturenames:
        metafunc.parametrize("cell", chosen(is_full=is_full), ids=str)
    if "cell_over_gloo" in metafunc.fixturenames:
        metafunc.parametrize("cell_over_gloo", chosen_over_gloo(is_full=is_full), ids=str)


@pytest.fixture(scope="module")
def expected(memory_world, corpus, request, tmp_path_factory):
    is_full = request.config.getoption("--matrix") == "full"
    scale = Scale.asked(request.config, num_steps=10 if is_full else 3)
    return Expected(memory_world, corpus, scale, tmp_path_factory.mktemp("expected"))


@pytest.fixture(scope="module")
def expected_over_gloo(world, corpus, request, tmp_path_factory):
    scale = Scale.asked(request.config, num_steps=3)
    return Expected(world, corpus, scale, tmp_path_factory.mktemp("expected_over_gloo"))


def run(expected, cell):
    command = cell.command(expected.corpus, expected.scale)
    expected.world(cell.size).run(compare, command, expected.file(cell))


def test_a_layout_trains_the_model_of_one_process(expected, cell):
    run(expected, cell)


def test_a_layout_trains_the_model_of_one_process_over_gloo(expected_over_gloo, cell_over_gloo):
    run(expected_over_gloo, cell_over_gloo)


def test_layouts_differ():
    for group in LAYOUTS.values():
        assert len(set(group.values())) == len(group)


def test_the_suite_takes_the_whole_product_of_24_layouts_and_a_part_of_the_others():
    taken = [cell.layout for cell in chosen(is_full=False)]
    whole = {layout for layout in taken if taken.count(layout) == len(HEADS) * len(SETTINGS)}
    assert len(whole) >= 24
    assert set(taken) == {layout for group in LAYOUTS.values() for layout in group}
