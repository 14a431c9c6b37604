"""Random requests, right and wrong in every way: nothing hangs, nothing is INTERNAL, nothing crashes."""
