"""Command line of hmrcompress (installed as hmrcompress_cli)."""
