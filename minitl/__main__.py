"""``python -m minitl`` is ``minitl``."""

from .cli import main

main()
