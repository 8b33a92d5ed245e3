"""The short form of random histories of one bank."""

from __future__ import annotations

from histories import Histories, history_settings

TestHistories = Histories.TestCase
TestHistories.settings = history_settings(5, 12)
