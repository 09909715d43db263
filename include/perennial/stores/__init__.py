"""The lake, the ledger and the registry: ports, adapters and fakes."""
