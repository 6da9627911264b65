"""What the benchmarks are made of: processes, figures, and one module for each system that is timed."""
