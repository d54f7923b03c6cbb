"""A chart that several pages show is drawn once a session; every page is still put together anew."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence

import pytest
import vl_convert


@pytest.fixture(scope="session", autouse=True)
def _drawn_once() -> Iterator[None]:
    real = vl_convert.vegalite_to_svg

    @functools.cache
    def drawn(spec: str, allowed: tuple[str, ...]) -> str:
        return str(real(spec, allowed_base_urls=list(allowed)))

    def drawn_once(spec: str, *, allowed_base_urls: Sequence[str]) -> str:
        return drawn(spec, tuple(allowed_base_urls))

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(vl_convert, "vegalite_to_svg", drawn_once)
        drawn_once.forget = drawn.cache_clear  # type: ignore[attr-defined]
        yield
