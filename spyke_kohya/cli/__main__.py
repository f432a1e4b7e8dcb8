"""``python -m spyke_kohya.cli`` is the command ``spyke-kohya``."""

from spyke_kohya.cli import main

main()
