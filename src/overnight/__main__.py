"""`python -m overnight`, which is also what torchrun starts."""

from overnight.cli import main

if __name__ == "__main__":
    main()
