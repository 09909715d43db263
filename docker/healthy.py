"""Exit 0 where an address answers with a 2xx status: the images hold no curl. Usage: healthy.py http://127.0.0.1:8080/health."""

from __future__ import annotations

import sys
import urllib.request

urllib.request.urlopen(sys.argv[1], timeout=8).close()  # noqa: S310 - the address stands in docker-compose.yml
