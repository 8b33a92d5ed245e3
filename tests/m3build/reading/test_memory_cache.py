"""The cache: never over its capacity, least recently used first, counts that add up."""

from __future__ import annotations

from dataclasses import dataclass

from hypothesis import given, settings
from hypothesis import strategies as st

from m3build.memory_cache import CacheInfo, MemoryCache


@dataclass(frozen=True)
class Entry:
    name: int
    nbytes: int


STEPS = st.lists(
    st.tuples(st.lists(st.integers(0, 8), min_size=1, max_size=4, unique=True), st.booleans()), max_size=40
)


@settings(max_examples=60, deadline=None)
@given(STEPS, st.integers(0, 40), st.lists(st.integers(1, 15), min_size=9, max_size=9))
def test_it_holds_the_entries_used_last_that_fit(
    steps: list[tuple[list[int], bool]], capacity: int, sizes: list[int]
) -> None:
    cache: MemoryCache[int, Entry] = MemoryCache(capacity)
    # The law, told by a list of all uses: an entry is held as long as it and all that were used after it fit.
    model: list[int] = []
    hits = misses = read = 0
    for keys, put in steps:
        found = cache.get(keys)
        assert found == [Entry(key, sizes[key]) if key in model else None for key in keys]
        known = [key for key in keys if key in model]
        hits, misses = hits + len(known), misses + len(keys) - len(known)
        model = [key for key in model if key not in known] + known
        if put:
            cache.put([(key, Entry(key, sizes[key])) for key in keys], bytes_read=len(keys))
            read += len(keys)
            for key in keys:
                if sizes[key] <= capacity:
                    model = [other for other in model if other != key] + [key]
                    while sum(sizes[other] for other in model) > capacity:
                        del model[0]
        held = sum(sizes[key] for key in model)
        assert held <= capacity
        assert cache.info() == CacheInfo(hits, misses, read, held, capacity, len(model))
    cache.clear()
    assert cache.info() == CacheInfo(hits, misses, read, 0, capacity, 0)
