"""Whether search finds what is there, how fast, and beside what: `make bench-search`."""
