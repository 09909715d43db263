"""The memory: ports and adapters."""
