"""What a bank is worth: loss with and without its memories, retrieval, cost, and a gate on all of them."""
