"""`python -m llamatui` is the `llamatui` command."""

from llamatui.app.cli.main import main

if __name__ == "__main__":
    main()
