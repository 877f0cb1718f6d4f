"""Every layout trains the same model: each layout with each kind of heads equals one process.

The suite takes three steps of every kind of heads under every layout, the settings going round. --matrix full takes
ten steps of the whole product with every setting; --matrix-seed and --matrix-width repeat either with other numbers.
"""

import pytest

from tests.training.matrix import LAYOUTS, Expected, Scale, cells, compare


def pytest_generate_tests(metafunc):
    if "cell" in metafunc.fixturenames:
        is_full = metafunc.config.getoption("--matrix") == "full"
        metafunc.parametrize("cell", cells(is_full=is_full), ids=str)


@pytest.fixture(scope="module")
def scale(request):
    is_full = request.config.getoption("--matrix") == "full"
    return Scale.asked(request.config, num_steps=10 if is_full else 3)


@pytest.fixture(scope="module")
def expected(world, corpus, scale, tmp_path_factory):
    return Expected(world, corpus, scale, tmp_path_factory.mktemp("expected"))


def test_a_layout_trains_the_model_of_one_process(world, corpus, scale, expected, cell):
    world(cell.size).run(compare, cell.command(corpus, scale), expected.file(cell))


def test_there_are_24_layouts_and_all_of_them_differ():
    commands = [layout for group in LAYOUTS.values() for layout in group.values()]
    assert len(commands) >= 24
    assert all(len(set(group.values())) == len(group) for group in LAYOUTS.values())
