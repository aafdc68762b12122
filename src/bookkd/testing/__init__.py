"""Public contract suites: what a loss or codec of your own must pass to live beside ours."""
