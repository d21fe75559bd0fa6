"""Popularity of keys by Zipf's law: key number n has the weight 1 / (n + 1)^s."""

import itertools
import random


class Zipf:
    """Draws key numbers. The same seed gives the same sequence."""

    def __init__(self, keys, exponent, seed):
        self.numbers = range(keys)
        self.cumulative = list(itertools.accumulate((number + 1) ** -exponent for number in self.numbers))
        self.random = random.Random(seed)

    def draw(self, count):
        """Returns a list of key numbers."""
        return self.random.choices(self.numbers, cum_weights=self.cumulative, k=count)
