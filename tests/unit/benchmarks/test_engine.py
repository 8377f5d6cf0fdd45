"""The engine's benchmark, from rounds that are made up."""

from matplotlib.colors import to_hex

from benchmarks.engine import Round, conclusions, drawn, rows
from entmtp import methods
from entmtp.decoding.outputs import Completion


def rounds(seconds: float, spread: float = 0.0) -> list[Round]:
    """Three rounds of one answer of ten tokens."""
    times = (seconds, seconds * (1 + spread), seconds / (1 + spread))
    return [Round(one, [Completion(tokens=list(range(10)))]) for one in times]


FOUND = {
    load: {"autoregressive": rounds(2.0), "hydra": rounds(4.0), "entmtp-dynamic": rounds(dynamic, spread)}
    for load, dynamic, spread in ((1, 1.0, 0.0), (8, 2.0, 0.05))
}


def test_a_bar_is_met_only_by_the_whole_interval_at_every_load() -> None:
    plain, published = conclusions(FOUND)
    assert plain.endswith("0.98x as fast as autoregressive at every load, by the whole interval: missed at 8.")
    assert published.endswith("as fast as hydra at every load, by the whole interval: met.")


def test_there_is_a_row_for_each_load_and_method() -> None:
    table = rows(FOUND)
    assert [row[:2] for row in table] == [[load, name] for load in FOUND for name in FOUND[load]]
    assert table[2][5:] == ["2.00x [2.00, 2.00]", "4.00x [4.00, 4.00]"]


def test_methods_have_their_colours_and_the_legend_lies_outside() -> None:
    figure = drawn(FOUND)
    lines = {str(line.get_label()): to_hex(line.get_color()) for line in figure.axes[0].lines}
    assert lines == {name: methods.colour(name).lower() for name in FOUND[1]}
    assert figure.axes[0].get_legend() is None
    assert len(figure.legends) == 1
