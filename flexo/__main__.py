"""`python -m flexo` is `flexo`."""

from flexo.commands.flexo import main

main()
