"""Functions over a client and arrays: which parts of a model do what."""
