"""One module for each source format; the Formats that a module defines are found by ``registry`` by
themselves."""
