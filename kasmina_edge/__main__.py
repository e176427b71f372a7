"""``python -m kasmina_edge`` is ``kasmina-edge``."""

import sys

from kasmina_edge.cli import main

sys.exit(main())
