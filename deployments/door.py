"""Old name of :mod:`deployments.http.proxy_middleware`, deprecated for one release: users' cluster files name it."""

from deployments.http.proxy_middleware import middlewares

__all__ = ["middlewares"]
