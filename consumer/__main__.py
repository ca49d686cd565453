"""`python -m consumer` is `consumer`."""

from consumer.cli import process

if __name__ == "__main__":
    process()
