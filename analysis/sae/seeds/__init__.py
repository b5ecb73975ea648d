"""Whether SAEs that differ in their seed alone find the same, and sweeps of many of them."""
