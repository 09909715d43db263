"""Rows on their way in: readers, canonical schema, batches, labels, snapshots."""
