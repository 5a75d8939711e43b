"""`hearth`, also as `python -m app`."""

import sys


def main() -> None:
    """Entry of the command: quiet from the first moment on, while libraries are still being imported."""
    try:
        from app.cli import main

        main()
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
