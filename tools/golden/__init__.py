"""Whether two versions of the library come to the same results, to the bit: see `__main__`."""
