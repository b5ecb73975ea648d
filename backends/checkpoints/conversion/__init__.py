"""Other formats of weights, each written once into a checkpoint folder that both backends load."""
