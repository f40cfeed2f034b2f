"""Values that differ by depth and by tensor, against NumPy's interpolation and a plain search."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from imm_jax.recipes.parameters import Parameter, look_up, read_setting

NUMBER = Parameter(float, 7.0)
FINITE = st.floats(-1e3, 1e3)
NAMES = st.text("abc.", max_size=4)
CONDITIONS = st.lists(
    st.fixed_dictionaries({"filter": st.sampled_from(["*", None, "", "a", "b.", "cc"]),
                           "value": FINITE}),
    min_size=1, max_size=3,
)  # fmt: skip


@given(st.lists(FINITE, min_size=1, max_size=5), st.floats(0, 1))
def test_a_gradient_is_a_line_between_its_points(points, t):
    settings = {"x": read_setting(points, NUMBER, "x")}
    found = look_up("x", NUMBER, [settings], "tensor", t)
    expected = np.interp(t, np.linspace(0, 1, len(points)), points)
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-9)


@given(st.lists(st.booleans(), min_size=1, max_size=5), st.floats(0, 1))
def test_a_gradient_of_switches_picks_one(points, t):
    switch = Parameter(bool, True)
    settings = {"x": read_setting(points, switch, "x")}
    found = look_up("x", switch, [settings], "tensor", t)
    assert found is points[int(np.floor(t * (len(points) - 1)))]


@given(st.lists(CONDITIONS, max_size=3), NAMES)
def test_the_first_filter_that_matches_decides(scopes, name):
    settings = [{"x": read_setting(scope, NUMBER, "x")} for scope in scopes]
    matching = [
        c["value"] for scope in scopes for c in scope
        if c["filter"] in ("*", None) or c["filter"] in name
    ]  # fmt: skip
    assert look_up("x", NUMBER, settings, name, 0.5) == [*matching, 7.0][0]
    assert look_up("y", NUMBER, settings, name, 0.5) == 7.0


@given(st.sampled_from(["1e-3", "0.001", 1e-3, "1.0e-3"]))
def test_scientific_notation_is_a_number(text):
    """YAML 1.1 takes 1e-3, which has no point, for a string."""
    assert read_setting(text, NUMBER, "x")[0].value == 0.001
