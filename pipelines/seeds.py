"""Seeds for everything random in a run, each a function of where it is used."""

from __future__ import annotations

import numpy as np


def seed_of(*where: int) -> int:
    """Return a seed in 0..2**63 for a place named by non-negative integers, as (run seed, sample number).

    Places that differ in any number get unrelated seeds (numpy's SeedSequence hashes them).
    """
    return int(np.random.SeedSequence(where).generate_state(1, np.uint64)[0] >> np.uint64(1))
