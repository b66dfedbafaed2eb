"""``python -m safe_components`` is the command ``safe-components``."""

from safe_components.cli import main

if __name__ == "__main__":
    main()
