import json

import numpy as np

from edgepress.validators.blame import compare_layers, worst_layers

RNG = np.random.default_rng(0)


def layers(**noise):
    clean = {name: RNG.normal(size=(2, size)).astype(np.float32) for name, size in (("a", 3), ("b", 4), ("c", 5))}
    return clean, {name: value + np.float32(noise.get(name, 0.001)) for name, value in clean.items()}


def test_damage_is_found_where_it_starts_not_where_it_is_carried_on():
    clean, noisy = layers(b=0.5, c=0.5)
    found = compare_layers(clean, noisy)
    assert [error.name for error in found] == ["a", "b", "c"]
    assert worst_layers(found, 1)[0].name == "b" and found[2].lost_db < found[1].lost_db


def test_renamed_layers_match_by_shape_where_that_is_unambiguous():
    clean, noisy = layers()
    renamed = {"a": noisy["a"], "node_7": noisy["b"], "x": noisy["c"], "y": noisy["c"]}
    assert [(error.name, error.matched) for error in compare_layers(clean, renamed)] == [("a", "a"), ("b", "node_7")]


def test_same_name_with_another_shape_is_no_match():
    assert compare_layers({"a": np.ones((1, 2))}, {"a": np.ones((1, 3))}) == ()


def test_integer_tensors_are_left_out():
    assert compare_layers({"a": np.ones(2, np.int8)}, {"a": np.ones(2, np.int8)}) == ()


def test_a_layer_that_became_nan_is_the_worst():
    clean, noisy = layers()
    noisy["b"] = np.full_like(noisy["b"], np.nan)
    found = compare_layers(clean, noisy)
    assert worst_layers(found)[0].name == "b"
    json.dumps([error.to_json() for error in found], allow_nan=False)


def test_masks_of_minus_infinity_on_both_sides_do_not_count():
    masked = {"a": np.array([[-np.inf, 1.0]])}
    assert compare_layers(masked, masked)[0].max_abs_error == 0.0
