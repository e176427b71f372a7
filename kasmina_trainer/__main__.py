"""``python -m kasmina_trainer`` is ``kasmina-trainer``."""

import sys

from kasmina_trainer.cli import main

sys.exit(main())
