"""How fast the store is: `make bench` measures it and writes docs/benchmarks.md."""
