"""The tests of fgzoo, in folders as the package's."""

import os

#: `FGZOO_THOROUGH=1`: also what takes longest and differs least from what is tested without it.
THOROUGH = bool(os.environ.get("FGZOO_THOROUGH"))
