"""Which items of an evaluation a dataset holds, by the n-grams of words that they have in common."""
