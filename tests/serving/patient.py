"""Requests that wait as long as it takes: a busy machine is no failure, and httpx gives up after five seconds."""

from __future__ import annotations

from functools import partial

import httpx

get, post, delete = (partial(one, timeout=None) for one in (httpx.get, httpx.post, httpx.delete))
