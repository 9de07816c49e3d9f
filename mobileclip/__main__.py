"""`python -m mobileclip`."""

from mobileclip.cli.main import main

if __name__ == "__main__":
    main()
