"""Old name of :mod:`deployments.serve_local`, deprecated for one release: users' own images start it."""

import typer

from deployments.serve_local import main

if __name__ == "__main__":
    typer.run(main)
