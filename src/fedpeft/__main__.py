"""`python -m fedpeft` is `fedpeft`."""

from fedpeft.cli.app import app

if __name__ == "__main__":
    app()
