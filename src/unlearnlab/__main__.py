"""``python -m unlearnlab`` is the command ``unlearnlab``."""

from unlearnlab.cli import main

if __name__ == "__main__":  # worker processes import this file too
    main()
