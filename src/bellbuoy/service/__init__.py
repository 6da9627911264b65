"""The edges that people and programs touch: settings, assembly, runtime, HTTP and the command line."""
