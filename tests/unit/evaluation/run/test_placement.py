import pytest
from hypothesis import given
from hypothesis import strategies as st

from entmtp.evaluation.run.placement import Node, Placement, ResourceRequest, choose_placement


def node(name: str, cpus: float = 16, gpus: float = 0, kind: str = "") -> Node:
    return Node(name, name, cpus, gpus, kind)


HEAD, ONE, EIGHT = node("head", 4), node("one", 16, 1, "T4"), node("eight", 64, 8, "H100")


def workers(placement: Placement, *nodes: Node) -> list[int]:
    return [placement.workers_on(each) for each in nodes]


def test_one_worker_for_each_gpu_and_none_on_a_head_without() -> None:
    placement = choose_placement([HEAD, EIGHT], ResourceRequest())
    assert placement == Placement("cuda", 1.0, 8, "H100")
    assert workers(placement, HEAD, EIGHT) == [0, 8]


@pytest.mark.parametrize(("share", "count"), [(0.5, 16), (0.3, 24), (0.1, 80), (1, 8)])
def test_a_fraction_is_of_one_gpu(share: float, count: int) -> None:
    assert workers(choose_placement([EIGHT], ResourceRequest(gpus_per_worker=share)), EIGHT) == [count]


def test_a_model_that_no_gpu_holds_is_spread_over_several_of_a_node() -> None:
    placement = choose_placement([ONE, EIGHT], ResourceRequest(gpus_per_worker=3))
    assert placement == Placement("balanced", 3, 32, "H100")
    assert workers(placement, ONE, EIGHT) == [0, 2]


def test_without_gpus_each_node_has_a_worker_with_as_many_threads_as_keep_most_cpus_at_work() -> None:
    nodes = [node("head", 2), node("a", 16), node("b", 16), node("c", 24)]
    placement = choose_placement(nodes, ResourceRequest())
    assert placement == Placement("cpu", 0.0, 16, "")
    assert workers(placement, *nodes) == [0, 1, 1, 1]
    assert workers(choose_placement([node("alone", 2)], ResourceRequest()), node("alone", 2)) == [1]


def test_workers_may_have_fewer_cpus_than_a_node() -> None:
    nodes = [node("head", 2), node("a", 16)]
    placement = choose_placement(nodes, ResourceRequest(cpus_per_worker=3))
    assert placement == Placement("cpu", 0.0, 3, "")
    assert workers(placement, *nodes) == [0, 1]


def test_a_model_may_run_on_the_cpu_of_a_worker_that_holds_a_gpu() -> None:
    placement = choose_placement([HEAD, ONE], ResourceRequest(device="cpu", gpus_per_worker=1))
    assert (placement.device, placement.gpus, workers(placement, HEAD, ONE)) == ("cpu", 1, [0, 1])
    assert choose_placement([HEAD, ONE], ResourceRequest(device="cpu")).gpus == 0


def test_kinds_of_gpu_are_never_mixed() -> None:
    placement = choose_placement([ONE, EIGHT, node("more", 8, 1, "T4")], ResourceRequest())
    assert (placement.kind, workers(placement, ONE, EIGHT)) == ("H100", [0, 8])
    chosen = choose_placement([ONE, EIGHT], ResourceRequest(accelerator="T4"))
    assert (chosen.kind, workers(chosen, ONE, EIGHT)) == ("T4", [1, 0])


def test_workers_without_a_gpu_have_the_requested_cpus_on_nodes_with_gpus_too() -> None:
    assert choose_placement([ONE], ResourceRequest(device="cpu", cpus_per_worker=2)).threads == 2


@given(
    st.lists(
        st.tuples(st.integers(1, 128), st.integers(0, 8), st.sampled_from(["", "H100", "T4"])), min_size=1, max_size=6
    )
)
def test_no_node_holds_more_than_it_has_and_all_workers_are_alike(described: list[tuple[int, int, str]]) -> None:
    nodes = [node(str(n), cpus, gpus, kind if gpus else "") for n, (cpus, gpus, kind) in enumerate(described)]
    placement = choose_placement(nodes, ResourceRequest())
    counts = workers(placement, *nodes)
    assert sum(counts) >= 1
    for own, count in zip(nodes, counts, strict=True):
        assert count * placement.gpus <= own.gpus
        assert count * placement.threads <= max(own.cpus, count)
    assert len({own.kind for own, count in zip(nodes, counts, strict=True) if count}) == 1
