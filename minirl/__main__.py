"""python -m minirl"""

import sys

from minirl.app.cli import main

sys.exit(main())
