"""Old name of :mod:`deployments.http.auth`, deprecated for one release: users' own scripts make keys with it."""

import sys

from deployments.http.auth import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
