"""`python -m hmrcompress_cli` is the command `hmrcompress`."""

from __future__ import annotations

from hmrcompress_cli.main import main

if __name__ == "__main__":
    main()
