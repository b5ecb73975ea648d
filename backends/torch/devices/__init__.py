"""The devices of one model: which they are, and its layers, weights, keys and values over several of them."""
