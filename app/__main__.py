"""`python -m app` is `hearth`."""

from app.cli import main

if __name__ == "__main__":
    main()
