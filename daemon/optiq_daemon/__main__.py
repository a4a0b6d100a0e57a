"""``python -m optiq_daemon …`` is the ``optiq`` command."""

import sys

from optiq_daemon.cli.main import main

sys.exit(main())
