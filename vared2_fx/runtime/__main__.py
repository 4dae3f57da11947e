"""`python -m vared2_fx.runtime`: what `runtime.py` in a bundle does."""

import sys

from vared2_fx.runtime import main

sys.exit(main())
