"""When the requests of an open loop are meant to be sent."""

import numpy as np

from export.errors import UsageError


def poisson(rate: float, seconds: float, *, seed: int) -> tuple[float, ...]:
    """Times of arrival in [0, `seconds`), in order: on average `rate` a second, each independent of the others.

    The gaps are exponential, as they are where many users know nothing of each other; evenly spaced requests would
    never meet in the queue and make it look shorter than it is. Raises UsageError for a rate or a time that is not
    positive.
    """
    if rate <= 0 or seconds <= 0:
        raise UsageError(f"arrivals need a rate and a time above 0, got {rate:g} a second for {seconds:g} s")
    random = np.random.default_rng(seed)
    # Given their number, the arrivals of a Poisson process are uniform and independent.
    return tuple(np.sort(random.uniform(0, seconds, random.poisson(rate * seconds))).tolist())
