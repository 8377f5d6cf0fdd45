"""Old name of :mod:`deployments.http.proxy_middleware`, kept for one release: users' own cluster files name it."""

from deployments.http.proxy_middleware import middlewares

__all__ = ["middlewares"]
