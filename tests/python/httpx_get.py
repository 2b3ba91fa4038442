"""GETs URLs with httpx over HTTP/2 with prior knowledge, all on one connection.

    httpx_get.py URL...

Prints a list of [HTTP version, status, body], one for each URL.
"""

import json
import sys

import httpx

with httpx.Client(http1=False, http2=True, timeout=20, trust_env=False) as client:
    answers = [client.get(url) for url in sys.argv[1:]]
print(json.dumps([[answer.http_version, answer.status_code, answer.text] for answer in answers]))
