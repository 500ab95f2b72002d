"""``cumulet`` and ``python -m cumulet``."""

from cumulet.cli.main import main

if __name__ == "__main__":
    main()
