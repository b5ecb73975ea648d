"""What a config says of a model's windows."""

from probewire.backends.model.families import window_in


def test_a_window_counts_where_some_layer_has_one() -> None:
    assert window_in({"sliding_window": 4096})
    assert window_in({"sliding_window": 4096, "layer_types": ["full_attention", "sliding_attention"]})
    assert not window_in({"sliding_window": None})
    assert not window_in({"sliding_window": 4096, "use_sliding_window": False})
    assert not window_in({"sliding_window": 4096, "layer_types": ["full_attention"] * 2})
