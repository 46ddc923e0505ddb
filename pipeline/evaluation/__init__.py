"""Zero-shot video question answering over a store: data sets, runs, metrics, judge, report."""
