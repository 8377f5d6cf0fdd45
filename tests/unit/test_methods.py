"""The table of methods: colours, families of heads, and what the short benchmark has."""

from entmtp import methods


def test_no_two_methods_have_one_colour() -> None:
    colours = [method.colour for method in methods.TABLE]
    assert len({*colours}) == len(colours)


def test_methods_and_policies_of_a_family_are_those_that_its_heads_can_run() -> None:
    assert methods.of_family("eagle3") == ("eagle3", "eagle3-best")
    assert methods.of_family("dflash") == ("dflash", "dflash-best")
    assert "medusa-typical" not in methods.of_family("medusa"), "no user may choose it"
    assert "eagle2" in methods.policies()
    assert "eagle2" not in methods.policies(("medusa", "hydra"))
    assert "chain" not in methods.policies(("medusa", "eagle3"))
    assert "dynamic" in methods.policies(())


def test_the_short_benchmark_has_shipped_heads_alone() -> None:
    assert {methods.heads_of(name) for name in methods.names(lambda method: method.quick)} == {
        "medusa",
        "hydra",
        "eagle3",
    }


def test_methods_that_name_no_heads_prefer_those_that_are_loaded() -> None:
    assert methods.heads_of("entmtp-dynamic") == "eagle3"
    assert methods.heads_of("entmtp-dynamic", ("medusa", "hydra")) == "hydra"
    assert methods.heads_of("eagle3-best", ("hydra",)) == "eagle3"
