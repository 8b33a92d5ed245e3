"""The short form of random histories of one bank."""

from __future__ import annotations

from histories import history_settings
from merge_histories import MergeHistories

TestHistories = MergeHistories.TestCase
TestHistories.settings = history_settings(5, 12)
