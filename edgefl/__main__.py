"""`python -m edgefl` is the `edgefl` command."""

from edgefl.cli.main import main

if __name__ == "__main__":
    main()
