"""HTTP: routes, keys, limits, CORS, the access log and the middleware in the proxy."""
