"""`python -m fgzoo` is `fgzoo`."""

from fgzoo.cli import main

raise SystemExit(main())
