"""Codecs: how key and value vectors become the codes of a bank, and back."""
