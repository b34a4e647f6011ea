"""Speed and memory against peers. Run each as `python -m benchmarks.NAME`."""
