"""m3-mini: the corpus, the tokenizer and the first weights of the small model that m3build ships."""
